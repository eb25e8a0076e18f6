#!/usr/bin/env python3
"""What adjacent blocks are worth to a transfer: the same requests, with block lists from pools of either
policy under churn, through the queue.

    python benches/pool_transfer.py [local|nixl ...]

A prefill and a decode pool of 6,000 blocks with prefix caching work until their free queues are mixed:
requests of some 90 blocks (16 to 400) come and go in random order, most of what is freed stays cached,
and on the decode side requests grow by single blocks between each other. Then 40 further requests are
transferred: 32 layers, pages of 8 KiB, both agents in this process. The four combinations of policies
take turns request by request. KVF_TEST_NIXL names libnixl_capi.so.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time

import kvferry
from kvferry.block_pool import BlockPool

BLOCKS, LAYERS, PAGE = 6000, 32, 8192
WARM, MEASURED = 1500, 40


class Side:
    """A pool under churn, with the same requests whatever its policy."""

    def __init__(self, policy: str, grows: bool):
        self.pool = BlockPool(BLOCKS, True, policy=policy)
        self.rng = random.Random(3)
        self.grows = grows
        self.running: list[list[int]] = []

    def request(self) -> list[int]:
        """Blocks for one more request; older ones end to make room."""
        n = min(max(int(self.rng.lognormvariate(4.2, 0.7)), 16), 400)
        while self.pool.num_free < n + BLOCKS // 3:
            self._end(self.running.pop(self.rng.randrange(len(self.running))))
        blocks = self.pool.allocate(n)
        self.running.append(blocks)
        given = blocks[:]
        if self.grows:
            for one in self.rng.sample(self.running, min(6, len(self.running))):
                one += self.pool.allocate(1, after=one[-1])
        return given

    def _end(self, blocks: list[int]) -> None:
        cached = blocks[: len(blocks) * self.rng.randint(5, 10) // 10]
        hashes = [self.rng.randbytes(16) for _ in cached]
        self.pool.cache(cached, hashes, block_size=16)
        self.pool.free(blocks[::-1])


def layout(memory: bytearray) -> kvferry.Layout:
    base = kvferry.range_of(memory)[0]
    regions = [kvferry.Region(base + i * BLOCKS * PAGE, BLOCKS) for i in range(LAYERS)]
    layers = kvferry.DenseLayers(2, 64, 2, regions, order="hnd", kv="planes")
    return kvferry.Layout(kvferry.Parallel(0, 1), [kvferry.Group("full", 16)], dense=[layers])


def measure(transport: str, memories: list[bytearray]) -> None:
    options = {"nixl_library": os.environ["KVF_TEST_NIXL"]} if transport == "nixl" else {}
    with kvferry.Agent("prefill", transport, **options) as prefill, kvferry.Agent(
        "decode", transport, **options
    ) as decode:
        for agent, memory in zip((prefill, decode), memories):
            agent.register([kvferry.range_of(memory)])
        peer = decode.add_remote(prefill.metadata())
        plan = kvferry.Plan(layout(memories[1]), [layout(memories[0])])
        pairs = {
            (p, d): (Side(p, False), Side(d, True))
            for p in ("lru", "default")
            for d in ("lru", "default")
        }
        for sides in pairs.values():
            for side in sides:
                for _ in range(WARM):
                    side.request()
        results: dict[tuple[str, str], list[tuple[float, ...]]] = {pair: [] for pair in pairs}
        with kvferry.Queue(decode) as queue:
            for _ in range(MEASURED):
                for pair, (from_, to) in pairs.items():
                    remote, local = from_.request(), to.request()
                    n = min(len(remote), len(local))
                    results[pair].append(one(queue, plan, peer, local[:n], remote[:n]))
        report(transport, results)


def one(queue, plan, peer, local, remote) -> tuple[float, ...]:
    """Descriptors, descriptors before merging, ns from the plan to the first post, CPU ns of the queue's
    thread, seconds and bytes."""
    cpu = queue.stats().thread_cpu_ns
    begun = time.perf_counter()
    queue.submit(plan, [peer], [(local, remote)])
    assert queue.wait(120)
    (done,) = queue.poll()
    seconds = time.perf_counter() - begun
    assert done.ok, done.message
    cpu = queue.stats().thread_cpu_ns - cpu
    posting = done.posted_ns
    return done.descriptors, done.descriptors_before, posting, cpu, seconds, done.bytes


def report(transport: str, results) -> None:
    print(f"\n{transport}: mean of {MEASURED} requests; medians of the times; GB/s over all")
    print(
        f"{'prefill':>8} {'decode':>8} {'descriptors':>12} {'unmerged':>9} {'first post us':>14} "
        f"{'thread CPU ms':>14} {'ms':>7} {'GB/s':>6}"
    )
    for (p, d), rows in results.items():
        descriptors, before, posting, cpu, seconds, size = zip(*rows)
        print(
            f"{p:>8} {d:>8} {statistics.fmean(descriptors):>12.0f} {statistics.fmean(before):>9.0f} "
            f"{statistics.median(posting) / 1e3:>14.0f} {statistics.median(cpu) / 1e6:>14.2f} "
            f"{statistics.median(seconds) * 1e3:>7.1f} {sum(size) / sum(seconds) / 1e9:>6.2f}"
        )


def main() -> None:
    memories = [bytearray(os.urandom(1)) * (LAYERS * BLOCKS * PAGE) for _ in range(2)]
    for transport in sys.argv[1:] or ["local", "nixl"]:
        measure(transport, memories)


if __name__ == "__main__":
    main()
