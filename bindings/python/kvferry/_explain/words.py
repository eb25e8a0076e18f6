"""Sentences and numbers that the text and the SVG share."""

from __future__ import annotations

from .facts import Cost, Facts, Panel, Rank


def heads(first: int, end: int, panel: Panel) -> str:
    """``head 3``, ``heads 2-3``, or ``whole``."""
    if panel.heads_total == 1:
        return "whole"
    noun = _unit(panel)
    if end - first == 1:
        return f"{noun} {first}"
    return f"{noun}s {first}\N{EN DASH}{end - 1}"


def size(count: int) -> str:
    """Bytes with a binary unit: ``512 B``, ``256 KiB``, ``1.5 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError


def copies(cost: Cost) -> str:
    """``64 copies``."""
    return f"{cost.ranges:,} cop{'y' if cost.ranges == 1 else 'ies'}"


def stretch(facts: Facts, panel: Panel) -> str:
    """What the costs of a panel are for."""
    if panel.kind == "state":
        return "per state"
    tokens = facts.tokens.get(panel.group)
    return f"per {tokens} tokens" if tokens else ""


def layers(panel: Panel) -> str:
    """``32 layers``."""
    counts = sorted({f.layers for f in panel.flows})
    text = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text} layer{'' if counts == [1] else 's'}"


def title(facts: Facts, panel: Panel) -> str:
    """``TP 4 -> TP 2: K and V of 8 heads, 32 layers``."""
    what = panel.what[0].upper() + panel.what[1:]
    if panel.heads_total > 1:
        what += f" of {panel.heads_total} {_unit(panel)}s"
    stages = _stages(facts, panel)
    return f"{what}, {layers(panel)}" + (" of each pipeline stage" if stages > 1 else "")


def kind(facts: Facts, panel: Panel) -> str:
    """``full attention, blocks of 16 tokens``."""
    name = "recurrent state" if panel.kind == "state" else panel.kind
    return f"{name}, {facts.blocks[panel.group]}"


def why(facts: Facts, panel: Panel) -> list[str]:
    """Why the ranks that are read are these, in a sentence or two."""
    p, d = _width(panel.prefill), _width(panel.decode)
    reads = max((len(panel.sources(t)) for t in panel.decode), default=0)
    served = max((len(panel.targets(s)) for s in panel.prefill), default=0)
    dealt, stages = _dealt_out(facts, panel), _stages(facts, panel)
    unit = _unit(panel)
    said = []
    if panel.heads_total == 1:
        said.append(f"Every rank has the {panel.what} whole" + (
            "." if dealt > 1 or stages > 1 else ", so a decode rank needs one prefill rank and no more."))
    elif p and d and d > p:
        said.append(f"A decode rank holds {_count(d, unit)} and a prefill rank {p}" + (
            "." if reads == 1 or dealt > 1 or stages > 1 else f": it takes {_number(reads)} prefill ranks to fill it."))
    elif p and d and d < p:
        said.append(
            f"A prefill rank holds {_count(p, unit)} and a decode rank {d}: a decode rank takes its part "
            f"out of the pages of one, and a prefill rank serves {_number(served)}."
        )
    elif p and d:
        said.append(f"Both sides hold {_count(p, unit)} on a rank" + (
            ": each decode rank gets all of its heads from one prefill rank." if reads == 1 else "."))
    if stages > 1:
        said.append(f"The layers are spread over {_number(stages)} pipeline stages: what is said holds for each.")
    if dealt > 1:
        said.append(
            f"The tokens are dealt out over {_number(dealt)} prefill ranks, and a decode rank needs them all."
        )
    elif panel.heads_total > 1:
        for side, held in (("Prefill", panel.prefill), ("Decode", panel.decode)):
            stage = {r: spans for r, spans in held.items() if _rank(facts, side, r).stage == 0}
            if (same := _replicas(stage)) > 1:
                then = "a decode rank reads one of them" if side == "Prefill" else "each of them reads"
                said.append(
                    f"{side} has more ranks than {unit}s: {_number(same)} ranks hold the same, and {then}."
                )
    unread = sum(1 for s in panel.prefill if not panel.targets(s))
    if unread and facts.told_by:
        are = "ranks are" if unread > 1 else "rank is"
        said.append(
            f"{_number(unread).capitalize()} prefill {are} not read, and only told when a request's blocks "
            "can be freed."
        )
    return said


def _dealt_out(facts: Facts, panel: Panel) -> int:
    """From how many ranks of a stage a decode rank gets one and the same head: each has a share of the
    tokens."""
    most = 1
    for a in panel.flows:
        stage = facts.prefill[a.source].stage
        same = {
            f.source for f in panel.flows
            if f.target == a.target and f.head_first <= a.head_first < f.head_end
            and facts.prefill[f.source].stage == stage
        }
        most = max(most, len(same))
    return most


def _stages(facts: Facts, panel: Panel) -> int:
    """Pipeline stages of the side that has more of them."""
    return max(
        len({facts.prefill[r].stage for r in panel.prefill}), len({facts.decode[r].stage for r in panel.decode})
    )


def _rank(facts: Facts, side: str, index: int) -> Rank:
    return (facts.prefill if side == "Prefill" else facts.decode)[index]


def _width(held: dict[int, list[tuple[int, int]]]) -> int | None:
    """Heads per rank, if all hold as many."""
    widths = {sum(count for _, count in spans) for spans in held.values()}
    return widths.pop() if len(widths) == 1 else None


def _replicas(held: dict[int, list[tuple[int, int]]]) -> int:
    spans = [tuple(s) for s in held.values()]
    return max(map(spans.count, spans), default=0)


def _unit(panel: Panel) -> str:
    return "channel" if panel.roles[0].startswith("conv") else "head"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _number(n: int) -> str:
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
    return names[n] if n < len(names) else str(n)
