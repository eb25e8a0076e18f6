"""kvferry's block pool behind vLLM's interface against vLLM's own: the same random calls to both, and
after every call the same results, the same events and the same state, as far as vLLM can see it."""

from __future__ import annotations

import gc
import random
import weakref
from types import SimpleNamespace

import pytest

stock = pytest.importorskip("vllm.v1.core.block_pool")

from kvferry.block_pool import BlockPool as Rust
from kvferry.vllm import _backend, _longest_hit
from kvferry.vllm.block_pool import BlockPool, StockPool
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

SIZE = 4  # tokens of a hash, and of a block of group 0; blocks of group 1 have twice as many
SIZES = (SIZE, 2 * SIZE)
BLOCKS = 24


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    init_none_hash(sha256)
    monkeypatch.setenv("KVFERRY_BLOCK_POOL", "local")
    monkeypatch.setenv("KVFERRY_BLOCK_POOL_POLICY", "lru")
    monkeypatch.setenv("VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", "0")


def mirrored(num_blocks, caching, events):
    """What stands before a server, before a pool of this process instead."""
    options = dict(_backend.policy(), events=events, tolerate_null=True)
    return _backend.Mirrored(Rust(num_blocks, caching, **options))


def request(number: int, tokens: list[int]) -> Request:
    params = SamplingParams(max_tokens=1)
    params.update_from_generation_config({}, eos_token_id=1)
    return Request(
        request_id=str(number),
        prompt_token_ids=tokens,
        sampling_params=params,
        pooling_params=None,
        block_hasher=get_request_block_hasher(SIZE, sha256),
    )


class Pair:
    """Both pools, and what random callers hold of them, as ids."""

    def __init__(self, rng: random.Random, caching: bool):
        self.rng = rng
        self.pools = [make(BLOCKS, caching, SIZE, enable_kv_cache_events=True) for make in (StockPool, BlockPool)]
        self.held: list[int] = []  # a block once for each reference
        self.reused = ([], [])
        # Few different prompts, which share prefixes, so that content comes again.
        self.prompts = [
            request(i, [i % 3] * SIZE * 4 + [i % 2] * SIZE * 2 + [i] * SIZE * 4) for i in range(6)
        ]

    def both(self, call):
        """The results of one call, with ids for blocks; an exception is a result."""
        results = []
        for side, pool in enumerate(self.pools):
            try:
                results.append(plain(call(pool, side)))
            except (ValueError, AssertionError) as e:
                results.append(type(e))
        assert results[0] == results[1]
        return results[0]

    def blocks(self, pool, ids):
        return [pool.blocks[i] for i in ids]

    def some_held(self):
        """Distinct blocks that are held."""
        distinct = sorted(set(self.held))
        return self.rng.sample(distinct, self.rng.randint(0, min(4, len(distinct))))

    def compare(self):
        theirs, ours = (state(pool) for pool in self.pools)
        assert ours == theirs
        assert self.reused[0] == self.reused[1]
        assert self.pools[0].take_events() == self.pools[1].take_events()


def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.block_id if hasattr(value, "block_id") else value


def state(pool):
    queue = pool.free_block_queue
    order = plain(queue.get_all_free_blocks())
    forward, block = [], queue.fake_free_list_head.next_free_block
    while block is not queue.fake_free_list_tail:
        forward.append(block.block_id)
        block = block.next_free_block
    backward, block = [], queue.fake_free_list_tail.prev_free_block
    while block is not queue.fake_free_list_head:
        backward.append(block.block_id)
        block = block.prev_free_block
    assert order == forward == backward[::-1] == plain(list(queue.iter_blocks_after(None)))
    return (
        order,
        queue.num_free_blocks,
        pool.get_num_free_blocks(),
        pool.get_usage(),
        len(pool.cached_block_hash_to_block),
        {k: set(v) for k, v in pool.cached_block_hashes_by_block.items()},
        # Of the null block nobody keeps count.
        [
            (b.block_id, b.ref_cnt, b.block_hash, b.block_hash_num_tokens, pool.is_block_writable(b))
            for b in pool.blocks[1:]
        ],
    )


# --- The calls. Each says what it did to what is held.


def get(pair):
    n = pair.rng.choice((0, 1, 1, 2, 3, 5, 9))
    got = pair.both(lambda pool, _: pool.get_new_blocks(n))
    if got is not ValueError:
        pair.held += got


def free(pair):
    ids = pair.some_held()
    if pair.rng.random() < 0.3:
        ids.insert(0, 0)  # the null block, as in tables of sliding windows
    as_iterator = pair.rng.random() < 0.5
    give = reversed if as_iterator else list
    pair.both(lambda pool, _: pool.free_blocks(give(pair.blocks(pool, ids))))
    for i in filter(None, ids):
        pair.held.remove(i)


