"""What the demonstration knows of its ranks: processes that say what they do in lines of JSON."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time

LIMIT = 120.0  # seconds for one case


class Failed(Exception):
    """A case did not come to its end, or not to the right one."""


class Progress:
    """One line that says what is going on: rewritten in a terminal, a new one per step elsewhere."""

    def __init__(self, what: str):
        self.what, self.begin = what, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.said: list[str] = []
        self.doing = ""

    def show(self, doing: str, done: float = 0.0) -> None:
        elapsed = time.monotonic() - self.begin
        self.doing = doing
        if self.terminal:
            bar = f" {done:4.0%}" if done else ""
            line = f"  {self.what} {elapsed:5.1f} s  {doing}{bar}"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif doing not in self.said:
            print(f"  {self.what} {elapsed:5.1f} s  {doing}", file=sys.stderr, flush=True)
            self.said.append(doing)

    def clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Rank:
    """One rank of an engine. In a session of its own: Ctrl-C is the demonstration's, which ends all."""

    def __init__(self, name: str, command: list[str], progress: Progress):
        self.name, self.progress, self.rest = name, progress, b""
        self.end = time.monotonic() + LIMIT
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def tell(self, **facts: object) -> None:
        try:
            self.process.stdin.write(json.dumps(facts).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self, key: str) -> dict:
        """The next message that has this key; shows the progress that it hears of meanwhile."""
        while True:
            message = json.loads(self._line())
            if key in message:
                return message
            if "wrong" in message:
                raise Failed(f"{self.name}: {message['wrong']}")
            if "doing" in message:
                self.progress.show(message["doing"], message["done"])

    def _line(self) -> bytes:
        stdout = self.process.stdout.fileno()
        while b"\n" not in self.rest:
            if time.monotonic() > self.end:
                raise Failed(f"{self.name} says nothing more; {LIMIT:.0f} s are over")
            if select.select([stdout], [], [], 0.2)[0]:
                some = os.read(stdout, 1 << 16)
                if not some:
                    raise self._ended()
                self.rest += some
            elif self.progress.terminal:
                self.progress.show(self.progress.doing)
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _ended(self) -> Failed:
        try:
            return Failed(f"{self.name} has ended with exit code {self.process.wait(10)}")
        except subprocess.TimeoutExpired:
            return Failed(f"{self.name} has closed its output")

    def finish(self) -> None:
        """Lets it end by itself, which it does when it is told nothing more."""
        self.process.stdin.close()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} does not end") from None
        if code:
            raise Failed(f"{self.name} has ended with exit code {code}")

    def kill(self) -> None:
        """Makes sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in self.process.stdin, self.process.stdout:
            try:
                pipe.close()
            except BrokenPipeError:  # what it was told last did not get through
                pass
