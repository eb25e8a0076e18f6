"""The KV cache of a model on one engine: where its pages are, and what is in them.

The bytes are a function of their place, so that whoever has a page can tell whether it is the right
one: every 8-byte word of a cache is another number, and the number says layer, K or V, block and
offset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

import kvferry


@dataclass(frozen=True)
class Model:
    """What of a model decides the shape of its cache."""

    name: str
    layers: int
    kv_heads: int
    head_size: int
    element_bytes: int
    block_tokens: int

    @property
    def page_bytes(self) -> int:
        """K, or V, of one layer for the tokens of one block."""
        return self.block_tokens * self.kv_heads * self.head_size * self.element_bytes

    @property
    def block_bytes(self) -> int:
        """One block, in all layers."""
        return 2 * self.layers * self.page_bytes

    def as_dict(self) -> dict:
        return asdict(self)


LLAMA_3_1_8B = Model("Llama-3.1-8B", layers=32, kv_heads=8, head_size=128, element_bytes=2, block_tokens=16)

#: What a decoder's cache holds before anything arrives.
EMPTY = np.uint64(0xEEEEEEEEEEEEEEEE)

# Odd, so that multiplying by it maps different numbers to different numbers.
_SCRAMBLE = np.uint64(0x9E3779B97F4A7C15)


def words(model: Model, layer: int, kv: int, block: int) -> np.ndarray:
    """The content of one page, as 64-bit words."""
    first = ((layer * 2 + kv) << 32 | block) * (model.page_bytes // 8)
    numbers = np.arange(first, first + model.page_bytes // 8, dtype=np.uint64)
    return numbers * _SCRAMBLE


class Cache:
    """One engine's cache: a tensor [K and V][blocks][page] for each layer, in memory of its own."""

    def __init__(self, model: Model, blocks: int):
        self.model, self.blocks = model, blocks
        shape = 2, blocks, model.page_bytes // 8
        self.layers = [np.full(shape, EMPTY, np.uint64) for _ in range(model.layers)]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def fill(self, progress=lambda done: None) -> None:
        """Computes the content of all blocks: what prefills do, in effect."""
        for layer, tensor in enumerate(self.layers):
            for kv in range(2):
                for block in range(self.blocks):
                    tensor[kv, block] = words(self.model, layer, kv, block)
            progress((layer + 1) / self.model.layers)

    def ranges(self) -> list[tuple[int, int, int]]:
        """What is registered: one range for each layer."""
        return [kvferry.range_of(tensor) for tensor in self.layers]

    def rows(self) -> list[tuple[int, int, int, int, int]]:
        """What transfers pick from: for each layer the pages of K, and those of V."""
        page = self.model.page_bytes
        return [
            (address + kv * self.blocks * page, page, 0, page, self.blocks)
            for address, _, _ in self.ranges()
            for kv in range(2)
        ]


def page_indices(model: Model, cache_blocks: int, blocks: list[int]) -> np.ndarray:
    """Where the pages of some blocks are in the list that :meth:`Cache.rows` makes."""
    rows = np.arange(2 * model.layers, dtype=np.int32) * np.int32(cache_blocks)
    return (rows[:, None] + np.asarray(blocks, dtype=np.int32)[None, :]).ravel()


def verify(cache: Cache, pairs: list[tuple[int, int]], progress=lambda done: None) -> str | None:
    """Looks at every byte: ``local`` block of each pair must hold the ``remote`` one, and all other
    blocks must be as they were. Says what is wrong, or returns None."""
    model = cache.model
    touched = {local for local, _ in pairs}
    untouched = [block for block in range(cache.blocks) if block not in touched]
    for layer, tensor in enumerate(cache.layers):
        for kv, name in enumerate("KV"):
            for local, remote in pairs:
                wrong = np.flatnonzero(tensor[kv, local] != words(model, layer, kv, remote))
                if wrong.size:
                    return (
                        f"layer {layer}, {name}, block {local} should hold the peer's block {remote}, "
                        f"but {wrong.size} of {model.page_bytes // 8} words differ, the first at byte "
                        f"{wrong[0] * 8}"
                    )
            for block in untouched:
                if (tensor[kv, block] != EMPTY).any():
                    return f"layer {layer}, {name}, block {block} was written to, and nobody asked for it"
        progress((layer + 1) / model.layers)
    return None
