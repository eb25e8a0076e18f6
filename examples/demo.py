#!/usr/bin/env python3
"""A prefill engine and a decode engine, and the KV cache that moves between them.

    make demo          or          python examples/demo.py [--transport nixl] [--transport local]

The cache has the shape of Llama-3.1-8B, and every rank of the two engines is a process. The prefill
ranks fill their blocks with bytes that are a function of their place; the decode ranks learn where the
blocks are, pull those of a request with a plan and a queue, and look at every byte they have. First one
rank pulls from one; then two prefill ranks with half of the heads each feed one decode rank, and one
feeds two. The exit code is 1 if a byte is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys

from kv_demo import cases
from kv_demo.cache import LLAMA_3_1_8B as MODEL
from kv_demo.processes import Failed

TRANSPORTS = ("nixl", "local")
CASES = {
    (1, 1): "One prefill rank feeds one decode rank",
    (2, 1): "Two prefill ranks (TP 2, 4 KV heads each) feed one decode rank (TP 1, 8 heads)",
    (1, 2): "One prefill rank (TP 1, 8 KV heads) feeds two decode ranks (TP 2, 4 heads each)",
}
LEGEND = """\
  ranges         of memory that are copied: one for each block, layer, head, and K or V -> after lanes
                 that lie side by side were merged -> after neighbouring blocks were merged. Between
                 unequal TP sizes a rank's heads of two blocks never touch in the wider rank's memory.
  first pull     from two lists of block numbers to bytes in their places; makes the connection too.
  again          the median of 5 more; speed is of these.
  engine thread  what one of them takes of the model's own thread in one rank: a submit, and a poll
                 between decode steps of 10 ms. The rest is done by the queue's thread. In Python, and
                 each call cold after a sleep; docs/benchmarks.md has them warm and without Python.
  looked at      is the whole memory of the decode ranks after the first pull: what was asked for must
                 be the peer's, and all else as it was."""


def table(figures: list[cases.Figures]) -> str:
    rows = [cases.Figures.HEAD] + [f.row() for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) for c, w in zip(row[:2], widths)]
        cells += [c.rjust(w) for c, w in zip(row[2:], widths[2:])]
        lines.append("  " + "   ".join(cells).rstrip())
    lines.insert(1, "  " + "   ".join("-" * w for w in widths))
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--transport", action="append", choices=TRANSPORTS, help="default: both")
    parser.add_argument("--blocks", type=int, default=192, help="blocks of each engine's cache")
    parser.add_argument("--request", type=int, default=118, help="blocks of the request")
    parser.add_argument("--copy-threads", type=int, default=1, help="local: threads that copy")
    parser.add_argument("--corrupt", action="store_true", help="spoil one bit, to see it found")
    # For the ranks, which this program starts.
    parser.add_argument("--role", choices=("prefill", "decode"), help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    for number in "--rank", "--ranks", "--seed":
        parser.add_argument(number, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 0 < args.request <= args.blocks:
        parser.error(f"--request {args.request} is not one of 1 to --blocks {args.blocks}")
    return args


def rank(args: argparse.Namespace) -> int:
    """One rank, in a process of its own."""
    import kvferry
    from kv_demo import engines

    (args.transport,) = args.transport
    try:
        getattr(engines, args.role)(args)
    except kvferry.Error as error:
        engines.say(wrong=str(error))
        return 1
    except BrokenPipeError:  # nobody is there to hear of it; and no more is to be said at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def main() -> int:
    args = arguments()
    if args.role:
        return rank(args)
    mib = MODEL.block_bytes * args.blocks >> 20
    print(
        f"{MODEL.name}: {MODEL.layers} layers, {MODEL.kv_heads} KV heads of {MODEL.head_size}, "
        f"{MODEL.block_tokens} tokens a block.\nTwo engines with {args.blocks} blocks ({mib} MiB) each; "
        f"a request of {args.request * MODEL.block_tokens:,} tokens in {args.request} blocks.",
        flush=True,
    )
    failed = shown = False
    for (prefills, decodes), title in CASES.items():
        figures, failures = [], []
        for transport in args.transport or TRANSPORTS:
            try:
                figures += cases.run(prefills, decodes, transport, args)
            except Failed as error:
                failures.append(f"{transport} FAILED, TP {prefills} -> TP {decodes}: {error}")
        if figures:
            shown = True
            verified = sum(f.verified for f in figures)
            print(f"\n{title}:\n\n{table(figures)}\n\n  {verified:,} bytes looked at, all right", flush=True)
        for failure in failures:
            print(failure, file=sys.stderr, flush=True)
        failed = failed or bool(failures)
    if shown:
        print(f"\n{LEGEND}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