def touch(pair):
    ids = pair.rng.sample(range(BLOCKS), pair.rng.randint(0, 3))
    pair.both(lambda pool, _: pool.touch(pair.blocks(pool, ids)))
    pair.held += filter(None, ids)


def add_one(pair):
    if not pair.held:
        return
    i = pair.rng.choice(pair.held)

    def by_hand(pool, _):
        pool.blocks[i].ref_cnt += 1

    pair.both(by_hand)
    pair.held.append(i)


def unpin(pair):
    ids = pair.some_held()
    pair.both(
        lambda pool, side: pool.unpin_blocks(
            pair.blocks(pool, ids), lambda block: pair.reused[side].append(block.block_id)
        )
    )
    for i in ids:
        pair.held.remove(i)


def cache_full(pair):
    ids = pair.some_held()
    if not ids:
        return
    if pair.rng.random() < 0.3:
        ids[pair.rng.randrange(len(ids))] = 0
    prompt, group = pair.rng.choice(pair.prompts), pair.rng.randrange(2)
    first = pair.rng.randint(0, len(prompt.block_hashes) // (1 + group) - len(ids))
    table = [0] * first + ids
    mask = [pair.rng.random() < 0.7 for _ in ids] if pair.rng.random() < 0.3 else None
    # A block that is cached for as many tokens may not be again. vLLM finds out halfway: not tried.
    for i, block in enumerate(pair.blocks(pair.pools[0], ids)):
        tokens = (first + i + 1) * SIZES[group]
        if block.block_hash is not None and block.block_hash_num_tokens >= tokens:
            return
    pair.both(
        lambda pool, _: pool.cache_full_blocks(
            prompt, pair.blocks(pool, table), first, len(table), SIZES[group], group, mask
        )
    )


def cache_partial(pair):
    ids = pair.some_held()
    if not ids:
        return
    prompt = pair.rng.choice(pair.prompts)
    tokens = SIZE * pair.rng.randint(1, len(prompt.block_hashes))
    replace = pair.rng.random() < 0.2
    pair.both(
        lambda pool, _: pool.cache_partial_block(prompt, pool.blocks[ids[0]], tokens, 1, 2 * SIZE, replace)
    )


def look_up(pair):
    prompt = pair.rng.choice(pair.prompts)
    groups = pair.rng.choice(([0], [1], [0, 1]))
    for block_hash in prompt.block_hashes:
        pair.both(lambda pool, _: pool.get_cached_block(block_hash, groups))


def longest_hit(pair):
    """In one call what vLLM finds by asking for one hash after the other."""
    prompt = pair.rng.choice(pair.prompts)
    length = pair.rng.randint(0, len(prompt.block_hashes) * SIZE)
    eagle, units = pair.rng.random() < 0.3, pair.rng.randint(1, 3)
    found = []
    for pool, find in zip(pair.pools, (_longest_hit._ask, _longest_hit._find)):
        got = find(
            _longest_hit.managers.FullAttentionManager, prompt.block_hashes, length, [0], pool, SPEC,
            eagle, units * SIZE,
        )  # fmt: skip
        found.append(plain(got))
    assert found[0] == found[1]


def move(pair):
    ids = pair.some_held()
    if len(ids) < 2 or pair.pools[0].blocks[ids[1]].block_hash is not None:
        return
    # vLLM keeps further keys in a set, whose order is chance: with several it is not known which of
    # them becomes the primary one.
    if ids[0] in pair.pools[0].cached_block_hashes_by_block:
        return
    pair.both(lambda pool, _: pool.move_block_hashes(*pair.blocks(pool, ids[:2])))


def evict(pair):
    ids = set(pair.rng.sample(range(1, BLOCKS), 2))
    if any(i in pair.pools[0].cached_block_hashes_by_block for i in ids):
        return  # as above: the order of the events
    pair.both(lambda pool, _: pool.evict_blocks(ids))


def reset(pair):
    if pair.rng.random() < 0.3:
        if pair.rng.random() < 0.7:
            free_everything(pair)
        pair.both(lambda pool, _: pool.reset_prefix_cache())


def announce(pair):
    prompt = pair.rng.choice(pair.prompts)
    n = pair.rng.randint(0, len(prompt.block_hashes))
    pair.both(lambda pool, _: pool.emit_cached_block_events(prompt, n, SIZE, 0))


def free_everything(pair):
    ids = pair.held[:]
    pair.both(lambda pool, _: pool.free_blocks(pair.blocks(pool, ids)))
    pair.held.clear()


CALLS = (get, get, free, touch, add_one, unpin, cache_full, cache_full, cache_partial, look_up)
CALLS += (longest_hit, move, evict, reset, announce)


@pytest.fixture(scope="module", autouse=True)
def _spec():
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    global SPEC
    SPEC = FullAttentionSpec(block_size=SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)


@pytest.mark.parametrize("where", ["local", "mirrored"])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_the_same(seed, where, monkeypatch):
    if where == "mirrored":
        monkeypatch.setattr(_backend, "open_pool", mirrored)
    pair = Pair(random.Random(seed), caching=True)
    seen = set()
    for _ in range(1000):
        call = pair.rng.choice(CALLS)
        call(pair)
        pair.compare()
        seen.add(call)
    assert seen == set(CALLS)
    # It has to have come to the interesting things.
    stats = pair.pools[1]._pool.stats()
    assert min(stats.hits, stats.removed_keys, stats.revived_blocks, stats.resets) > 0
    assert pair.reused[0]


@pytest.mark.parametrize("where", ["local", "mirrored"])
def test_without_caching(where, monkeypatch):
    if where == "mirrored":
        monkeypatch.setattr(_backend, "open_pool", mirrored)
    pair = Pair(random.Random(5), caching=False)
    for _ in range(500):
        pair.rng.choice((get, free, touch, add_one, look_up, reset))(pair)
        pair.compare()


def test_double_free_is_passed_over():
    pool = BlockPool(10, True, SIZE)
    blocks = pool.get_new_blocks(3)
    pool.touch(blocks[:1])
    pool.free_blocks(blocks + blocks)
    assert [b.ref_cnt for b in blocks] == [0, 0, 0]
    assert pool.get_num_free_blocks() == 9
    assert len(set(plain(pool.free_block_queue.get_all_free_blocks()))) == 9


def test_blocks_of_another_pool_go_back_to_it():
    one, two, theirs = BlockPool(10, True, SIZE), BlockPool(10, True, SIZE), StockPool(10, True, SIZE)
    mixed = [b for pool in (one, two, theirs) for b in pool.get_new_blocks(2)]
    one.free_blocks(mixed)
    assert [pool.get_num_free_blocks() for pool in (one, two, theirs)] == [9, 9, 9]


def test_a_pool_ends():
    pool = weakref.ref(BlockPool(10, True, SIZE))
    gc.collect()  # its blocks know it
    assert pool() is None


def test_metrics_hear_of_blocks():
    heard = ([], [])
    names = ("on_block_allocated", "on_block_accessed", "on_block_evicted")

    def collector(log):
        return SimpleNamespace(
            reset=lambda: log.append("reset"),
            **{name: lambda block, name=name: log.append((name, block.block_id)) for name in names},
        )

    for log, make in zip(heard, (StockPool, BlockPool)):
        pool = make(6, True, SIZE, metrics_collector=collector(log))
        blocks = pool.get_new_blocks(3)
        pool.touch(blocks[:2])
        pool.evict_blocks({2})
        pool.free_blocks(blocks + blocks[:2])
        pool.reset_prefix_cache()
    assert heard[0] == heard[1] and len(heard[0]) == 10


def test_environment(monkeypatch):
    monkeypatch.setenv("KVFERRY_BLOCK_POOL_POLICY", "windowed:0.5")
    assert _backend.policy() == {"policy": "windowed", "fraction": 0.5}
    monkeypatch.setenv("KVFERRY_BLOCK_POOL_POLICY", "elastic")
    assert _backend.policy() == {"policy": "elastic", "fraction": 0.0}
    monkeypatch.delenv("KVFERRY_BLOCK_POOL_POLICY")
    assert _backend.policy() == {"policy": "default", "fraction": 0.0}
    for wrong in ("fifo", "elastic:much", "elastic:2"):
        monkeypatch.setenv("KVFERRY_BLOCK_POOL_POLICY", wrong)
        with pytest.raises(ValueError):
            BlockPool(10, True, SIZE)
    monkeypatch.setenv("KVFERRY_BLOCK_POOL", "remote")
    with pytest.raises(ValueError, match="remote"):
        _backend.wanted()


def test_adjacent_blocks_by_default(monkeypatch):
    monkeypatch.delenv("KVFERRY_BLOCK_POOL_POLICY")
    pool = BlockPool(100, False, SIZE)
    blocks = pool.get_new_blocks(99)
    pool.free_blocks(pool.blocks[i] for i in (40, 7, 9, 41, 8, 42, 90))
    assert plain(pool.get_new_blocks(3)) in ([7, 8, 9], [40, 41, 42])
    assert len(blocks) == 99
