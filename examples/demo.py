#!/usr/bin/env python3
"""A prefill engine and a decode engine, two processes, and the KV cache that moves between them.

    make demo          or          python examples/demo.py [--transport nixl] [--transport local]

The cache has the shape of Llama-3.1-8B. The prefill engine fills the blocks of a request with bytes
that are a function of their place; the decode engine asks it for its metadata on the side channel,
pulls the scattered blocks into scattered blocks of its own, and looks at every byte it has. The exit
code is 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time

from kv_demo.cache import LLAMA_3_1_8B as MODEL

TRANSPORTS = ("nixl", "local")
LIMIT = 300.0  # seconds for one transport


class Failed(Exception):
    """One transport's demonstration did not come to its end."""


class Progress:
    """One line that says what is going on: rewritten in a terminal, a new one per step elsewhere."""

    def __init__(self, transport: str):
        self.transport, self.begin = transport, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.doing = ""

    def show(self, doing: str, done: float = 0.0) -> None:
        elapsed = time.monotonic() - self.begin
        if self.terminal:
            bar = f" {done:4.0%}" if done else "     "
            line = f"  {self.transport:6} {elapsed:5.1f} s  {doing}{bar}"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif doing != self.doing:
            print(f"  {self.transport:6} {elapsed:5.1f} s  {doing}", file=sys.stderr, flush=True)
        self.doing = doing

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Engine:
    """A process of ours that says what it does in lines of JSON."""

    def __init__(self, role: str, transport: str, args: argparse.Namespace, progress: Progress):
        self.role, self.progress, self.rest = role, progress, b""
        command = [sys.executable, __file__, "--role", role, "--transport", transport]
        command += ["--blocks", str(args.blocks), "--request", str(args.request)]
        command += ["--copy-threads", str(args.copy_threads)] + ["--corrupt"] * args.corrupt
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.end = time.monotonic() + LIMIT

    def tell(self, **facts: object) -> None:
        try:
            self.process.stdin.write(json.dumps(facts).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.role} has ended with exit code {self.process.wait(10)}") from None

    def wait_for(self, key: str) -> dict:
        """The next message that has this key; shows the progress that it hears of meanwhile."""
        while True:
            message = json.loads(self._line())
            if key in message:
                return message
            if "wrong" in message:
                raise Failed(message["wrong"])
            if "doing" in message:
                self.progress.show(message["doing"], message["done"])

    def _line(self) -> bytes:
        stdout = self.process.stdout.fileno()
        while b"\n" not in self.rest:
            if time.monotonic() > self.end:
                raise Failed(f"{self.role} says nothing more; {LIMIT:.0f} s are over")
            if select.select([stdout], [], [], 0.2)[0]:
                some = os.read(stdout, 1 << 16)
                if not some:
                    raise Failed(f"{self.role} has ended with exit code {self.process.wait(10)}")
                self.rest += some
            elif self.progress.terminal:
                self.progress.show(self.progress.doing)
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def stop(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def demonstrate(transport: str, args: argparse.Namespace) -> dict:
    """Runs both engines over one transport; returns what the decode engine measured."""
    progress = Progress(transport)
    progress.show("starting two engines")
    engines = []
    try:
        for role in ("prefill", "decode"):
            engines.append(Engine(role, transport, args, progress))
        owner, reader = engines
        offer = owner.wait_for("port")
        reader.wait_for("ready")
        reader.tell(port=offer["port"], request=offer["request"], blocks=offer["blocks"])
        result = reader.wait_for("first_ms")
        freed = owner.wait_for("freed")["freed"]
        if freed != offer["request"]:
            raise Failed(f"prefill was told that {freed!r} is done instead of {offer['request']!r}")
        return result
    finally:
        for engine in reversed(engines):
            engine.stop()
        progress.clear()


def table(results: dict[str, dict]) -> str:
    head = ("transport", "bytes", "descriptors", "first pull", "again", "speed", "bytes checked")
    rows = [
        (
            name,
            f"{r['bytes']:,}",
            f"{r['descriptors']:,}",
            f"{r['first_ms']:.1f} ms",
            f"{r['again_ms']:.1f} ms",
            f"{r['bytes'] / r['again_ms'] / 1e6:.2f} GB/s",
            f"{r['verified']:,} ok",
        )
        for name, r in results.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: tuple[str, ...]) -> str:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        return "  " + "   ".join(cells)

    rule = "  " + "   ".join("-" * w for w in widths)
    return "\n".join([line(head), rule, *map(line, rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="default: both")
    parser.add_argument("--blocks", type=int, default=192, help="blocks of each engine's cache")
    parser.add_argument("--request", type=int, default=118, help="blocks of the request")
    parser.add_argument("--copy-threads", type=int, default=1, help="local: threads that copy")
    parser.add_argument("--corrupt", action="store_true", help="spoil one bit, to see it found")
    parser.add_argument("--role", choices=("prefill", "decode"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 0 < args.request <= args.blocks:
        parser.error(f"--request {args.request} is not one of 1 to --blocks {args.blocks}")

    if args.role:  # one of the two processes that main() starts below
        import kvferry
        from kv_demo import engines

        try:
            if args.role == "prefill":
                return engines.prefill(args.transport[0], args.blocks, args.request, args.corrupt)
            return engines.decode(args.transport[0], args.blocks, args.copy_threads)
        except kvferry.Error as error:
            engines.say(wrong=str(error))
            return 1
        except KeyboardInterrupt:
            return 130

    mib = 1 << 20
    print(
        f"{MODEL.name}: {MODEL.layers} layers, {MODEL.kv_heads} KV heads of {MODEL.head_size}, "
        f"{MODEL.block_tokens} tokens a block, {MODEL.page_bytes // 1024} KiB of K and as much of V\n"
        f"a block and layer. Two engines with {args.blocks} blocks "
        f"({args.blocks * MODEL.block_bytes // mib} MiB) each; a request of "
        f"{args.request * MODEL.block_tokens:,} tokens in {args.request} scattered blocks."
    )
    results, failures = {}, {}
    for transport in args.transport or TRANSPORTS:
        try:
            results[transport] = demonstrate(transport, args)
        except Failed as error:
            failures[transport] = error
    if results:
        print(f"\n{table(results)}\n")
        print(
            "  A pull goes from two lists of block numbers to bytes in their places. The first one makes\n"
            "  the connection too; again is the median of 5 more.\n"
        )
    for transport, error in failures.items():
        print(f"{transport} FAILED: {error}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
