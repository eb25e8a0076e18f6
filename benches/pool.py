#!/usr/bin/env python3
"""What the block pool costs from Python, next to vLLM's own: nanoseconds per block, in one process.

    python benches/pool.py

Needs vLLM 0.32 next to kvferry (KVF_LIBRARY, PYTHONPATH). Pools of 100,000 blocks of which half are
free, in a random order as after a while of work; thread CPU time, median over rounds. The pools take
turns, round by round, so that a busy machine is equally busy for all of them.

Three ways to have a pool are timed: vLLM's own; ours behind vLLM's interface, with its block objects
(kvferry.vllm); and ours as it is, for an engine that keeps block ids. Chains are looked up by vLLM's
manager of full attention in the first two.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import statistics
import time
from types import SimpleNamespace

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

os.environ.setdefault("KVFERRY_BLOCK_POOL", "local")

if importlib.util.find_spec("vllm") is None:
    print("no vLLM here: nothing to compare with")
    raise SystemExit(0)

from vllm.v1.core.block_pool import BlockPool as Stock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec

import torch
from kvferry.block_pool import BlockPool
from kvferry.vllm import _longest_hit
from kvferry.vllm.block_pool import BlockPool as Behind

BLOCKS, ROUNDS, SIZE = 100_000, 15, 16


def hashes(salt, n):
    rng = random.Random(salt)
    return [rng.randbytes(32) for _ in range(n)]


SPEC = FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)


class StockPool:
    """vLLM's pool, with the calls that its managers make."""

    find = FullAttentionManager.find_longest_cache_hit

    def __init__(self, make=Stock):
        self.pool = make(BLOCKS, True, SIZE)
        self.allocate, self.free, self.touch = self.pool.get_new_blocks, self.pool.free_blocks, self.pool.touch

    def prepare_cache(self, blocks, chain):
        return SimpleNamespace(block_hashes=chain, all_token_ids=()), blocks, len(blocks)

    def cache(self, prepared):
        request, blocks, n = prepared
        self.pool.cache_full_blocks(request, blocks, 0, n, SIZE, 0)

    def chain(self, wanted):
        return type(self).find(wanted, len(wanted) * SIZE, [0], self.pool, SPEC, False, SIZE)


class BehindPool(StockPool):
    """Ours, called in the same way."""

    find = classmethod(_longest_hit._find).__get__(None, FullAttentionManager)

    def __init__(self, policy):
        os.environ["KVFERRY_BLOCK_POOL_POLICY"] = policy
        super().__init__(Behind)


class OurPool:
    """Ours, with ids."""

    def __init__(self, policy):
        self.pool = BlockPool(BLOCKS, True, policy=policy)
        self.allocate, self.free, self.touch = self.pool.allocate, self.pool.free, self.pool.touch

    def prepare_cache(self, blocks, chain):
        return blocks, chain

    def cache(self, prepared):
        self.pool.cache(*prepared, block_size=SIZE)

    def chain(self, wanted):
        return self.pool.lookup_chain(wanted)[0]


def split(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


class Measured:
    """Times of one pool; ns per block of allocate, free, touch held, cache, chain of hits, a miss."""

    def __init__(self, pool, n):
        self.pool, self.n, self.total = pool, n, max(2048, 4 * n)
        everything = pool.allocate(BLOCKS - 1)
        random.Random(1).shuffle(everything)
        self.held = everything[: self.total]
        pool.free(everything[BLOCKS // 2 :])
        self.times = {}

    def time(self, name, call, batches):
        start = time.thread_time_ns()
        for batch in batches:
            call(batch)
        self.times.setdefault(name, []).append((time.thread_time_ns() - start) / self.total)

    def round(self, number):
        pool, n, total = self.pool, self.n, self.total
        gc.collect()
        gc.disable()
        taken = []
        self.time("allocate", lambda k: taken.extend(pool.allocate(k)), [n] * (total // n))
        known = hashes(number, total)
        prepared = [pool.prepare_cache(b, c) for b, c in zip(split(taken, n), split(known, n))]
        self.time("cache", pool.cache, prepared)
        self.time("chain, hits", pool.chain, split(known, n))
        self.time("a miss", pool.chain, split(hashes(-1 - number, total), 1))
        self.time("free", pool.free, split(taken, n))
        self.time("touch, held", pool.touch, split(self.held, n))
        pool.free(self.held)
        gc.enable()


def main():
    print(f"{'ns per block (times faster than vLLM)':<38}{'behind vLLM':>31}{'ids':>31}")
    print(f"{'':<14}{'n':>4}{'vLLM':>8}{'':>12}{'lru':>16}{'default':>15}{'lru':>16}{'default':>15}")
    for n in (1, 16, 512):
        pools = [StockPool(), BehindPool("lru"), BehindPool("default"), OurPool("lru"), OurPool("default")]
        pools = [Measured(pool, n) for pool in pools]
        gc.freeze()  # a million block objects need not be looked at in every round
        for number in range(ROUNDS):
            for pool in pools:
                pool.round(number)
        for name in pools[0].times:
            ns = [statistics.median(pool.times[name]) for pool in pools]
            ratios = [statistics.median(a / b for a, b in zip(pools[0].times[name], p.times[name])) for p in pools]
            cells = (f"{t:>8.0f} ({r:>4.1f})" for t, r in zip(ns[1:], ratios[1:]))
            print(f"{name:<14}{n:>4}{ns[0]:>8.0f}{'':>12}" + "".join(f"{c:>16}" for c in cells))


if __name__ == "__main__":
    main()
