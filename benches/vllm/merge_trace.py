"""How many descriptors are left after merging, on block ids from vLLM's own BlockPool under churn.

    PYTHONPATH=bindings/python VLLM_PYTHON benches/vllm/merge_trace.py        (by hand: needs vLLM 0.32)

Two pools, a producer's and a consumer's, as vLLM's block pool hands ids out and takes them back (freed
last block first, as its KV cache manager does). The schedule is simulated, with a fixed seed: prompts
of 16 to 2,048 blocks; the producer allocates a prompt in chunks of 128 blocks, several prompts by
turns, and frees it when it has been read; the consumer allocates the whole prompt, then one block at a
time for as long as it decodes, all its requests by turns, and frees in an order of chance. Counted are
the descriptors of a request in 160 regions: stock vLLM has one for each block and region.
"""

from __future__ import annotations

import os
import random
import statistics
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import kvferry  # noqa: E402
from vllm.v1.core.block_pool import BlockPool  # noqa: E402

REGIONS, PAGES = 160, 40_960
SIZES = (16, 118, 512, 2048)


def rank(base: int) -> kvferry.Layout:
    regions = [kvferry.Region(base + i * PAGES * 8192, PAGES) for i in range(REGIONS)]
    dense = kvferry.DenseLayers(
        kv_heads=4, k_head_size=64, elem_bytes=2, regions=regions, order="hnd", kv="regions")
    return kvferry.Layout(groups=[kvferry.Group("full", 16)], dense=[dense])


class Churn:
    def __init__(self, fill: float, seed: int):
        self.rng = random.Random(seed)
        self.producer, self.consumer = (
            BlockPool(PAGES, enable_caching=False, hash_block_size=16) for _ in range(2))
        self.fill = fill
        self.prefilling, self.decoding = [], []

    def used(self, pool) -> float:
        return 1 - pool.get_num_free_blocks() / PAGES

    def step(self):
        """Goes on until a prompt is through; its size and block ids on both sides."""
        while True:
            while len(self.prefilling) < 4:
                self.prefilling.append(SimpleNamespace(size=self.rng.choice(SIZES), blocks=[]))
            self.decode()
            prompt = self.rng.choice(self.prefilling)
            more = min(128, prompt.size - len(prompt.blocks))
            prompt.blocks += self.producer.get_new_blocks(more)
            if len(prompt.blocks) < prompt.size:
                continue
            self.prefilling.remove(prompt)
            while self.used(self.consumer) > self.fill - prompt.size / PAGES:
                self.finish()
            blocks = self.consumer.get_new_blocks(prompt.size)
            ids = [b.block_id for b in blocks], [b.block_id for b in prompt.blocks]
            self.decoding.append(blocks)
            self.producer.free_blocks(reversed(prompt.blocks))
            return prompt.size, ids

    def decode(self):
        for request in self.decoding:
            if self.rng.random() < 0.25 and self.used(self.consumer) < self.fill:
                request += self.consumer.get_new_blocks(1)

    def finish(self):
        request = self.decoding.pop(self.rng.randrange(len(self.decoding)))
        self.consumer.free_blocks(reversed(request))


def main():
    plan = kvferry.Plan(rank(1 << 40), [rank(1 << 41)])
    print("| consumer's pool in use | blocks | requests | stock | kvferry, median (least, most) | ratio |")
    print("|---|---|---|---|---|---|")
    for fill in (0.5, 0.95):
        churn, found = Churn(fill, 7), {size: [] for size in SIZES}
        for number in range(1500):
            size, ids = churn.step()
            if number >= 500:  # the pools have been through once by then
                stats = plan.stats([ids])
                assert stats.ranges_before == size * REGIONS
                found[size].append(stats.ranges)
        for size, ranges in found.items():
            middle = statistics.median(ranges)
            print(f"| {fill:.0%} | {size:,} | {len(ranges)} | {size * REGIONS:,} | {middle:,.0f} "
                  f"({min(ranges):,}, {max(ranges):,}) | {size * REGIONS / middle:.1f} |")


if __name__ == "__main__":
    main()
