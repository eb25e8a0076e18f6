"""kvferry's block pool as the block pool of vLLM 0.32: ``KVFERRY_BLOCK_POOL=local`` (or ``server``).

The pool in Rust is the truth: which blocks are free and in which order, how often they are held, what
they have cached. vLLM's managers work with block objects; here such an object is a name for a block,
and what is asked of it (``ref_cnt``, ``block_hash``, its neighbours in the queue) is read from the
pool. Behind vLLM's interface it behaves as vLLM's own does, also where ours would refuse: a block that
is freed once too often is passed over.

With ``KVFERRY_BLOCK_POOL_POLICY=lru`` the same calls give the same blocks as in vLLM; by default an
allocation gets adjacent blocks where it can, which is what the pool is for. docs/block-pool.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vllm.distributed.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockRemoved
from vllm.logger import init_logger
from vllm.v1.core import block_pool as stock
from vllm.v1.core.kv_cache_utils import (
    KVCacheBlock,
    generate_block_hash_extra_keys,
    get_block_hash,
    get_group_id,
    make_block_hash_with_group_id,
    maybe_convert_block_hash,
    resolve_block_hashes,
)

from .. import errors
from ..block_pool import Cleared, Removed
from . import _backend, _views

logger = init_logger("vllm.kvferry.block_pool")
StockPool = stock.BlockPool


class Block(int):
    """A block, by which vLLM knows it: the same object from the first day to the last. It is its own
    number, so a list of blocks is a list of ids without a look at any of them. Each pool has a class
    of its own, which knows the pool."""

    # No __slots__: without a __dict__ the collector would not see that a block refers to its class,
    # and through it to its pool, and no pool would ever end.
    pool: BlockPool
    is_null = False

    # Not numbers to vLLM: two blocks are the same or not, and none is false.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
    block_id = int.__dict__["real"]

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Block({self.block_id}, ref_cnt={self.ref_cnt}, block_hash={self.block_hash!r})"

    @property
    def ref_cnt(self) -> int:
        return self.pool._refs[self]

    @ref_cnt.setter
    def ref_cnt(self, count: int) -> None:
        # Managers add one to a block that they hold.
        more = count - self.ref_cnt
        if more > 0:
            self.pool._pool.touch([self] * more)
        else:
            self.pool._pool.free([self] * -more)

    @property
    def block_hash(self) -> Any:
        return self.pool._key(self) if self.pool._flags[self] & 1 else None

    @property
    def _block_hash(self) -> Any:
        return self.block_hash

    @_block_hash.setter
    def _block_hash(self, block_hash: Any) -> None:
        self.reset_hash()
        if block_hash is not None:
            self.set_block_hash(block_hash)

    @property
    def block_hash_num_tokens(self) -> int | None:
        if not self.pool._flags[self] & 1:
            return None
        return self.pool._pool.keys(self)[1] or None

    def set_block_hash(self, block_hash: Any, num_tokens: int | None = None) -> None:
        assert self.block_hash is None, f"block {self.block_id} has a hash already"
        self.pool._insert_block_hash(block_hash, self, num_tokens)

    def reset_hash(self) -> None:
        self.pool._remove_cached_block_hashes(self)

    @property
    def next_free_block(self) -> Any:
        return None if self.ref_cnt else self.pool.free_block_queue.behind(self)

    @property
    def prev_free_block(self) -> Any:
        return None if self.ref_cnt else self.pool.free_block_queue.before(self)


class NullBlock(KVCacheBlock):
    """Stands in block tables where there is no block. Our pool passes over it; how often it is held,
    and whether somebody gave it a hash, is between it and vLLM."""

    __slots__ = ()

    def __index__(self) -> int:
        return 0


class BlockPool(StockPool):
    """vLLM's BlockPool, with ours inside. What is not here is inherited: it is made of what is here."""

    def __init__(
        self,
        num_gpu_blocks: int,
        enable_caching: bool,
        hash_block_size: int,
        enable_kv_cache_events: bool = False,
        metrics_collector: Any = None,
        medium: str = MEDIUM_GPU,
    ):
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.hash_block_size = hash_block_size
        self.enable_kv_cache_events = enable_kv_cache_events
        self.kv_event_queue = []
        self.metrics_collector = metrics_collector
        self.medium = medium

        self._backend = _backend.open_pool(num_gpu_blocks, enable_caching, enable_kv_cache_events)
        self._pool = self._backend.pool
        self._refs, self._flags = self._backend.refs, self._backend.flags
        # The primary key of each block, a hash in group 0 or a pair. Right where the pool says that
        # there is one.
        self._primary: list[Any] = [None] * num_gpu_blocks
        self._reuse_watchers: dict[int, Callable[[KVCacheBlock], None]] = {}
        # Whether somebody wants to hear of allocations.
        self._told = bool(enable_kv_cache_events or metrics_collector)

        self._class = type("Block", (Block,), {"pool": self})
        self.null_block = NullBlock(0, pool=self, is_null=True)
        self._classes = {self._class, NullBlock}
        self.blocks = [self.null_block, *map(self._class, range(1, num_gpu_blocks))]
        self.free_block_queue = _views.FreeQueue(self)
        self.cached_block_hash_to_block = _views.HashMap(self)
        self.cached_block_hashes_by_block = _views.FurtherKeys(self)
        self._calls = self._backend.calls(self.blocks)
        self._allocate, self._free, self._touch, self._lookup, self._cache = self._calls

    # ------------------------------------------------------------------------ blocks

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        try:
            new = self._allocate(num_blocks)
        except errors.ResourceExhaustedError:
            raise ValueError(
                f"no {num_blocks} free blocks in the pool: there are {self.get_num_free_blocks()}"
            ) from None
        if self._reuse_watchers:
            self._notify_reuse([self.blocks[i] for i in self._pool.take_reused()])
        if self._told:
            self._tell_of_new(new)
        return new

    def _tell_of_new(self, new: list[KVCacheBlock]) -> None:
        self._collect_events()
        if metrics := self.metrics_collector:
            for block in new:
                if self.enable_caching:
                    metrics.on_block_evicted(block)
                metrics.on_block_allocated(block)

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        blocks = list(ordered_blocks)
        if {*map(type, blocks)} <= self._classes:
            return self._give_back(blocks)
        others: dict[Any, list[KVCacheBlock]] = {}
        self._give_back(self._sort_out(blocks, others))
        for pool, theirs in others.items():
            pool.free_blocks(theirs)

    def _give_back(self, blocks: list[Any]) -> None:
        try:
            self._free(blocks)
        except errors.InvalidStateError:
            self._free(self._held(blocks))

    def _sort_out(self, blocks: list[Any], others: dict[Any, list[Any]]) -> list[Block]:
        """Our blocks; those of other pools go to `others`."""
        ours = []
        for block in blocks:
            if block.pool is self or block.pool is None:
                ours.append(self.blocks[block.block_id])
            else:
                others.setdefault(block.pool, []).append(block)
        return ours

    def _held(self, blocks: list[Block]) -> list[Block]:
        """The references that there are to give back; vLLM says nothing of the others."""
        left: dict[Block, int] = {}
        held = []
        for block in blocks:
            left[block] = left.get(block, block.ref_cnt) - 1
            if left[block] >= 0:
                held.append(block)
        return held

    def unpin_blocks(
        self, blocks: Iterable[KVCacheBlock], on_reuse: Callable[[KVCacheBlock], None]
    ) -> None:
        blocks = list(blocks)
        assert self.null_block not in blocks, "the null block is not held"
        self._pool.unpin(blocks)
        self._reuse_watchers.update(dict.fromkeys((b.block_id for b in blocks), on_reuse))

    def touch(self, blocks: Sequence[KVCacheBlock]) -> None:
        self._touch(blocks)
        if metrics := self.metrics_collector:
            for block in blocks:
                metrics.on_block_accessed(block)

    def get_num_free_blocks(self) -> int:
        return self._refs[self.num_gpu_blocks]

    # ------------------------------------------------------------------------ cached prefixes

    def get_cached_block(
        self, block_hash: Any, kv_cache_group_ids: Sequence[int]
    ) -> list[KVCacheBlock] | None:
        ids = self._pool.lookup(block_hash, kv_cache_group_ids)
        if ids is not None:
            return [self.blocks[i] for i in ids]
        if self.cached_block_hash_to_block.strangers:
            return super().get_cached_block(block_hash, kv_cache_group_ids)
        return None

    def get_cached_chain(
        self, block_hashes: Sequence[Any], kv_cache_group_ids: Sequence[int]
    ) -> tuple[list[KVCacheBlock], ...]:
        """For each group the blocks of the longest known prefix of a chain; in one call."""
        if kv_cache_group_ids == [0]:
            return (self._lookup(block_hashes),)
        blocks = self.blocks
        found = self._pool.lookup_chain(block_hashes, kv_cache_group_ids)
        return tuple([[blocks[i] for i in ids] for ids in found])

    def cache_full_blocks(
        self,
        request: Any,
        blocks: list[KVCacheBlock],
        num_cached_blocks: int,
        num_full_blocks: int,
        block_size: int,
        kv_cache_group_id: int,
        block_mask: list[bool] | None = None,
    ) -> None:
        if num_cached_blocks >= num_full_blocks or not self.enable_caching:
            return
        new = blocks[num_cached_blocks:num_full_blocks]
        if new[0].pool is not self:
            # Block objects of somebody else: block by block, as vLLM does it.
            return super().cache_full_blocks(
                request, blocks, num_cached_blocks, num_full_blocks, block_size,
                kv_cache_group_id, block_mask,
            )  # fmt: skip
        assert block_mask is None or len(block_mask) == len(new)
        all_hashes = resolve_block_hashes(request.block_hashes, self.hash_block_size, block_size)
        hashes = all_hashes[num_cached_blocks:num_full_blocks]
        try:
            if block_mask is None:
                self._cache(new, hashes, block_size, kv_cache_group_id, num_cached_blocks)
            else:
                self._pool.cache(
                    new,
                    hashes,
                    block_size=block_size,
                    group=kv_cache_group_id,
                    first=num_cached_blocks,
                    mask=block_mask,
                )
        except errors.InvalidStateError as e:
            raise AssertionError(str(e)) from None
        primary, keys = self._primary, hashes
        if kv_cache_group_id:
            keys = [(h, kv_cache_group_id) for h in hashes]
        if block_mask is None:
            for block, key in zip(new, keys):
                primary[block] = key
        else:
            for block, key, chosen in zip(new, keys, block_mask):
                if chosen:
                    primary[block] = key
        if self.enable_kv_cache_events:
            self._collect_events()
            self._add_stored_event(
                request, new, hashes, all_hashes, num_cached_blocks, block_size,
                kv_cache_group_id, block_mask,
            )  # fmt: skip

    def _add_stored_event(
        self,
        request: Any,
        new: list[KVCacheBlock],
        hashes: Sequence[Any],
        all_hashes: Sequence[Any],
        first: int,
        block_size: int,
        group: int,
        mask: list[bool] | None,
    ) -> None:
        """One event for all of a call, in vLLM's form: it says more of the request than ours does."""
        stored, extra_keys, image = [], [], 0
        for i, block in enumerate(new):
            if block.is_null or (mask is not None and not mask[i]):
                continue
            start = (first + i) * block_size
            keys, image = generate_block_hash_extra_keys(request, start, start + block_size, image)
            stored.append(maybe_convert_block_hash(hashes[i]))
            extra_keys.append(keys)
        event = self._build_block_stored_event(
            request,
            block_hashes=stored,
            parent_block_hash=maybe_convert_block_hash(all_hashes[first - 1]) if first else None,
            start_token_idx=first * block_size,
            end_token_idx=(first + len(new)) * block_size,
            block_size=block_size,
            kv_cache_group_id=group,
            extra_keys_list=extra_keys,
        )
        self.kv_event_queue.append(event)

    def move_block_hashes(self, src_block: KVCacheBlock, dst_block: KVCacheBlock) -> None:
        assert dst_block.block_hash is None, f"block {dst_block.block_id} has a hash already"
        if self._flags[src_block] & 1:
            self._pool.move_keys(src_block, dst_block)
            self._primary[dst_block] = self._primary[src_block]

    def reset_prefix_cache(self) -> bool:
        if not self._pool.reset():
            held = self.num_gpu_blocks - 1 - self.get_num_free_blocks()
            logger.warning("the prefix cache is not reset: %d blocks are held", held)
            return False
        self.cached_block_hash_to_block.strangers._cache.clear()
        self.null_block.reset_hash()
        if self._reuse_watchers:
            self._pool.take_reused()  # all of them, but not in the order in which they were unpinned
            self._notify_reuse([self.blocks[i] for i in self._reuse_watchers])
        if self.metrics_collector:
            self.metrics_collector.reset()
        logger.info("the prefix cache is reset")
        self._collect_events()
        return True

    # ------------------------------------------------------------------------ single keys: what the
    # inherited cache_partial_block, evict_blocks and so on are made of

    def _owns(self, block: KVCacheBlock) -> bool:
        return type(block) is self._class

    def _key(self, block: Block) -> Any:
        """The primary key, of a block that has one."""
        key = self._primary[block]
        block_hash, group = key if type(key) is tuple else (key, 0)
        return make_block_hash_with_group_id(block_hash, group)

    def _keys_of(self, block_id: int) -> list[Any]:
        """The keys of a block, the primary one first."""
        if not 0 <= block_id < self.num_gpu_blocks or not self._flags[block_id] & 1:
            return []
        return [_views.with_group(key) for key in self._pool.keys(block_id)[0]]

    def _insert_block_hash(
        self, block_hash_with_group_id: Any, block: KVCacheBlock, num_tokens: int | None
    ) -> None:
        if not self._owns(block):
            super()._insert_block_hash(block_hash_with_group_id, block, num_tokens)
            return
        block_hash = get_block_hash(block_hash_with_group_id)
        group = get_group_id(block_hash_with_group_id)
        if not self._flags[block] & 1:
            self._primary[block] = (block_hash, group)
        # A key for more tokens would drive out the others here; whoever wants that has removed them.
        tokens = self._pool.keys(block)[1] or num_tokens or 0
        self._pool.cache_partial(block, block_hash, tokens, group=group)
        self._drop_events()

    def _remove_cached_block_hashes(self, block: KVCacheBlock) -> list[Any]:
        if not self._owns(block):
            return super()._remove_cached_block_hashes(block)
        removed = self._keys_of(block.block_id)
        if removed:
            self._pool.evict([block])
            self._drop_events()
        return removed

    def _drop_events(self) -> None:
        """Forgets what was just done: the caller has events of its own for it."""
        if self.enable_kv_cache_events:
            self._pool.take_events()

    def _collect_events(self) -> None:
        """What our pool removed, as vLLM's events. What it stored is not taken from it: only the
        caller knows the request."""
        if not self.enable_kv_cache_events:
            return
        for event in self._pool.take_events():
            if type(event) is Removed:
                self.kv_event_queue.append(
                    BlockRemoved(
                        block_hashes=[maybe_convert_block_hash(event.hash)],
                        medium=self.medium,
                        group_idx=event.group,
                    )
                )
            elif type(event) is Cleared:
                self.kv_event_queue.append(AllBlocksCleared())


def install() -> None:
    """Puts our pool wherever vLLM's stands, also in modules that have imported it already."""
    if stock.BlockPool is BlockPool:
        return
    logger.info("the block pool is kvferry's (%s=%s)", _backend.WHERE, _backend.wanted())
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and vars(module).get("BlockPool") is StockPool:
            module.BlockPool = BlockPool
    hisparse = sys.modules.get("vllm.v1.hisparse.block_pool")
    if hisparse is not None and hisparse.SharedEventQueueBlockPool.__bases__ == (StockPool,):
        hisparse.SharedEventQueueBlockPool.__bases__ = (BlockPool,)
    from . import _longest_hit

    _longest_hit.install()
