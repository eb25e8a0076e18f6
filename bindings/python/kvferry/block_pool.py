"""The block pool in this process: blocks of a KV cache, who holds them, and where known prefixes are.

    >>> from kvferry.block_pool import BlockPool
    >>> pool = BlockPool(1000, caching=True)
    >>> blocks = pool.allocate(2)
    >>> pool.cache(blocks, [b"hash of block 1", b"hash of block 2"], block_size=16)
    >>> pool.free(blocks[::-1])
    >>> pool.lookup_chain([b"hash of block 1", b"something else!"]) == [blocks[:1]]
    True

Its semantics are those of vLLM's pool; what is different is that misuse (a double free, an unknown
block) is an exception and changes nothing, and that by default an allocation gets adjacent blocks
where it can, which is what makes the transfer of a KV cache cheap. docs/block-pool.md has both.

Every method takes or gives lists of block ids, and one call is one call of the library: pass what
there is in one go. All methods may be called from any thread.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
    sizeof,
)
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from . import _lifetime, errors
from ._ffi import (
    CONSTANTS,
    kvf_block_event_list,
    kvf_block_key,
    kvf_block_node,
    kvf_block_pool_options,
    kvf_block_pool_stats,
    kvf_cached_blocks,
    kvf_cached_part,
    lib,
)

__all__ = ["BlockPool", "Cleared", "Events", "Key", "Removed", "Stats", "Stored"]

_POLICIES = {
    "default": CONSTANTS["KVF_POLICY_DEFAULT"],
    "lru": CONSTANTS["KVF_POLICY_LRU"],
    "windowed": CONSTANTS["KVF_POLICY_WINDOWED"],
    "elastic": CONSTANTS["KVF_POLICY_ELASTIC"],
}

Stats = NamedTuple("Stats", [(name, int) for name, _ in kvf_block_pool_stats._fields_])
Stats.__doc__ = "What a pool has done and holds; kvferry.h describes each number."


class Key(NamedTuple):
    """One key of a block."""

    hash: bytes
    group: int


class Stored(NamedTuple):
    """Content was cached, or announced again."""

    hashes: list[bytes]
    parent: bytes | None
    tokens: list[int]
    block_size: int
    group: int
    tag: int


class Removed(NamedTuple):
    """A block lost a key."""

    hash: bytes
    group: int


class Cleared(NamedTuple):
    """Every block lost its keys."""


class Events(list):
    """Events in the order in which they happened."""

    #: How many before these were thrown away because nobody took them in time. Not zero means that a
    #: listener has to forget what it knew.
    lost: int = 0


# The calls that engines make for every token, in a form of their own: ctypes objects go in as they
# are (converting arguments takes several times as long), and the GIL is kept, because giving it up
# and getting it back takes longer than the call. A call waits for nothing but another one of the same
# kind, which needs no GIL to end.
_hot = ctypes.PyDLL(lib._name, handle=lib._handle)


def _undeclared(name: str) -> Any:
    function = _hot[name]
    function.restype = ctypes.c_int32
    return function


_allocate = _undeclared("kvf_block_pool_allocate")
_allocate_after = _undeclared("kvf_block_pool_allocate_after")
_free = _undeclared("kvf_block_pool_free")
_unpin = _undeclared("kvf_block_pool_unpin")
_touch = _undeclared("kvf_block_pool_touch")
_lookup = _undeclared("kvf_block_pool_lookup")
_cache = _undeclared("kvf_block_pool_cache")

# Types and sizes of short arrays, made once, and what reads them: struct takes a fifth of the time of
# a slice.
_SHORT = 65
_ARRAYS = [c_uint32 * n for n in range(_SHORT)]
# As arguments: what is converted already is passed on fastest.
_SIZES = [c_size_t.from_param(n) for n in range(_SHORT)]
_READ = [struct.Struct(f"{n}I").unpack for n in range(_SHORT)]
_READ_FIRST = [struct.Struct(f"{n}I").unpack_from for n in range(_SHORT)]
_FOUND = c_size_t * 1
_FLAGS = (c_uint8.from_param(0), c_uint8.from_param(1))


class _CachedBlocks(Structure):
    """kvf_cached_blocks with bytes where C has pointers: they go in without a conversion."""

    _fields_ = [
        (name, c_char_p if kind is c_void_p else kind) for name, kind in kvf_cached_blocks._fields_
    ]


_CACHED_SIZE = sizeof(_CachedBlocks)
# The same struct, written in one go.
_CODES = {c_uint32: "I", c_uint64: "Q", c_size_t: "N", c_void_p: "P"}
_PACK_CACHED = struct.Struct("".join(_CODES[kind] for _, kind in kvf_cached_blocks._fields_)).pack_into


def _ids(values: Iterable[int]) -> bytes:
    """Ids as C takes them. Of all objects, bytes is what ctypes passes on fastest."""
    try:
        return array("I", values).tobytes()
    except (TypeError, OverflowError) as e:
        raise errors.InvalidArgumentError(f"block ids are integers of 32 bits: {e}") from None


def _size(n: int) -> Any:
    return _SIZES[n] if n < _SHORT else c_size_t(n)


def _len(ids: bytes) -> Any:
    return _size(len(ids) >> 2)


def _pointer(value: bytes | None) -> int | None:
    """Where bytes are; the caller keeps them alive. NULL for none."""
    return ctypes.cast(value, c_void_p).value if value else None


def _room(n: int) -> Any:
    return _ARRAYS[n]() if n < _SHORT else (c_uint32 * n)()


def _read(ids: Any, n: int) -> tuple[int, ...]:
    """The first `n` ids of an array."""
    read = _READ_FIRST[n] if n < _SHORT else struct.Struct(f"{n}I").unpack_from
    return read(ids)


def _count(n: int) -> int:
    if n < 0:
        raise errors.InvalidArgumentError(f"{n} blocks")
    return n


def _hashes(hashes: Sequence[bytes]) -> tuple[bytes, int]:
    """Hashes end to end, and the length of one."""
    if not hashes:
        return b"", 0
    if len(hashes) == 1:
        return hashes[0], len(hashes[0])
    lengths = set(map(len, hashes))
    if len(lengths) > 1:
        raise errors.MismatchError(f"the hashes of one call have one length, not {sorted(lengths)}")
    return b"".join(hashes), lengths.pop()


class BlockPool:
    """A fixed number of blocks, the null block 0 among them.

    Args:
        num_blocks: Blocks, the null block included. Their ids are 0 to ``num_blocks - 1``.
        caching: Whether there is an index of cached prefixes.
        policy: Which free blocks an allocation gets: ``"lru"`` (as vLLM), ``"windowed"``,
            ``"elastic"``, or the best that is known.
        fraction: The part of the free queue that the policy chooses from; 0 is its default.
        events: Whether events are recorded.
        event_bytes: Bytes of events that are kept until they are taken; 0 is 64 MiB.
        tolerate_null: Frees and touches pass over the null block instead of refusing it.

    A context manager; closed at the latest when collected.
    """

    def __init__(
        self,
        num_blocks: int,
        caching: bool = False,
        *,
        policy: str = "default",
        fraction: float = 0.0,
        events: bool = False,
        event_bytes: int = 0,
        tolerate_null: bool = False,
    ):
        options = _options(
            num_blocks, caching, policy, fraction, events, event_bytes, tolerate_null
        )
        handle = c_uint64()
        errors.check(lib.kvf_block_pool_create(options, handle))
        #: Number of blocks, the null block included.
        self.num_blocks = num_blocks
        self._handle = handle
        self._argument = c_uint64.from_param(handle.value)
        self._finalizer = _lifetime.ends_with(self, lib.kvf_block_pool_destroy, handle.value)
        #: The last array that :meth:`_nodes` gave out.
        self._view: weakref.ref[Any] | None = None

    def __enter__(self) -> BlockPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the pool. Using it afterwards is an :class:`errors.InvalidHandleError`.

        Raises:
            BusyError: Somebody still looks into its memory; it is not closed.
        """
        if self._view is not None and self._view() is not None:
            raise errors.BusyError("the pool's memory is still looked into")
        self._finalizer()

    # ------------------------------------------------------------------------ blocks

    def allocate(self, n: int, after: int | None = None) -> list[int]:
        """Takes ``n`` free blocks and forgets what they had cached.

        Args:
            after: The last block of a request that grows: what follows it without a gap comes first.

        Raises:
            ResourceExhaustedError: Fewer are free; nothing is changed.
        """
        if not 0 <= n < _SHORT:
            return self._allocate_many(_count(n), after)
        ids = _ARRAYS[n]()
        if after is None:
            status = _allocate(self._argument, ids, _SIZES[n])
        else:
            status = _allocate_after(self._argument, c_uint32(after), ids, _SIZES[n])
        if status:
            errors.check(status)
        return list(_READ[n](ids))

    def _allocate_many(self, n: int, after: int | None) -> list[int]:
        ids = array("I", [0]) * n
        address, _ = ids.buffer_info()
        if after is None:
            status = _allocate(self._argument, c_void_p(address), c_size_t(n))
        else:
            status = _allocate_after(self._argument, c_uint32(after), c_void_p(address), c_size_t(n))
        if status:
            errors.check(status)
        return ids.tolist()

    def free(self, ids: Iterable[int]) -> None:
        """Gives back one reference of each block; one may appear several times.

        Those that nobody holds any more become free, in this order: in front of the queue without
        cached content, at its end with it. Give the last block of a prompt first.

        Raises:
            InvalidStateError: A block is free already; nothing is changed.
            InvalidArgumentError: A block is unknown or the null block; nothing is changed.
        """
        packed = _ids(ids)
        status = _free(self._argument, packed, _len(packed))
        if status:
            errors.check(status)

    def unpin(self, ids: Iterable[int]) -> None:
        """Like :meth:`free`, for blocks that somebody still reads until they are handed out again:
        all go to the end of the queue, and :meth:`take_reused` tells when they were."""
        packed = _ids(ids)
        errors.check(_unpin(self._argument, packed, _len(packed)))

    def touch(self, ids: Iterable[int]) -> None:
        """Holds each block once more; free ones leave the queue.

        Raises:
            InvalidArgumentError: A block is unknown or the null block; nothing is changed.
        """
        packed = _ids(ids)
        status = _touch(self._argument, packed, _len(packed))
        if status:
            errors.check(status)

    def ref_counts(self, ids: Iterable[int]) -> list[int]:
        """How many times each block is held."""
        packed = _ids(ids)
        counts = _room(len(packed) // 4)
        errors.check(lib.kvf_block_pool_ref_counts(self._handle, packed, len(counts), counts))
        return counts[:]

    def is_writable(self, block: int) -> bool:
        """Whether a holder may write to it: held once, and nothing of it is cached."""
        writable = c_uint8()
        errors.check(lib.kvf_block_pool_is_writable(self._handle, block, writable))
        return bool(writable.value)

    def _nodes(self) -> Any:
        """The pool's memory as an array of kvf_block_node, and one more behind it. Read only; the pool
        stays as long as the array does. kvf_block_pool_nodes() says what is in it."""
        if self._view is not None and (given := self._view()) is not None:
            return given
        first = POINTER(kvf_block_node)()
        errors.check(lib.kvf_block_pool_nodes(self._handle, first))
        array_type = kvf_block_node * (self.num_blocks + 1)
        nodes = array_type.from_address(ctypes.addressof(first.contents))
        nodes.pool = self  # alive as long as its memory can be looked into
        # Which may be longer than the interpreter runs its exit handlers.
        self._finalizer.atexit = False
        self._view = weakref.ref(nodes)
        return nodes

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        free = c_uint32()
        errors.check(lib.kvf_block_pool_num_free(self._handle, free))
        return free.value

    @property
    def usage(self) -> float:
        """The part of the blocks that is held, 0 to 1; the null block does not count."""
        return _usage(self.num_blocks, self.num_free)

    def free_blocks(self) -> list[int]:
        """The free blocks in eviction order."""
        ids, n = _room(self.num_blocks), c_size_t()
        errors.check(lib.kvf_block_pool_free_blocks(self._handle, ids, self.num_blocks, n))
        return ids[: n.value]

    def take_reused(self) -> list[int]:
        """Blocks given to :meth:`unpin` that were handed out since, or lost their content to a
        reset."""
        ids, n, all_ids = _room(64), c_size_t(64), []
        while n.value == 64:
            errors.check(lib.kvf_block_pool_take_reused(self._handle, ids, 64, n))
            all_ids += ids[: n.value]
        return all_ids

    # ------------------------------------------------------------------------ cached prefixes

    def lookup(self, hash: bytes, groups: Sequence[int] = (0,)) -> list[int] | None:
        """The block with this content in each group, or None if one is missing. Not touched."""
        found = self.lookup_chain([hash], groups)
        return [blocks[0] for blocks in found] if found[0] else None

    def lookup_chain(
        self, hashes: Sequence[bytes], groups: Sequence[int] = (0,), *, touch: bool = False
    ) -> list[list[int]]:
        """The longest known prefix: for each group the blocks of the hashes, from the first to the
        last that is known in all groups.

        Args:
            touch: What is found is also touched, in the same step.
        """
        joined, length = _hashes(hashes)
        wanted, width, n = _ids(groups), len(groups), len(hashes)
        ids, found = _room(n * width), _FOUND()
        status = _lookup(
            self._argument, joined, _size(length), _size(n), wanted, _size(width), _FLAGS[touch], ids, found
        )
        if status:
            errors.check(status)
        flat = list(_read(ids, found[0] * width))
        return [flat] if width == 1 else [flat[i::width] for i in range(width)]

    def cache(
        self,
        blocks: Sequence[int],
        hashes: Sequence[bytes],
        *,
        block_size: int,
        group: int = 0,
        first: int = 0,
        mask: Sequence[bool] | None = None,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> None:
        """Enters full blocks into the prefix index, and records one event.

        Args:
            blocks: Adjacent blocks of a block table; null blocks are passed over.
            hashes: One for each.
            first: Position of the first of them in the block table.
            mask: One for each: blocks with False are passed over.
            parent: For the event: the hash of the block before the first.
            tokens: For the event: the tokens of all the blocks, or nothing.
            tag: For the event: any 64 bits.

        Raises:
            InvalidStateError: The pool does not cache, or a block has a key for as many tokens or more.
        """
        if len(blocks) != len(hashes):
            raise errors.MismatchError(f"{len(blocks)} blocks but {len(hashes)} hashes")
        if mask is not None and len(mask) != len(blocks):
            raise errors.MismatchError(f"{len(blocks)} blocks but a mask of {len(mask)}")
        joined, length = _hashes(hashes)
        what = _CachedBlocks(
            _CACHED_SIZE,
            group,
            first,
            block_size,
            _ids(blocks) or None,
            len(hashes),
            joined or None,
            length,
            None if mask is None else bytes(map(bool, mask)) or None,
            parent or None,
            len(parent or b""),
            _ids(tokens) if tokens else None,
            len(tokens),
            tag,
        )
        status = _cache(self._argument, byref(what))
        if status:
            errors.check(status)

    def announce(
        self,
        hashes: Sequence[bytes],
        *,
        block_size: int,
        group: int = 0,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> None:
        """Records an event for blocks that are cached already and were used again."""
        what, _keep = _described(hashes, block_size, group, parent, tokens, tag)
        errors.check(lib.kvf_block_pool_announce(self._handle, byref(what)))

    def cache_partial(
        self,
        block: int,
        hash: bytes,
        num_tokens: int,
        *,
        group: int = 0,
        replace: bool = False,
        block_size: int = 0,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        tag: int = 0,
    ) -> None:
        """Enters a key for the first part of a block, next to those it has.

        Args:
            num_tokens: Tokens of the prefix, from the start of the request.
            replace: The content was replaced: the keys that the block has are removed first.
            block_size: For the event: tokens that this hash adds to its parent's.
        """
        what, _keep = _part(block, hash, num_tokens, group, replace, block_size, parent, tokens, tag)
        errors.check(lib.kvf_block_pool_cache_partial(self._handle, byref(what)))

    def move_keys(self, src: int, dst: int) -> None:
        """Gives all keys of a block to another, which has none. No events."""
        errors.check(lib.kvf_block_pool_move_keys(self._handle, src, dst))

    def evict(self, ids: Iterable[int]) -> None:
        """Takes all keys from these blocks, held or not. The free queue stays as it is."""
        packed = _ids(ids)
        errors.check(lib.kvf_block_pool_evict(self._handle, packed, len(packed) // 4))

    def reset(self) -> bool:
        """Empties the prefix index, if no block is held. Returns whether it was done."""
        done = c_uint8()
        errors.check(lib.kvf_block_pool_reset(self._handle, done))
        return bool(done.value)

    def keys(self, block: int) -> tuple[list[Key], int]:
        """The keys of a block, the primary one first, and the tokens of the prefix of that."""
        capacity, n, tokens = 4, c_size_t(4), c_uint32()
        while True:
            keys = (kvf_block_key * capacity)()
            errors.check(lib.kvf_block_pool_keys(self._handle, block, keys, capacity, n, tokens))
            if n.value <= capacity:
                found = [Key(bytes(k.hash[: k.hash_len]), k.group) for k in keys[: n.value]]
                return found, tokens.value
            capacity = n.value

    # ------------------------------------------------------------------------ events, numbers

    def take_events(self) -> Events:
        """The events since the last call; none if the pool does not record them."""
        given = kvf_block_event_list()
        errors.check(lib.kvf_block_pool_take_events(self._handle, given))
        return _take_events(given)

    def stats(self) -> Stats:
        """Counters and current numbers."""
        stats = kvf_block_pool_stats()
        errors.check(lib.kvf_block_pool_stats_get(self._handle, stats))
        return Stats(*(getattr(stats, name) for name in Stats._fields))


class Calls(NamedTuple):
    """The hot calls of a pool as :func:`calls` makes them."""

    allocate: Callable[[int], list[Any]]
    free: Callable[[Sequence[int]], None]
    touch: Callable[[Sequence[int]], None]
    lookup_chain: Callable[[Sequence[bytes]], list[Any]]
    cache: Callable[[Sequence[int], Sequence[bytes], int, int, int], None]


#: Blocks of one call that :func:`calls` has room for.
_ROOM = 1024
#: Bytes of hashes, likewise.
_HASH_ROOM = 64 * _ROOM


def calls(pool: BlockPool, objects: Sequence[Any]) -> Calls:
    """The calls that an engine makes all the time, with everything made beforehand that can be.

    For one thread at a time: what goes in and comes out passes through the same memory every time.
    What comes out is not ids but what `objects` has for them; what goes in may be these objects, if
    they are integers.

    A call of a single block is mostly the way there: here it goes through no array that has to be made
    and no argument that has to be converted. In longer ones there is as little as possible between two
    blocks (an itemgetter, of all things), so that the processor waits for several objects at once.
    """
    handle, at = pool._argument, objects.__getitem__
    ids = (c_uint32 * _ROOM)()
    words = memoryview(ids).cast("B").cast("I")
    there, found = byref(ids), _FOUND()
    what, hash_room = ctypes.create_string_buffer(_CACHED_SIZE), (c_uint8 * _HASH_ROOM)()
    hash_bytes = memoryview(hash_room).cast("B")
    ids_at, hashes_at = ctypes.addressof(ids), ctypes.addressof(hash_room)
    allocate_one = partial(_allocate, handle, there, _SIZES[1])
    free_one = partial(_free, handle, there, _SIZES[1])
    touch_one = partial(_touch, handle, there, _SIZES[1])
    cache_it = partial(_cache, handle, byref(what))
    group_0, one_group, untouched, count = _ids([0]), _SIZES[1], _FLAGS[0], byref(found)

    def named(some: Sequence[int]) -> list[Any]:
        return [*itemgetter(*some)(objects)] if len(some) > 1 else [*map(at, some)]

    def allocate(n: int) -> list[Any]:
        if n == 1:
            if status := allocate_one():
                errors.check(status)
            return [at(words[0])]
        if not 0 <= n < _SHORT:
            return named(pool._allocate_many(_count(n), None))
        if status := _allocate(handle, there, _SIZES[n]):
            errors.check(status)
        return named(_READ_FIRST[n](ids))

    def free(blocks: Sequence[int]) -> None:
        if len(blocks) == 1:
            words[0] = blocks[0]
            status = free_one()
        else:
            packed = _ids(blocks)
            status = _free(handle, packed, _len(packed))
        if status:
            errors.check(status)

    def touch(blocks: Sequence[int]) -> None:
        if len(blocks) == 1:
            words[0] = blocks[0]
            status = touch_one()
        else:
            packed = _ids(blocks)
            status = _touch(handle, packed, _len(packed))
        if status:
            errors.check(status)

    def lookup_chain(hashes: Sequence[bytes]) -> list[Any]:
        n = len(hashes)
        if not 0 < n <= _ROOM:
            return named(pool.lookup_chain(hashes)[0])
        joined, length = b"".join(hashes), len(hashes[0])
        if len(joined) != n * length:
            _hashes(hashes)  # says what is wrong
        if status := _lookup(
            handle, joined, _size(length), _size(n), group_0, one_group, untouched, there, count
        ):
            errors.check(status)
        n = found[0]
        return named(_read(ids, n)) if n else []

    def cache(
        blocks: Sequence[int], hashes: Sequence[bytes], block_size: int, group: int, first: int
    ) -> None:
        joined, length = _hashes(hashes)
        n = len(hashes)
        if not len(blocks) == n <= _ROOM or len(joined) > _HASH_ROOM:
            return pool.cache(blocks, hashes, block_size=block_size, group=group, first=first)
        if n == 1:
            words[0] = blocks[0]
        else:
            words[:n] = array("I", blocks)
        hash_bytes[: len(joined)] = joined
        _PACK_CACHED(
            what, 0, _CACHED_SIZE, group, first, block_size, ids_at, n, hashes_at, length,
            0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        if status := cache_it():
            errors.check(status)

    return Calls(allocate, free, touch, lookup_chain, cache)


# What PoolClient needs as well.


def _options(
    num_blocks: int,
    caching: bool,
    policy: str,
    fraction: float,
    events: bool,
    event_bytes: int,
    tolerate_null: bool,
) -> kvf_block_pool_options:
    """How to make a pool."""
    if policy not in _POLICIES:
        raise errors.InvalidArgumentError(f"policy is {policy!r}; it is one of {list(_POLICIES)}")
    if not 0 <= num_blocks < 2**32:
        raise errors.InvalidArgumentError(f"num_blocks is {num_blocks}")
    return kvf_block_pool_options(
        sizeof(kvf_block_pool_options),
        blocks=num_blocks,
        policy=_POLICIES[policy],
        caching=bool(caching),
        events=bool(events),
        tolerate_null=bool(tolerate_null),
        fraction=fraction,
        event_bytes=event_bytes,
    )


def _usage(num_blocks: int, num_free: int) -> float:
    """The part that is held; the null block does not count."""
    usable = num_blocks - 1
    return 1.0 - num_free / usable if usable else 0.0


def _described(
    hashes: Sequence[bytes],
    block_size: int,
    group: int,
    parent: bytes | None,
    tokens: Sequence[int],
    tag: int,
    *,
    blocks: Sequence[int] | None = None,
    first: int = 0,
    mask: Sequence[bool] | None = None,
) -> tuple[kvf_cached_blocks, object]:
    """What is cached, or (without blocks) announced, and what keeps it alive."""
    if blocks is not None and len(blocks) != len(hashes):
        raise errors.MismatchError(f"{len(blocks)} blocks but {len(hashes)} hashes")
    if blocks is not None and mask is not None and len(mask) != len(blocks):
        raise errors.MismatchError(f"{len(blocks)} blocks but a mask of {len(mask)}")
    joined, length = _hashes(hashes)
    covered, packed = _ids(tokens), _ids(blocks or ())
    bits = None if mask is None else bytes(map(bool, mask))
    what = kvf_cached_blocks(
        sizeof(kvf_cached_blocks),
        group=group,
        first=first,
        block_size=block_size,
        blocks=_pointer(packed),
        len=len(hashes),
        hashes=_pointer(joined),
        hash_len=length,
        mask=_pointer(bits),
        parent=_pointer(parent),
        parent_len=len(parent or b""),
        tokens=_pointer(covered),
        tokens_len=len(covered) // 4,
        tag=tag,
    )
    return what, (joined, covered, packed, bits, parent)


def _part(
    block: int,
    hash: bytes,
    num_tokens: int,
    group: int,
    replace: bool,
    block_size: int,
    parent: bytes | None,
    tokens: Sequence[int],
    tag: int,
) -> tuple[kvf_cached_part, object]:
    """A key of a part, and what keeps it alive."""
    covered = _ids(tokens)
    what = kvf_cached_part(
        sizeof(kvf_cached_part),
        block=block,
        group=group,
        num_tokens=num_tokens,
        block_size=block_size,
        replace=bool(replace),
        hash=_pointer(hash),
        hash_len=len(hash),
        parent=_pointer(parent),
        parent_len=len(parent or b""),
        tokens=_pointer(covered),
        tokens_len=len(covered) // 4,
        tag=tag,
    )
    return what, (covered, hash, parent)


def _take_events(given: kvf_block_event_list) -> Events:
    """The events of a list, which is freed."""
    try:
        made = Events(_event(given.items[i]) for i in range(given.len))
        made.lost = given.lost
        return made
    finally:
        lib.kvf_block_event_list_free(given)


def _event(e: Any) -> Stored | Removed | Cleared:
    if e.kind == CONSTANTS["KVF_BLOCKS_CLEARED"]:
        return Cleared()
    flat = ctypes.string_at(e.hashes, e.count * e.hash_len) if e.count else b""
    hashes = [flat[i : i + e.hash_len] for i in range(0, len(flat), e.hash_len or 1)]
    if e.kind == CONSTANTS["KVF_BLOCK_REMOVED"]:
        return Removed(hashes[0], e.group)
    tokens = array("I")
    if e.tokens_len:
        tokens.frombytes(ctypes.string_at(e.tokens, e.tokens_len * 4))
    parent = ctypes.string_at(e.parent, e.parent_len) if e.parent_len else None
    return Stored(hashes, parent, tokens.tolist(), e.block_size, e.group, e.tag)
