"""The drop-in against NIXL's own Python bindings, on the same NIXL, in one process and one run.

    make bench ARGS=dropin          or          python benches/dropin.py [--rounds N] [--block BYTES]

What is timed is what a program does for each request: make a transfer from prepared lists, post it,
ask for its state until it is done, release it; at 1, 160 and 18,880 descriptors. And looking for
notifications when there are none, which a polling loop does all day.

Both sides do the same: two agents in this process, a READ of scattered blocks. They take turns in
each round, so that what disturbs the machine disturbs both; each round gives a median of each and
their ratio, and the table has the medians of the rounds. A ratio below 1 means that the drop-in is
faster.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import sys
import time

os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")

import numpy as np  # noqa: E402

SIDES = {"NIXL": "nixl_cu12", "kvferry": "kvferry.nixl"}
STEPS = ("make", "post", "state", "release")
#: Descriptors → repetitions in a round.
SIZES = {1: 2000, 160: 300, 18_880: 3}
BLOCKS = 18_880


class Side:
    """Two agents of one implementation, with prepared lists over all blocks."""

    def __init__(self, label: str, package: str, progress: bool, block: int):
        api = importlib.import_module(package + "._api")
        config = api.nixl_agent_config(enable_prog_thread=progress)
        suffix = f"{label}-{progress}"
        self.initiator = api.nixl_agent(f"initiator-{suffix}", config)
        self.target = api.nixl_agent(f"target-{suffix}", config)
        self.memory = [np.zeros(BLOCKS * block * 2, np.uint8), np.zeros(BLOCKS * block * 2, np.uint8)]
        self.memory[1][:] = 7
        for agent, memory in zip((self.initiator, self.target), self.memory):
            agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
        self.initiator.add_remote_agent(self.target.get_agent_metadata())
        self.lists = [
            self.initiator.prep_xfer_dlist(who, self._blocks(memory, block), "DRAM")
            for who, memory in zip(("NIXL_INIT_AGENT", self.target.name), self.memory)
        ]

    @staticmethod
    def _blocks(memory: np.ndarray, block: int) -> np.ndarray:
        # Every other block of the memory, so that neighbours do not merge.
        descs = np.zeros((BLOCKS, 3), np.uint64)
        descs[:, 0] = memory.ctypes.data + np.arange(BLOCKS, dtype=np.uint64) * np.uint64(2 * block)
        descs[:, 1] = block
        return descs

    def cycle(self, indices: object, clock=time.perf_counter) -> tuple[float, ...]:
        """Seconds of each step of one transfer."""
        agent, (local, remote) = self.initiator, self.lists
        t0 = clock()
        handle = agent.make_prepped_xfer("READ", local, indices, remote, indices)
        t1 = clock()
        state = agent.transfer(handle)
        t2 = clock()
        state = agent.check_xfer_state(handle)
        t3 = clock()
        if state != "DONE":
            # The target makes progress meanwhile, where no thread does it; not timed.
            while agent.check_xfer_state(handle) != "DONE":
                self.target.get_new_notifs()
        t4 = clock()
        agent.release_xfer_handle(handle)
        t5 = clock()
        return t1 - t0, t2 - t1, t3 - t2, t5 - t4

    def empty_poll(self, clock=time.perf_counter) -> float:
        t0 = clock()
        self.initiator.get_new_notifs()
        return clock() - t0


def measure(sides: dict[str, Side], rounds: int, once) -> dict[str, list[list[float]]]:
    """For each side, a list of rounds; a round is the medians of what ``once(side)`` gives."""
    found: dict[str, list[list[float]]] = {label: [] for label in sides}
    for number in range(rounds):
        # Who goes first alternates.
        for label in list(sides)[:: 1 if number % 2 else -1]:
            samples = once(sides[label])
            found[label].append([statistics.median(column) for column in zip(*samples)])
    return found


def row(name: str, found: dict[str, list[list[float]]], column: int | None) -> tuple[float, float, float]:
    """Medians over the rounds of both, in microseconds, and of the ratio within a round."""
    pick = (lambda r: sum(r)) if column is None else (lambda r: r[column])
    theirs, ours = ([pick(r) for r in found[label]] for label in SIDES)
    ratio = statistics.median(o / t for o, t in zip(ours, theirs))
    values = statistics.median(theirs) * 1e6, statistics.median(ours) * 1e6, ratio
    print(f"  {name:32} {values[0]:12.2f} {values[1]:12.2f} {ratio:8.2f}")
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--block", type=int, default=8192, help="bytes of a block")
    parser.add_argument("--indices", choices=("array", "list"), default="array")
    parser.add_argument("--progress", choices=("off", "default", "both"), default="both")
    args = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for progress in {"off": (False,), "default": (True,), "both": (False, True)}[args.progress]:
        sides = {label: Side(label, package, progress, args.block) for label, package in SIDES.items()}
        for side in sides.values():  # connections are made here, and pages touched
            side.cycle(np.arange(BLOCKS, dtype=np.int32))
        word = "each one's default" if progress else "off on both"
        print(f"\nprogress thread {word}; blocks of {args.block} bytes; medians of {args.rounds} rounds, in µs")
        print(f"  {'':32} {'NIXL':>12} {'kvferry':>12} {'ratio':>8}")
        for n, repeat in SIZES.items():
            # Scattered, the same for both.
            picked = np.random.default_rng(1).permutation(BLOCKS)[:n].astype(np.int32)
            indices = picked.tolist() if args.indices == "list" else picked
            found = measure(sides, args.rounds, lambda s: [s.cycle(indices) for _ in range(repeat)])
            for i, step in enumerate(STEPS):
                row(f"{n:6,} × {step}", found, i)
            row(f"{n:6,} × all four", found, None)
        found = measure(sides, args.rounds, lambda s: [(s.empty_poll(),) for _ in range(5000)])
        row("looking for notifications", found, 0)
        del sides, side, found
    return 0


if __name__ == "__main__":
    sys.exit(main())
