"""The block pool in process: random operations against a plain model, then what the model leaves out.

The Rust tests compare every policy with the full model; here the question is whether Python passes
everything through unharmed. So the model follows the queue literally with ``lru``, and takes the
blocks that the pool chose with the default policy.
"""

from __future__ import annotations

import doctest
import random
import threading

import pytest

import kvferry.block_pool
from kvferry import errors
from kvferry.block_pool import BlockPool, Cleared, Key, Removed, Stored


class Model:
    """Lists that are searched from the front."""

    def __init__(self, blocks: int, policy: str):
        self.policy = policy
        self.refs = [1] + [0] * (blocks - 1)
        self.queue = list(range(1, blocks))
        self.keys: list[list[Key]] = [[] for _ in range(blocks)]
        self.tokens = [0] * blocks
        self.map: dict[Key, list[int]] = {}
        self.events: list[object] = []

    def drop(self, block):
        for key in self.keys[block]:
            self.map[key].remove(block)
            if not self.map[key]:
                del self.map[key]
            self.events.append(Removed(*key))
        self.keys[block] = []

    def add(self, block, key, tokens):
        if not self.keys[block]:
            self.tokens[block] = tokens
        self.keys[block].append(key)
        self.map.setdefault(key, []).append(block)

    def allocate(self, got):
        if self.policy == "lru":
            assert got == self.queue[: len(got)]
        else:
            assert got == sorted(got)
        for block in got:
            self.queue.remove(block)
            self.refs[block] = 1
            self.drop(block)

    def free(self, ids):
        front, back = [], []
        for block in ids:
            self.refs[block] -= 1
            if self.refs[block] == 0:
                (back if self.keys[block] else front).append(block)
        self.queue = front + self.queue + back

    def touch(self, ids):
        for block in ids:
            if self.refs[block] == 0:
                self.queue.remove(block)
            self.refs[block] += 1

    def chain(self, hashes, groups):
        found = [[] for _ in groups]
        for h in hashes:
            blocks = [self.map.get(Key(h, g)) for g in groups]
            if None in blocks:
                break
            for column, candidates in zip(found, blocks):
                column.append(candidates[0])
        return found


def a_hash(rng):
    return bytes([rng.randrange(6)]) * 16


def step(rng, pool, model):
    held = [b for b in range(1, len(model.refs)) for _ in range(model.refs[b])]
    op = rng.randrange(9)
    if op in (0, 1):
        n = rng.choice([0, 1, 2, 5, 40])
        after = rng.choice(held) if held and rng.random() < 0.5 else None
        if n > len(model.queue):
            with pytest.raises(errors.ResourceExhaustedError):
                pool.allocate(n, after)
        else:
            got = pool.allocate(n, after)
            if model.policy != "lru" and after is not None:
                # What follows `after` comes first; the rest is ascending.
                lead = next((i for i, b in enumerate(got) if b != after + 1 + i), len(got))
                assert got[lead:] == sorted(got[lead:])
                model.allocate(sorted(got))
                # The model dropped the keys in another order than the pool.
                model.events.sort(key=repr)
            else:
                model.allocate(got)
    elif op == 2:
        ids = rng.sample(held, min(len(held), rng.randrange(6)))
        pool.free(ids)
        model.free(ids)
    elif op == 3:
        ids = [rng.randrange(1, len(model.refs)) for _ in range(rng.randrange(4))]
        pool.touch(ids)
        model.touch(ids)
    elif op == 4 and held:
        blocks = [rng.choice([0, *held]) for _ in range(rng.randrange(1, 5))]
        hashes = [a_hash(rng) for _ in blocks]
        mask = rng.choice([None, [rng.random() < 0.7 for _ in blocks]])
        chosen = [i for i, b in enumerate(blocks) if b and (mask is None or mask[i])]
        first, group = rng.randrange(3), rng.randrange(2)
        tokens = [rng.randrange(2**32) for _ in range(4 * len(blocks))]
        parent = rng.choice([None, b"p" * 16])

        def call():
            pool.cache(
                blocks, hashes, block_size=4, group=group, first=first, mask=mask, parent=parent,
                tokens=tokens, tag=2**64 - 1,
            )

        if any(model.keys[blocks[i]] and model.tokens[blocks[i]] >= (first + i + 1) * 4 for i in chosen):
            with pytest.raises(errors.InvalidStateError, match="tokens already"):
                call()
        else:
            call()
            for i in chosen:
                model.drop(blocks[i])
                model.add(blocks[i], Key(hashes[i], group), (first + i + 1) * 4)
            stored = [hashes[i] for i in chosen]
            model.events.append(Stored(stored, parent, tokens, 4, group, 2**64 - 1))
    elif op == 5 and held:
        block, key, tokens = rng.choice(held), Key(a_hash(rng), rng.randrange(2)), rng.randrange(1, 20)
        replace = rng.random() < 0.3
        pool.cache_partial(block, key.hash, tokens, group=key.group, replace=replace)
        if key not in model.keys[block] or replace:
            if replace or (model.keys[block] and model.tokens[block] < tokens):
                model.drop(block)
            model.add(block, key, tokens)
            model.events.append(Stored([key.hash], None, [], 0, key.group, 0))
    elif op == 6:
        hashes = [a_hash(rng) for _ in range(rng.randrange(4))]
        groups = rng.choice([[0], [1], [0, 1], [1, 0]])
        touch = rng.random() < 0.5
        expected = model.chain(hashes, groups)
        assert pool.lookup_chain(hashes, groups, touch=touch) == expected
        if touch:
            model.touch([b for blocks in expected for b in blocks])
    elif op == 7:
        ids = [rng.randrange(len(model.refs)) for _ in range(rng.randrange(3))]
        pool.evict(ids)
        for block in ids:
            model.drop(block)
    elif op == 8 and held and rng.random() < 0.5:
        ids = [*held, held[0]]
        rng.shuffle(ids)
        with pytest.raises(errors.InvalidStateError, match="free already"):
            pool.free(ids)
        with pytest.raises(errors.InvalidArgumentError, match="no block"):
            pool.free([held[0], len(model.refs)])


