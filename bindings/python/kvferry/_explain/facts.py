"""Who reads what from whom, taken from the library's descriptions of layouts and plans.

Nothing is planned here: ranks and the heads that they hold come from ``Layout.to_dict()``, what flows
between them from ``Plan.to_dict()``, and bytes and ranges from ``Plan.expand()`` of a few blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import Error
from ..layout import Layout
from ..plan import Plan


@dataclass(frozen=True)
class Rank:
    """One rank of an engine."""

    #: ``P2``, or ``P2.1`` for pipeline stage 1.
    label: str
    #: Pipeline stage.
    stage: int


@dataclass(frozen=True)
class Flow:
    """Heads that one rank gets from another."""

    source: int
    target: int
    head_first: int
    head_count: int
    layers: int

    @property
    def head_end(self) -> int:
        return self.head_first + self.head_count


@dataclass
class Panel:
    """What of one group flows in one pattern: K and V of attention, say."""

    group: int
    kind: str
    roles: list[str]
    heads_total: int
    #: By rank index: the heads held, ascending.
    prefill: dict[int, list[tuple[int, int]]]
    decode: dict[int, list[tuple[int, int]]]
    flows: list[Flow]

    @property
    def what(self) -> str:
        return " and ".join([", ".join(self.roles[:-1]), self.roles[-1]] if self.roles[1:] else self.roles)

    def sources(self, target: int) -> list[int]:
        """Prefill ranks that a decode rank gets something from."""
        return sorted({f.source for f in self.flows if f.target == target})

    def targets(self, source: int) -> list[int]:
        """Decode ranks that get something from a prefill rank."""
        return sorted({f.target for f in self.flows if f.source == source})


@dataclass
class Cost:
    """What moves between two ranks for a stretch of tokens (for state: one state)."""

    ranges: int = 0
    bytes: int = 0


@dataclass
class Facts:
    """All that explain tells."""

    direction: str
    prefill: list[Rank]
    decode: list[Rank]
    #: Shape of both engines, as ``TP 4`` or ``TP 4, DCP 2``.
    shapes: dict[str, str]
    panels: list[Panel]
    #: Group → tokens that :attr:`costs` are for; 1 for state.
    tokens: dict[int, int]
    #: (group, source, target) → cost.
    costs: dict[tuple[int, int, int], Cost]
    #: Prefill rank → decode rank that tells it when a request is over, though it reads nothing.
    told_by: dict[int, int]
    #: Group → both sides' blocks, for people.
    blocks: dict[int, str]
    lanes: int = 0
    lanes_before: int = 0
    plans: list[dict[str, Any]] = field(default_factory=list)


def gather(prefill: list[Layout], decode: list[Layout], *, push: bool = False, **options: Any) -> Facts:
    """Plans every local rank against the other engine, and reads the descriptions."""
    shapes = {"prefill": [x.to_dict() for x in prefill], "decode": [x.to_dict() for x in decode]}
    ranks = {side: _ranks(side, of) for side, of in shapes.items()}
    here, there = (prefill, decode) if push else (decode, prefill)
    plans = []
    for i, layout in enumerate(here):
        try:
            plans.append(Plan(layout, there, direction="push" if push else "pull", **options))
        except Error as e:
            label = ranks["prefill" if push else "decode"][i].label
            raise type(e)(f"{label}: {e}", e.status) from None
    told = [p.to_dict() for p in plans]
    first = told[0]
    facts = Facts(
        direction=first["direction"], prefill=ranks["prefill"], decode=ranks["decode"],
        shapes={side: _shape(of[0]) for side, of in shapes.items()},
        panels=_panels(told, push, shapes), tokens={}, costs={}, told_by={},
        blocks={i: _blocks(g, push) for i, g in enumerate(first["groups"])},
        lanes=sum(len(p["lanes"]) for p in told),
        lanes_before=sum(p["lanes_before_merging"] for p in told), plans=told,
    )
    for local, (plan, description) in enumerate(zip(plans, told)):
        _costs(facts, local, plan, description, push)
        for remote, peer in enumerate(description["peers"]):
            if peer["role"] == "notify only":
                facts.told_by[remote] = local
    return facts


def _ranks(side: str, shapes: list[dict[str, Any]]) -> list[Rank]:
    letter = side[0].upper()
    staged = any(s["parallel"]["pp_size"] > 1 for s in shapes)
    out = []
    for s in shapes:
        p = s["parallel"]
        label = f"{letter}{p['tp_rank']}" + (f".{p['pp_rank']}" if staged else "")
        out.append(Rank(label, p["pp_rank"]))
    return out


def _shape(shape: dict[str, Any]) -> str:
    p = shape["parallel"]
    parts = [f"TP {p['tp_size']}"]
    parts += [f"{name.upper()} {p[f'{name}_size']}" for name in ("pp", "dcp") if p[f"{name}_size"] > 1]
    return ", ".join(parts)


def _blocks(group: dict[str, Any], push: bool) -> str:
    """How both sides count blocks; one phrase if they count alike."""
    if group["kind"] == "state":
        return "one for each block id"
    told = {}
    for side, name in (("prefill", "local" if push else "remote"), ("decode", "remote" if push else "local")):
        s = group[name]
        told[side] = f"{s['tokens_per_block']} tokens"
        if s["kernel_blocks"] > 1:
            told[side] += f" in {s['kernel_blocks']} pages"
        if s["dcp_size"] > 1:
            told[side] += f" on each of {s['dcp_size']} ranks"
    if told["prefill"] == told["decode"]:
        return f"blocks of {told['prefill']}"
    return "; ".join(f"{side} blocks of {text}" for side, text in told.items())


def _panels(told: list[dict[str, Any]], push: bool, shapes: dict[str, list[dict[str, Any]]]) -> list[Panel]:
    """Roles of a group whose heads are held and flow alike go into one panel."""
    flows: dict[tuple[int, str], list[Flow]] = {}
    totals: dict[tuple[int, str], int] = {}
    for local, plan in enumerate(told):
        for remote, peer in enumerate(plan["peers"]):
            source, target = (local, remote) if push else (remote, local)
            for s in peer["shares"]:
                key = s["group"], s["role"]
                totals[key] = s["heads_total"]
                flows.setdefault(key, []).append(
                    Flow(source, target, s["head_first"], s["head_count"], s["layers"]))
    panels: list[Panel] = []
    for (group, role), found in sorted(flows.items()):
        held = {side: _held(of, group, role) for side, of in shapes.items()}
        flowing = sorted(found, key=lambda f: (f.target, f.head_first, f.source))
        made = Panel(
            group, told[0]["groups"][group]["kind"], [role], totals[group, role],
            held["prefill"], held["decode"], flowing,
        )
        for p in panels:
            same = (p.group, p.heads_total, p.prefill, p.decode, p.flows)
            if same == (made.group, made.heads_total, made.prefill, made.decode, made.flows):
                p.roles.append(role)
                break
        else:
            panels.append(made)
    return panels


def _held(shapes: list[dict[str, Any]], group: int, role: str) -> dict[int, list[tuple[int, int]]]:
    held = {}
    for i, shape in enumerate(shapes):
        spans = {
            (p["head_first"], p["head_count"])
            for p in shape["parts"] if (p["group"], p["role"]) == (group, role)
        }
        if spans:
            held[i] = sorted(spans)
    return held


def _costs(facts: Facts, local: int, plan: Plan, told: dict[str, Any], push: bool) -> None:
    """What a request of as many tokens moves as make whole blocks on both sides, group by group."""
    for index, group in enumerate(told["groups"]):
        lists = [([], [])] * len(told["groups"])
        tokens, ours, theirs = 1, 1, 1
        if group["kind"] != "state":
            spans = [s["tokens_per_block"] * s["dcp_size"] for s in (group["local"], group["remote"])]
            tokens = math.lcm(*spans)
            ours, theirs = (tokens // span for span in spans)
        if ours > group["local"]["block_count"] or theirs > group["remote"]["block_count"]:
            continue  # caches of a few blocks; the drawing does without figures
        lists[index] = list(range(ours)), list(range(theirs))
        facts.tokens[index] = tokens
        state = group["kind"] == "state"
        for r in plan.expand(lists, None if state else tokens).ranges:
            source, target = (local, r.peer) if push else (r.peer, local)
            cost = facts.costs.setdefault((index, source, target), Cost())
            cost.ranges += 1
            cost.bytes += r.len
