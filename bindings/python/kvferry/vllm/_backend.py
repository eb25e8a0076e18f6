"""Where the blocks are that vLLM's scheduler works with: in this process, or behind a server.

Either way there is a :attr:`pool` with the methods of :class:`kvferry.block_pool.BlockPool`, and next
to it what vLLM asks of single blocks so often that no call may be needed for it:

- ``refs[i]``: how many times block i is held; ``refs[num_blocks]``: how many blocks are free;
- ``flags[i] & 1``: whether something of block i is in the prefix index;
- ``after(i)``, ``before(i)``: its neighbours in the free queue, ``num_blocks`` being both ends of it.
"""

from __future__ import annotations

import os
import uuid
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from .. import errors
from ..block_pool import BlockPool, Calls, calls

#: Which pool vLLM gets; "" is its own.
WHERE = "KVFERRY_BLOCK_POOL"
#: Which free blocks an allocation gets: ``lru``, ``windowed`` or ``elastic``, the latter two with a part
#: of the free queue behind a colon (``elastic:0.3``).
POLICY = "KVFERRY_BLOCK_POOL_POLICY"

#: Where the server listens.
ADDRESS = "KV_CACHE_SOCKET_PATH"


def wanted() -> str:
    """``local``, ``server`` or nothing, as the environment says."""
    where = os.environ.get(WHERE, "")
    if where not in ("", "local", "server"):
        raise errors.InvalidArgumentError(f"{WHERE} is {where!r}; it is local, server or not set")
    return where


def policy() -> dict[str, Any]:
    """The policy of the environment, as arguments of a pool."""
    name, _, part = os.environ.get(POLICY, "default").partition(":")
    try:
        return {"policy": name, "fraction": float(part or 0)}
    except ValueError:
        raise errors.InvalidArgumentError(f"{POLICY}: {part!r} is not a part of the queue") from None


def open_pool(num_blocks: int, caching: bool, events: bool) -> Local | Mirrored:
    """A pool as the environment wants it."""
    options = dict(policy(), events=events, tolerate_null=True)
    if wanted() == "server":
        from ..pool_client import DEFAULT_ADDRESS, PoolClient

        # A pool of its own: what is kept of it here would not be right of a shared one. Process ids
        # would be the same in two containers.
        name = f"vllm-{uuid.uuid4().hex}"
        address = os.environ.get(ADDRESS, DEFAULT_ADDRESS)
        client = PoolClient(address, num_blocks, caching, pool=name, **options)
        free = client.num_free
        if free != num_blocks - 1:
            client.close()
            raise errors.InvalidStateError(
                f"pool {name!r} was to be new, but {free} of {num_blocks} blocks are free"
            )
        return Mirrored(client)
    return Local(BlockPool(num_blocks, caching, **options))


class Local:
    """A pool of this process; its memory is looked into."""

    def __init__(self, pool: BlockPool):
        self.pool = pool
        nodes = memoryview(pool._nodes()).cast("B").cast("I")
        self._prev, self._next, self.refs, self.flags = (nodes[i::4] for i in range(4))

    def calls(self, blocks: Sequence[Any]) -> Calls:
        """The calls that a scheduler makes all the time, with block objects instead of ids."""
        return calls(self.pool, blocks)

    def after(self, i: int) -> int:
        return self._next[i]

    def before(self, i: int) -> int:
        return self._prev[i]


def _plain(ids: Iterable[int]) -> list[int]:
    """Numbers, where vLLM gives blocks."""
    return array("I", ids).tolist()


class Mirrored:
    """A pool that cannot be looked into: counts and flags are kept here as well, and brought up to date
    by every call. It is its only user."""

    def __init__(self, pool: Any):
        self._far = pool
        self.pool = self
        n = self.num_blocks = pool.num_blocks
        self.refs = [1] + [0] * (n - 1) + [n - 1]
        self.flags = bytearray(n + 1)

    def calls(self, blocks: Sequence[Any]) -> Calls:
        """The calls that a scheduler makes all the time, with block objects instead of ids."""

        def cache(new: Any, hashes: Any, block_size: int, group: int, first: int) -> None:
            self.cache(new, hashes, block_size=block_size, group=group, first=first)

        return Calls(
            lambda n: [blocks[i] for i in self.allocate(n)],
            self.free,
            self.touch,
            lambda hashes: [blocks[i] for i in self._far.lookup_chain(hashes)[0]],
            cache,
        )

    def __getattr__(self, name: str) -> Any:
        # What changes nothing that is kept here.
        return getattr(self._far, name)

    def after(self, i: int) -> int:
        order = [self.num_blocks, *self._far.free_blocks(), self.num_blocks]
        return order[order.index(i) + 1]

    def before(self, i: int) -> int:
        order = [self.num_blocks, *self._far.free_blocks(), self.num_blocks]
        return order[order.index(i, 1) - 1]

    def allocate(self, n: int, after: int | None = None) -> list[int]:
        ids = self._far.allocate(n, after)
        for i in ids:
            self.refs[i] = 1
            self.flags[i] = 0
        self.refs[-1] -= n
        return ids

    def free(self, ids: Iterable[int]) -> None:
        ids = _plain(ids)
        self._far.free(ids)
        self._released(ids)

    def unpin(self, ids: Iterable[int]) -> None:
        ids = _plain(ids)
        self._far.unpin(ids)
        self._released(ids)

    def touch(self, ids: Iterable[int]) -> None:
        ids = _plain(ids)
        self._far.touch(ids)
        for i in filter(None, ids):
            self.refs[-1] -= not self.refs[i]
            self.refs[i] += 1

    def cache(self, blocks: Sequence[int], hashes: Sequence[bytes], **more: Any) -> None:
        self._far.cache(blocks, hashes, **more)
        for i, chosen in zip(_plain(blocks), more.get("mask") or [True] * len(blocks)):
            if i and chosen:
                self.flags[i] = 1

    def cache_partial(self, block: int, hash: bytes, num_tokens: int, **more: Any) -> None:
        self._far.cache_partial(block, hash, num_tokens, **more)
        self.flags[block] = block != 0

    def move_keys(self, src: int, dst: int) -> None:
        self._far.move_keys(src, dst)
        self.flags[dst] |= self.flags[src]
        self.flags[src] = 0

    def evict(self, ids: Iterable[int]) -> None:
        ids = _plain(ids)
        self._far.evict(ids)
        for i in ids:
            self.flags[i] = 0

    def reset(self) -> bool:
        done = self._far.reset()
        if done:
            self.flags[:] = bytes(len(self.flags))
        return done

    def _released(self, ids: list[int]) -> None:
        for i in filter(None, ids):
            self.refs[i] -= 1
            self.refs[-1] += not self.refs[i]