def compare(rng, pool, model):
    """Everything that can be asked of the pool, with what the model has."""
    events = pool.take_events()
    if any(isinstance(e, Removed) for e in events) and model.policy != "lru":
        events.sort(key=repr)
        model.events.sort(key=repr)
    assert events == model.events
    model.events = []
    queue = pool.free_blocks()
    assert queue == model.queue
    ids = list(range(1, len(model.refs)))
    assert pool.ref_counts(ids) == model.refs[1:]
    for block in rng.sample(ids, min(8, len(ids))):
        keys = model.keys[block]
        assert pool.keys(block) == (keys, model.tokens[block] if keys else 0)
        assert pool.is_writable(block) == (model.refs[block] == 1 and not keys)
    assert pool.num_free == len(model.queue)
    assert pool.stats().cached_keys == len(model.map)


@pytest.mark.parametrize("policy", ["lru", "default"])
@pytest.mark.parametrize("seed", range(4))
def test_random_operations(policy, seed):
    rng = random.Random(seed)
    blocks = rng.choice([2, 12, 60, 120])
    model = Model(blocks, policy)
    with BlockPool(blocks, caching=True, policy=policy, events=True) as pool:
        for _ in range(600):
            step(rng, pool, model)
            compare(rng, pool, model)


def test_the_example():
    assert doctest.testmod(kvferry.block_pool) == (0, 6)


def test_a_prompt():
    pool = BlockPool(100, caching=True, events=True)
    blocks = pool.allocate(4)
    assert blocks == list(range(blocks[0], blocks[0] + 4))
    hashes = [bytes([i]) * 32 for i in range(4)]
    pool.cache(blocks, hashes, block_size=16)
    pool.free(blocks[::-1])
    assert pool.lookup(hashes[2]) == [blocks[2]]
    assert pool.lookup(b"?" * 32) is None
    assert pool.lookup_chain(hashes + [b"?" * 32], touch=True) == [blocks]
    assert pool.usage == pytest.approx(4 / 99)
    assert not pool.reset()
    pool.announce(hashes[:2], block_size=16, tokens=range(32), tag=5)
    pool.free(blocks)
    assert pool.reset()
    events = pool.take_events()
    assert events.lost == 0
    assert events[1:] == [Stored(hashes[:2], None, list(range(32)), 16, 0, 5), Cleared()]


def test_growing_requests_stay_in_one_piece():
    pool = BlockPool(1000)
    # Another one has the blocks from 100 on: what follows 50 is free.
    everything = pool.allocate(999)
    pool.free(range(51, 100))
    assert pool.allocate(3, after=50) == [51, 52, 53]
    assert pool.allocate(1, after=53) == [54]
    assert pool.allocate(1, after=99) == [99]
    assert everything[-1] == 999


def test_blocks_that_are_still_read():
    pool = BlockPool(8, policy="lru")
    ids = pool.allocate(3)
    pool.unpin(ids)
    assert pool.free_blocks() == [4, 5, 6, 7, 1, 2, 3]
    assert pool.take_reused() == []
    pool.allocate(6)
    assert pool.take_reused() == [1, 2]
    assert pool.take_reused() == []


