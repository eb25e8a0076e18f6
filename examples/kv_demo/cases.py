"""One case of the demonstration: two engines of so many ranks each, and a request between them."""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from dataclasses import dataclass

from .cache import PATTERNS
from .processes import Progress, Rank

REPEATS = 5
# Seeds of the block lists on the two sides.
THEIRS, MINE = 1, 2


@dataclass
class Figures:
    """A request with its blocks in one pattern, over all ranks that pull."""

    transport: str
    pattern: str
    bytes: int
    apart: int
    before: int
    ranges: int
    first_ms: float
    again_ms: float
    submit_us: float
    poll_us: float
    polls: int
    verified: int

    HEAD = ("transport", "blocks", "bytes", "ranges", "first pull", "again", "speed", "engine thread")

    def row(self) -> tuple[str, ...]:
        return (
            self.transport,
            self.pattern,
            f"{self.bytes:,}",
            f"{self.apart:,} -> {self.before:,} -> {self.ranges:,}",
            f"{self.first_ms:.1f} ms",
            f"{self.again_ms:.1f} ms",
            f"{self.bytes / self.again_ms / 1e6:.2f} GB/s",
            f"{self.submit_us:.0f} us + {self.polls} x {self.poll_us:.0f} us",
        )


def run(prefills: int, decodes: int, transport: str, args: Namespace) -> list[Figures]:
    """Runs both engines over one transport; returns what was measured with each pattern."""
    progress = Progress(f"TP {prefills} -> TP {decodes}, {transport:6}")
    progress.show("starting two engines")
    ranks: list[Rank] = []
    try:
        for engine, count in ("prefill", prefills), ("decode", decodes):
            for i in range(count):
                ranks.append(start(engine, i, count, transport, args, progress))
        owners, readers = ranks[:prefills], ranks[prefills:]
        tellers = connect(owners, readers)
        found = [measure(transport, pattern, readers, tellers, args) for pattern in PATTERNS]
        # The readers first: owners of memory stay until nobody reads.
        for rank in readers + owners:
            rank.finish()
        return found
    finally:
        for rank in reversed(ranks):
            rank.kill()
        progress.clear()


def start(engine: str, rank: int, ranks: int, transport: str, args: Namespace, progress: Progress) -> Rank:
    name = f"{engine}-{rank}"
    command = [sys.executable, sys.argv[0], "--role", engine, "--name", name, "--transport", transport]
    numbers = {
        "rank": rank, "ranks": ranks, "seed": THEIRS, "blocks": args.blocks, "request": args.request,
        "copy-threads": args.copy_threads,
    }  # fmt: skip
    for option, number in numbers.items():
        command += [f"--{option}", str(number)]
    return Rank(name, command + ["--corrupt"] * args.corrupt, progress)


def connect(owners: list[Rank], readers: list[Rank]) -> list[tuple[Rank, list[str]]]:
    """Every reader gets to know all owners; returns for each owner who tells it that a request is done."""
    ports = [owner.hear("port")["port"] for owner in owners]
    for reader in readers:
        reader.hear("ready")
        reader.tell(ports=ports)
    tells = {reader.name: reader.hear("tells")["tells"] for reader in readers}
    return [(owner, [reader for reader in tells if owner.name in tells[reader]]) for owner in owners]


def measure(
    transport: str, pattern: str, readers: list[Rank], tellers: list[tuple[Rank, list[str]]], args: Namespace
) -> Figures:
    """The first pull, a look at every byte, and more pulls for their time."""
    lists = {
        "theirs": PATTERNS[pattern](args.blocks, args.request, THEIRS),
        "mine": PATTERNS[pattern](args.blocks, args.request, MINE),
    }
    progress = readers[0].progress

    def pull(number: int) -> list[dict]:
        request = f"{pattern}-{number}"
        for reader in readers:
            reader.tell(do="pull", request=request, **lists)
        pulled = [reader.hear("pulled")["pulled"] for reader in readers]
        # The producers keep a request's blocks until they have heard of all of its readers.
        for owner, names in tellers:
            owner.tell(freed=request, readers=names)
        for owner, _ in tellers:
            owner.hear("freed")
        return pulled

    for reader in readers:
        reader.tell(do="clear")
    for reader in readers:
        reader.hear("cleared")
    progress.show(f"decode pulls {pattern} blocks")
    first = pull(0)
    for reader in readers:
        reader.tell(do="verify", **lists)
    verified = sum(reader.hear("verified")["verified"] for reader in readers)
    progress.show(f"decode pulls {pattern} blocks again, to measure")
    again = [pull(i) for i in range(1, 1 + REPEATS)]

    def median(key: str) -> float:
        """Of one engine thread."""
        return statistics.median(one[key] for pulled in again for one in pulled)

    sums = {key: sum(one[key] for one in first) for key in ("bytes", "apart", "before", "ranges")}
    return Figures(
        transport, pattern, **sums,
        first_ms=wall_ms(first),
        again_ms=statistics.median(wall_ms(pulled) for pulled in again),
        submit_us=median("submit_us"), poll_us=median("poll_us"), polls=round(median("polls")),
        verified=verified,
    )  # fmt: skip


def wall_ms(pulled: list[dict]) -> float:
    """From the first submit to the last byte; all ranks read the same clock."""
    return (max(p["end_ns"] for p in pulled) - min(p["begin_ns"] for p in pulled)) / 1e6
