#!/usr/bin/env python3
"""What the block pool costs from Python, next to vLLM's own: nanoseconds per block, in one run.

    python benches/pool.py

Needs vLLM 0.32 next to kvferry (KVF_LIBRARY, PYTHONPATH). Pools of 100,000 blocks of which half are
free, in a random order as after a while of work; thread CPU time, median over rounds. The stock pool
hands out block objects, ours block ids: what an engine that keeps ids has to do is timed.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from types import SimpleNamespace

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

from vllm.v1.core.block_pool import BlockPool as Stock

from kvferry.block_pool import BlockPool

BLOCKS, ROUNDS, SIZE = 100_000, 21, 16


def hashes(salt, n):
    rng = random.Random(salt)
    return [rng.randbytes(32) for _ in range(n)]


class StockPool:
    """vLLM's pool, with the calls that its managers make."""

    def __init__(self, caching):
        self.pool = Stock(BLOCKS, caching, SIZE)
        self.allocate, self.free, self.touch = self.pool.get_new_blocks, self.pool.free_blocks, self.pool.touch

    def prepare_cache(self, blocks, chain):
        return SimpleNamespace(block_hashes=chain, all_token_ids=()), blocks, len(blocks)

    def cache(self, prepared):
        request, blocks, n = prepared
        self.pool.cache_full_blocks(request, blocks, 0, n, SIZE, 0)

    def chain(self, wanted):
        found = []
        for h in wanted:
            blocks = self.pool.get_cached_block(h, [0])
            if blocks is None:
                break
            found += blocks
        return found


class OurPool:
    def __init__(self, caching, policy):
        self.pool = BlockPool(BLOCKS, caching, policy=policy)
        self.allocate, self.free, self.touch = self.pool.allocate, self.pool.free, self.pool.touch

    def prepare_cache(self, blocks, chain):
        return blocks, chain

    def cache(self, prepared):
        self.pool.cache(*prepared, block_size=SIZE)

    def chain(self, wanted):
        return self.pool.lookup_chain(wanted)[0]


def timed(call, batches):
    start = time.thread_time_ns()
    for batch in batches:
        call(batch)
    return time.thread_time_ns() - start


def split(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


def measure(pool, n):
    """ns per block: allocate, free, touch held, cache, chain of hits, a miss."""
    total = max(2048, 4 * n)
    everything = pool.allocate(BLOCKS - 1)
    random.Random(1).shuffle(everything)
    held = everything[:total]
    pool.free(everything[BLOCKS // 2 :])
    out = {name: [] for name in ("allocate", "free", "touch, held", "cache", "chain, hits", "a miss")}
    for round in range(ROUNDS):
        gc.collect()
        gc.disable()
        taken = []
        out["allocate"].append(timed(lambda k: taken.extend(pool.allocate(k)), [n] * (total // n)))
        known = hashes(round, total)
        prepared = [pool.prepare_cache(b, c) for b, c in zip(split(taken, n), split(known, n))]
        out["cache"].append(timed(pool.cache, prepared))
        out["chain, hits"].append(timed(pool.chain, split(known, n)))
        out["a miss"].append(timed(pool.chain, split(hashes(-1 - round, total), 1)))
        out["free"].append(timed(pool.free, split(taken, n)))
        out["touch, held"].append(timed(pool.touch, split(held, n)))
        pool.free(held)
        gc.enable()
    return {name: statistics.median(times) / total for name, times in out.items()}


def main():
    print(f"{'ns per block':<14} {'n':>4} {'vLLM':>8} {'lru':>8} {'default':>8} {'ratio':>7} {'ratio':>7}")
    for n in (1, 16, 512):
        stock = measure(StockPool(True), n)
        ours = [measure(OurPool(True, policy), n) for policy in ("lru", "default")]
        for name in stock:
            mine = [o[name] for o in ours]
            ratios = [stock[name] / m for m in mine]
            print(
                f"{name:<14} {n:>4} {stock[name]:>8.0f} {mine[0]:>8.0f} {mine[1]:>8.0f} "
                f"{ratios[0]:>6.1f}x {ratios[1]:>6.1f}x"
            )


if __name__ == "__main__":
    main()