def test_moved_keys():
    pool = BlockPool(8, caching=True)
    a, b = pool.allocate(2)
    pool.cache([a], [b"h"], block_size=4)
    pool.cache_partial(a, b"g", 2)
    pool.move_keys(a, b)
    assert pool.keys(a) == ([], 0)
    assert pool.keys(b) == ([Key(b"h", 0), Key(b"g", 0)], 4)
    with pytest.raises(errors.InvalidStateError):
        pool.move_keys(a, b)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda p: p.allocate(-1), "-1 blocks"),
        (lambda p: p.free([-1]), "32 bits"),
        (lambda p: p.free([2**32]), "32 bits"),
        (lambda p: p.free(["1"]), "32 bits"),
        (lambda p: p.touch([0]), "null block"),
        (lambda p: p.lookup_chain([b"a"], []), "no groups"),
        (lambda p: p.lookup_chain([b""], [0]), "hash of 0 bytes"),
        (lambda p: p.lookup_chain([b"a", b"bc"]), "one length"),
        # Of the right length together.
        (lambda p: p.lookup_chain([b"ab", b"c", b"def"]), "one length"),
        (lambda p: p.cache([1], [], block_size=4), "1 blocks but 0 hashes"),
        (lambda p: p.cache([1], [b"a"], block_size=4, mask=[]), "a mask of 0"),
        (lambda p: p.cache([1], [b"a"], block_size=4, tokens=[1]), "1 tokens"),
        (lambda p: BlockPool(0), "0 blocks"),
        (lambda p: BlockPool(-1), "num_blocks is -1"),
        (lambda p: BlockPool(2, policy="best"), "policy is 'best'"),
        (lambda p: BlockPool(2, policy="lru", fraction=2.0), None),
        (lambda p: BlockPool(2, policy="elastic", fraction=2.0), "window of 2"),
    ],
)
def test_bad_input(call, error):
    pool = BlockPool(8, caching=True)
    if error is None:
        call(pool)
        return
    with pytest.raises((errors.InvalidArgumentError, errors.MismatchError), match=error):
        call(pool)
    assert pool.num_free == 7


def test_closed():
    pool = BlockPool(8)
    pool.close()
    pool.close()
    with pytest.raises(errors.InvalidHandleError):
        pool.allocate(1)


def test_events_that_nobody_takes_are_bounded():
    pool = BlockPool(8, caching=True, events=True, event_bytes=2000)
    for i in range(200):
        ids = pool.allocate(1)
        pool.cache(ids, [i.to_bytes(4, "big")], block_size=4)
        pool.free(ids)
    events = pool.take_events()
    assert events.lost > 0
    assert events.lost + len(events) == 200 + pool.stats().removed_keys


def test_many_threads():
    pool = BlockPool(200, caching=True)
    owners: dict[int, int] = {}
    wrong = []

    def churn(me):
        rng = random.Random(me)
        for _ in range(400):
            try:
                ids = pool.allocate(rng.randrange(1, 50))
            except errors.ResourceExhaustedError:
                continue
            for b in ids:
                if owners.setdefault(b, me) != me:
                    wrong.append(b)
            for b in ids:
                del owners[b]
            pool.free(ids)

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert pool.num_free == 199


def test_calls_with_everything_made_beforehand_do_what_the_methods_do():
    names = [f"block {i}" for i in range(4000)]
    rng = random.Random(5)
    with BlockPool(4000, caching=True, policy="lru") as a, BlockPool(4000, caching=True, policy="lru") as b:
        calls = kvferry.block_pool.calls(a, names)
        for n in (0, 1, 2, 64, 65, 1024, 1025, 1, 64):
            ids = b.allocate(n)
            assert calls.allocate(n) == [names[i] for i in ids]
            hashes = [rng.randbytes(32) for _ in ids]
            calls.cache(ids, hashes, 16, 0, 3)
            b.cache(ids, hashes, block_size=16, first=3)
            for chain in (hashes, hashes[:1], hashes[: n // 2] + [bytes(32)] + hashes[n // 2 :]):
                found = b.lookup_chain(chain)[0]
                assert calls.lookup_chain(chain) == [names[i] for i in found]
            calls.touch(ids)
            b.touch(ids)
            for _ in range(2):
                assert a.ref_counts(ids) == b.ref_counts(ids)
                calls.free(ids)
                b.free(ids)
            for i in ids[:3]:
                assert a.keys(i) == b.keys(i)
            assert a.free_blocks() == b.free_blocks()
        for wrong, error in (
            (lambda: calls.allocate(-1), errors.InvalidArgumentError),
            (lambda: calls.allocate(4000), errors.ResourceExhaustedError),
            (lambda: calls.free([7]), errors.InvalidStateError),
            (lambda: calls.free([7, 8]), errors.InvalidStateError),
            (lambda: calls.touch([0]), errors.InvalidArgumentError),
            (lambda: calls.touch([1, 4000]), errors.InvalidArgumentError),
            (lambda: calls.lookup_chain([b"a", b"bc"]), errors.MismatchError),
            (lambda: calls.cache([1, 2], [b"a"], 16, 0, 0), errors.MismatchError),
        ):
            with pytest.raises(error):
                wrong()
        assert a.free_blocks() == b.free_blocks()
        assert a.stats() == b.stats()._replace(refused_allocations=1)
    with pytest.raises(errors.InvalidHandleError):
        calls.allocate(1)
