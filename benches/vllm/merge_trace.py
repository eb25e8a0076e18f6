"""How many descriptors are left after merging, on block ids that a real vLLM engine handed out.

    PYTHONPATH=bindings/python python benches/vllm/merge_trace.py [TRACE]

The trace (traces/tiny-llama.txt; record_trace.py says how it was recorded) has for each request the
blocks that vLLM's connector was given on the producer and those that it was to fill on the consumer.
Counted are the descriptors of a request in 160 regions:

- *stock*: one for each block and region, as vLLM's connector posts them;
- *in order*: neighbours in the order of the lists merged, which a transfer library could do by itself;
- *kvferry*: pairs sorted first, then merged, by the library's own plan.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import kvferry

REGIONS, PAGES, TOKENS = 160, 40_960, 32
SIZES = ((1, 8), (9, 24), (25, 56), (57, 128))


def rank(base: int) -> kvferry.Layout:
    regions = [kvferry.Region(base + i * PAGES * 8192, PAGES) for i in range(REGIONS)]
    dense = kvferry.DenseLayers(
        kv_heads=4, k_head_size=64, elem_bytes=1, regions=regions, order="hnd", kv="regions")
    return kvferry.Layout(groups=[kvferry.Group("full", TOKENS)], dense=[dense])


def ids(text: str) -> list[int]:
    out: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        a, b = int(first), int(last or first)
        out.extend(range(a, b + 1) if a <= b else range(a, b - 1, -1))
    return out


def in_order(ours: list[int], theirs: list[int]) -> int:
    """Runs of the pairs as they stand: the consumer's blocks are the last of the producer's."""
    pairs = list(zip(ours, theirs[-len(ours):]))
    return 1 + sum((a + 1, b + 1) != (c, d) for (a, b), (c, d) in zip(pairs, pairs[1:]))


def main() -> int:
    trace = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent / "traces" / "tiny-llama.txt")
    plan = kvferry.Plan(rank(1 << 40), [rank(1 << 41)])
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {size: [] for size in SIZES}
    for line in trace.read_text().splitlines():
        if line.startswith("#"):
            continue
        _, tokens, theirs, ours = line.split()
        local, remote = ids(ours), ids(theirs)
        stats = plan.stats([(local, remote)])
        assert stats.ranges_before == len(local) * REGIONS
        size = next(s for s in SIZES if s[0] <= len(local) <= s[1])
        found[size].append((stats.ranges_before, in_order(local, remote) * REGIONS, stats.ranges))
    print("| blocks to fetch | requests | stock | in order | kvferry | stock / kvferry, mean "
          "| median (least, most) |")
    print("|---|---|---|---|---|---|---|")
    rows = [*found.items(), ((SIZES[0][0], SIZES[-1][1]), sum(found.values(), []))]
    for (least, most), counts in rows:
        if not counts:
            continue
        stock, plain, ours = (statistics.mean(column) for column in zip(*counts))
        ratios = [before / after for before, _, after in counts]
        print(f"| {least} to {most} | {len(counts)} | {stock:,.0f} | {plain:,.0f} | {ours:,.0f} "
              f"| {stock / ours:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
