"""The free queue and the hash map of vLLM's pool, as far as other modules of vLLM and its tests reach
into them, as views of ours. Nothing is kept here, except what is no business of our pool: entries for
block objects that are not its own, and for the null block."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from vllm.v1.core.block_pool import BlockHashToBlockMap
from vllm.v1.core.kv_cache_utils import (
    KVCacheBlock,
    get_block_hash,
    get_group_id,
    make_block_hash_with_group_id,
)

if TYPE_CHECKING:
    from .block_pool import BlockPool


class End:
    """What stands before the first free block and behind the last."""

    block_id = -1
    ref_cnt = 0

    def __init__(self, queue: FreeQueue):
        self._queue = queue

    @property
    def next_free_block(self) -> Any:
        queue = self._queue
        return queue.behind(queue.end) if self is queue.fake_free_list_head else None

    @property
    def prev_free_block(self) -> Any:
        queue = self._queue
        return queue.before(queue.end) if self is queue.fake_free_list_tail else None


class FreeQueue:
    """The free blocks in eviction order."""

    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._backend = pool._backend
        self.end = pool.num_gpu_blocks
        self.fake_free_list_head = End(self)
        self.fake_free_list_tail = End(self)

    @property
    def num_free_blocks(self) -> int:
        return self._backend.refs[self.end]

    def behind(self, i: int) -> Any:
        i = self._backend.after(i)
        return self.fake_free_list_tail if i == self.end else self._pool.blocks[i]

    def before(self, i: int) -> Any:
        i = self._backend.before(i)
        return self.fake_free_list_head if i == self.end else self._pool.blocks[i]

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        blocks = self._pool.blocks
        return [blocks[i] for i in self._backend.pool.free_blocks()]

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """The free blocks behind one of them, or all."""
        block = (cursor or self.fake_free_list_head).next_free_block
        while block is not None and block is not self.fake_free_list_tail:
            yield block
            block = block.next_free_block


class HashMap:
    """Which blocks have a key (a hash and a group)."""

    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._rust = pool._pool
        #: Entries for blocks that are not the pool's to keep.
        self.strangers = BlockHashToBlockMap()

    def __len__(self) -> int:
        return self._rust.stats().cached_keys + len(self.strangers)

    @property
    def _cache(self) -> Entries:
        return Entries(self)

    def get_one_block(self, key: Any) -> KVCacheBlock | None:
        ids = self._rust.lookup(get_block_hash(key), (get_group_id(key),))
        return self._pool.blocks[ids[0]] if ids else self.strangers.get_one_block(key)

    def contain(self, key: Any, block_id: int) -> bool:
        return key in self._pool._keys_of(block_id) or self.strangers.contain(key, block_id)

    def insert(self, key: Any, block: KVCacheBlock) -> None:
        if self._pool._owns(block):
            self._pool._insert_block_hash(key, block, None)
        else:
            self.strangers.insert(key, block)

    def pop(self, key: Any, block_id: int) -> KVCacheBlock | None:
        """Takes one key from one block."""
        keys = self._pool._keys_of(block_id)
        if key not in keys:
            return self.strangers.pop(key, block_id)
        block = self._pool.blocks[block_id]
        tokens = block.block_hash_num_tokens
        self._pool._remove_cached_block_hashes(block)
        for other in keys:
            if other != key:
                self._pool._insert_block_hash(other, block, tokens)
        return block


class Same(dict):
    """The blocks with one key. vLLM's map has a block where there is one and a dict where there are
    several, or have been; this is equal to either."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict):
            return dict.__eq__(self, other)
        return list(self.values()) == [other]

    __hash__ = None


class Entries(MutableMapping):
    """The map as a dict: for a person who looks into it, and for tests. Reads through all blocks."""

    def __init__(self, map: HashMap):
        self._map = map

    def _read(self) -> dict[Any, Same]:
        pool, found = self._map._pool, {}
        for i, block in enumerate(pool.blocks):
            for key in pool._keys_of(i):
                found.setdefault(key, Same())[i] = block
        for key, blocks in self._map.strangers._cache.items():
            if isinstance(blocks, KVCacheBlock):
                blocks = {blocks.block_id: blocks}
            found[key] = Same({**blocks, **found.get(key, {})})
        return found

    def __getitem__(self, key: Any) -> Same:
        return self._read()[key]

    def __setitem__(self, key: Any, blocks: KVCacheBlock | dict[int, KVCacheBlock]) -> None:
        for block in list(blocks.values()) if isinstance(blocks, dict) else [blocks]:
            self._map.insert(key, block)

    def __delitem__(self, key: Any) -> None:
        for i in self[key]:
            self._map.pop(key, i)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._map)

    def __copy__(self) -> dict[Any, Same]:
        return self._read()


class FurtherKeys(MutableMapping):
    """For each block with more than one key the set of those behind the first."""

    def __init__(self, pool: BlockPool):
        self._pool = pool

    def __getitem__(self, block_id: int) -> set[Any]:
        further = self._pool._keys_of(block_id)[1:]
        if not further:
            raise KeyError(block_id)
        return set(further)

    def __setitem__(self, block_id: int, keys: set[Any]) -> None:
        for key in keys:
            self._pool._insert_block_hash(key, self._pool.blocks[block_id], None)

    def __delitem__(self, block_id: int) -> None:
        for key in self[block_id]:
            self._pool.cached_block_hash_to_block.pop(key, block_id)

    def __iter__(self) -> Iterator[int]:
        return (i for i in range(len(self._pool.blocks)) if len(self._pool._keys_of(i)) > 1)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def with_group(key: Any) -> Any:
    """vLLM's key for one of ours."""
    return make_block_hash_with_group_id(key.hash, key.group)
