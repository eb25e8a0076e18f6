"""One rank's KV cache: where its bytes are, and what is in them.

Every 8-byte word of a model's cache is another number, which follows from layer, K or V, head, token
and place in the head. The head's number is the model's, not the rank's: so whoever has a byte can tell
whether it is the right one, however many ranks share the heads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

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
    def head_words(self) -> int:
        """8-byte words of one head of one token, of K or of V."""
        return self.head_size * self.element_bytes // 8

    @property
    def block_bytes(self) -> int:
        """One block, in all layers and heads."""
        return 2 * self.layers * self.kv_heads * self.block_tokens * self.head_words * 8


LLAMA_3_1_8B = Model("Llama-3.1-8B", layers=32, kv_heads=8, head_size=128, element_bytes=2, block_tokens=16)

#: What a decoder's cache holds before anything arrives.
EMPTY = np.uint64(0xEEEEEEEEEEEEEEEE)

# Odd, so that multiplying by it maps different numbers to different numbers.
_SCRAMBLE = np.uint64(0x9E3779B97F4A7C15)
# More tokens than a cache holds.
_TOKENS = 1 << 24


class Cache:
    """One rank's cache: for each layer a tensor [block][head][K, V][token][word] of its heads."""

    def __init__(self, model: Model, blocks: int, tp_rank: int, tp_size: int):
        self.model, self.blocks = model, blocks
        self.parallel = kvferry.Parallel(tp_rank, tp_size)
        first, count = kvferry.shard(model.kv_heads, tp_size, tp_rank)
        self.heads = range(first, first + count)
        shape = blocks, count, 2, model.block_tokens, model.head_words
        self.layers = [np.full(shape, EMPTY) for _ in range(model.layers)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.layers)

    def layout(self) -> kvferry.Layout:
        """The same for kvferry: what plans are made from."""
        model = self.model
        regions = [kvferry.Region(tensor.ctypes.data, self.blocks) for tensor in self.layers]
        layers = kvferry.DenseLayers(
            model.kv_heads, model.head_size, model.element_bytes, regions, order="HND", kv="HALVES"
        )
        return kvferry.Layout(
            self.parallel, [kvferry.Group(tokens_per_block=model.block_tokens)], dense=[layers]
        )

    def ranges(self) -> list[tuple[int, int, int]]:
        """What is registered: one range for each layer."""
        return [kvferry.range_of(tensor) for tensor in self.layers]

    def content(self, layer: int, blocks: list[int]) -> np.ndarray:
        """What these blocks of a producer hold in this rank's heads; its tokens count from block 0."""
        model = self.model
        heads = np.asarray(self.heads, np.uint64)[:, None] + np.uint64(layer * 2 * model.kv_heads)
        cells = (heads + np.arange(2, dtype=np.uint64) * np.uint64(model.kv_heads)) * np.uint64(_TOKENS)
        firsts = np.asarray(blocks, np.uint64) * np.uint64(model.block_tokens)
        within = np.arange(model.block_tokens * model.head_words, dtype=np.uint64)
        numbers = (firsts[:, None, None] + cells) * np.uint64(model.head_words)
        words = (numbers * _SCRAMBLE)[..., None] + within * _SCRAMBLE
        return words.reshape(len(blocks), len(self.heads), 2, model.block_tokens, model.head_words)

    def fill(self, progress=lambda done: None) -> None:
        """Computes the content of all blocks: what prefills do, in effect."""
        for layer, tensor in enumerate(self.layers):
            tensor[:] = self.content(layer, list(range(self.blocks)))
            progress((layer + 1) / len(self.layers))

    def clear(self) -> None:
        for tensor in self.layers:
            tensor[:] = EMPTY

    def verify(self, mine: list[int], theirs: list[int], progress=lambda done: None) -> str | None:
        """Looks at every byte: each of ``mine`` must hold the block of ``theirs`` in its place, and all
        other blocks must be as they were. Says what is wrong, or returns None."""
        untouched = sorted(set(range(self.blocks)) - set(mine))
        for layer, tensor in enumerate(self.layers):
            differs = tensor[mine] != self.content(layer, theirs)
            if differs.any():
                wrong = np.argwhere(differs)
                i, head, kv, token, word = wrong[0]
                return (
                    f"layer {layer}, {'KV'[kv]}, head {self.heads[head]}: block {mine[i]} should hold the "
                    f"peer's block {theirs[i]}; {len(wrong)} words of the layer differ, the first at "
                    f"token {token}, byte {word * 8}"
                )
            for block in untouched:
                if (tensor[block] != EMPTY).any():
                    return f"layer {layer}: block {block} was written to, and nobody asked for it"
            progress((layer + 1) / len(self.layers))
        return None


def scattered(blocks: int, count: int, seed: int) -> list[int]:
    """After hours of service the blocks of a request lie anywhere."""
    return random.Random(seed).sample(range(blocks), count)


def neighbours(blocks: int, count: int, seed: int, piece: int = 16) -> list[int]:
    """In a young cache most of them follow each other."""
    pieces = [range(first, min(first + piece, blocks)) for first in range(0, blocks, piece)]
    random.Random(seed).shuffle(pieces)
    return [block for piece in pieces for block in piece][:count]


#: How the blocks of a request lie.
PATTERNS = {"scattered": scattered, "neighbours": neighbours}
