"""The facts as a table, and as a drawing for the terminal."""

from __future__ import annotations

import textwrap

from . import words
from .facts import Facts, Flow, Panel

# Colours of the 256-colour terminal for prefill ranks, in turn; told apart on dark and on light.
COLOURS = (33, 208, 35, 170, 37, 178, 203, 141)


class Paint:
    """Colours, or none."""

    def __init__(self, on: bool):
        self.on = on

    def rank(self, text: str, source: int) -> str:
        """In the colour of a prefill rank."""
        return f"\x1b[38;5;{COLOURS[source % len(COLOURS)]}m{text}\x1b[0m" if self.on else text

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.on else text

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.on else text


def report(facts: Facts, *, width: int, colours: bool) -> str:
    """Everything, for a terminal of this width."""
    paint = Paint(colours)
    verb = "is written by" if facts.direction == "push" else "reads"
    out = [paint.bold(
        f"prefill {facts.shapes['prefill']} \N{RIGHTWARDS ARROW} decode {facts.shapes['decode']}"
    )]
    for panel in facts.panels:
        out += ["", paint.bold(words.title(facts, panel)), words.kind(facts, panel), ""]
        out += drawing(facts, panel, width, paint)
        out += ["", *(wrapped(" ".join(words.why(facts, panel)), width)), ""]
        out += table(facts, panel, verb, paint)
    out += ["", paint.dim(
        f"{facts.lanes} lanes in all ({facts.lanes_before} before adjacent ones were merged)"
    )]
    return "\n".join(out)


# ---------------------------------------------------------------------------- table


def table(facts: Facts, panel: Panel, verb: str, paint: Paint) -> list[str]:
    """A line for each pair of ranks between which bytes move."""
    header = ["decode", verb, "what", "layers", "copies", "bytes"]
    rows: list[tuple[list[str], int | None]] = []
    for target in sorted(panel.decode):
        label = facts.decode[target].label
        for source in panel.sources(target):
            flows = [f for f in panel.flows if (f.source, f.target) == (source, target)]
            cost = facts.costs.get((panel.group, source, target))
            rows.append((
                [
                    label, facts.prefill[source].label, ", ".join(_heads(flows, panel)),
                    str(max(f.layers for f in flows)),
                    f"{cost.ranges:,}" if cost else "", words.size(cost.bytes) if cost else "",
                ],
                source,
            ))
            label = ""
    told = [(p, d) for p, d in sorted(facts.told_by.items()) if p in panel.prefill and not panel.targets(p)]
    widths = [max(len(r[0][i]) for r in [(header, None), *rows]) for i in range(len(header))]

    def line(cells: list[str], source: int | None) -> str:
        padded = [c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        if source is not None:
            padded[1] = paint.rank(padded[1], source)
        return "  ".join(padded).rstrip()

    out = [paint.dim(line(header, None)), *(line(cells, source) for cells, source in rows)]
    several = len([p for p in facts.panels if p.group == panel.group]) > 1
    if note := words.stretch(facts, panel):
        out.append(paint.dim(
            f"copies and bytes are {note}" + (f", all of group {panel.group} together" if several else "")
        ))
    out += [
        f"{facts.prefill[p].label} is read by nobody; {facts.decode[d].label} tells it when the blocks are free"
        for p, d in told
    ]
    return out


def _heads(flows: list[Flow], panel: Panel) -> list[str]:
    return list(dict.fromkeys(words.heads(f.head_first, f.head_end, panel) for f in flows))


# ---------------------------------------------------------------------------- drawing


def drawing(facts: Facts, panel: Panel, width: int, paint: Paint) -> list[str]:
    """Both engines' ranks above each other, each box as wide as the heads that the rank holds.

    Decode ranks are divided by where their heads come from, so the ranks that one reads are those
    right above it.
    """
    names = {side: f"{side} {shape}" for side, shape in facts.shapes.items()}
    margin = max(map(len, names.values())) + 2
    scale = Scale(panel.heads_total, width - margin - 1)
    top = packed({r: [Span(a, a + n, r)] for r, spans in panel.prefill.items() for a, n in spans[:1]})
    bottom = packed({r: _parts(panel, r) for r in panel.decode})
    spans = [s for row in [*top, *bottom] for parts in row for s in parts]
    if any(scale.x(s.end) - scale.x(s.first) < 4 for s in spans):
        return [paint.dim("(too many ranks to draw in this width; --svg draws them)")]
    out = ["", paint.dim(scale.ruler(panel))] if panel.heads_total > 1 else [""]
    out += _boxes(top, scale, lambda s: _source_label(facts, panel, s, paint))
    out.append(_arrows(bottom, scale, paint))
    second = len(out)
    out += _boxes(
        bottom, scale, lambda s: _part_label(facts, s, paint),
        below=lambda owner: facts.decode[owner].label,
    )
    left = {2 + (panel.heads_total > 1): names["prefill"], second + 1: names["decode"]}
    return [(left.get(i, "").ljust(margin) + line).rstrip() for i, line in enumerate(out)][1:]


class Span:
    """A part of a box: heads, whose box it is, and which ranks they come from."""

    __slots__ = ("first", "end", "owner", "sources")

    def __init__(self, first: int, end: int, owner: int, sources: tuple[int, ...] = ()):
        self.first, self.end, self.owner, self.sources = first, end, owner, sources


class Scale:
    """Heads to columns."""

    def __init__(self, total: int, room: int):
        self.total = total
        # Whole columns for each head where that fits: 8, or more where there are few.
        each = min(room / total, max(8, min(24, 64 // total)))
        self.each = int(each) if each >= 1 else each

    def x(self, head: int) -> int:
        return round(head * self.each)

    def ruler(self, panel: Panel) -> str:
        """Numbers of the heads at which boxes begin."""
        line = [" "] * (self.x(self.total) + 8)
        starts = {f.head_first for f in panel.flows}
        for spans in [*panel.prefill.values(), *panel.decode.values()]:
            starts |= {first for first, _ in spans}
        free = 0
        for head in sorted(starts):
            if (at := self.x(head) + 1) >= free:
                line[at:at + len(str(head))] = str(head)
                free = at + len(str(head)) + 1
        return "".join(line).rstrip()


def packed(boxes: dict[int, list[Span]]) -> list[list[list[Span]]]:
    """Boxes into as few rows as there are ranks that hold the same heads."""
    rows: list[list[list[Span]]] = []
    for parts in boxes.values():
        if not parts:
            continue
        for row in rows:
            if all(parts[0].first >= p[-1].end or parts[-1].end <= p[0].first for p in row):
                row.append(parts)
                break
        else:
            rows.append([parts])
    for row in rows:
        row.sort(key=lambda p: p[0].first)
    return rows


def _parts(panel: Panel, target: int) -> list[Span]:
    """A decode rank's heads, cut where their source changes."""
    flows = [f for f in panel.flows if f.target == target]
    cuts = sorted({f.head_first for f in flows} | {f.head_end for f in flows})
    parts = []
    for first, end in zip(cuts, cuts[1:]):
        sources = tuple(sorted({f.source for f in flows if f.head_first <= first and end <= f.head_end}))
        if sources:
            parts.append(Span(first, end, target, sources))
    return parts


def _boxes(rows: list, scale: Scale, label, below=None) -> list[str]:
    out: list[str] = []
    above: list[tuple[int, int]] = []
    for row in rows:
        boxes = [(scale.x(parts[0].first), scale.x(parts[-1].end)) for parts in row]
        seams = {scale.x(p.first) for parts in row for p in parts[1:]}
        out.append(_rule(above, boxes, seams))
        out.append(_line(row, scale, label))
        if below is not None:
            names = [[Span(p[0].first, p[-1].end, p[0].owner)] for p in row]
            out.append(_line(names, scale, lambda s: (below(s.owner), below(s.owner))))
        above = boxes
    out.append(_rule(above, [], set()))
    return out


def _line(row: list, scale: Scale, label) -> str:
    """Boxes of one row with their text; ``label`` gives it plain, for its length, and painted."""
    out, at = "", 0
    for parts in row:
        for k, part in enumerate(parts):
            x, end = scale.x(part.first), scale.x(part.end)
            out += " " * (x - at) + ("\u2502" if k == 0 else "\u250a")
            plain, painted = label(part)
            room = end - x - 1
            if len(plain) > room:
                plain = painted = plain[:room]
            before = (room - len(plain)) // 2
            out += " " * before + painted + " " * (room - before - len(plain))
            at = end
        # The closing edge, unless the next box draws it as its own.
        following = [p for p in row if scale.x(p[0].first) == at]
        if not following:
            out += "\u2502"
            at += 1
    return out


def _rule(above: list[tuple[int, int]], under: list[tuple[int, int]], seams: set[int]) -> str:
    """The line between two rows of boxes; ``seams`` are the divisions inside those under it."""
    boxes = above + under
    up, down = ({x for box in side for x in box} for side in (above, under))
    out = ""
    for x in range(max((end for _, end in boxes), default=-1) + 1):
        right = any(a <= x < b for a, b in boxes)
        left = any(a < x <= b for a, b in boxes)
        key = (x in up) << 3 | (x in down or x in seams) << 2 | left << 1 | right
        out += _CORNERS.get(key, " ")
    return out


# Up, down, left, right.
_CORNERS = {
    0b0011: "\u2500", 0b0111: "\u252c", 0b1011: "\u2534", 0b1111: "\u253c", 0b0101: "\u250c",
    0b0110: "\u2510", 0b1001: "\u2514", 0b1010: "\u2518", 0b1101: "\u251c", 0b1110: "\u2524",
}


def _arrows(rows: list, scale: Scale, paint: Paint) -> str:
    """An arrow above the middle of every part of the first row."""
    line: dict[int, str] = {}
    for parts in rows[0] if rows else []:
        for p in parts:
            x = (scale.x(p.first) + scale.x(p.end)) // 2
            line[x] = paint.rank("\u25bc", p.sources[0])
    return "".join(line.get(x, " ") for x in range(max(line, default=0) + 1))


def _source_label(facts: Facts, panel: Panel, span: Span, paint: Paint) -> tuple[str, str]:
    name = facts.prefill[span.owner].label
    if not panel.targets(span.owner):
        return f"({name})", paint.dim(f"({name})")
    return name, paint.rank(name, span.owner)


def _part_label(facts: Facts, span: Span, paint: Paint) -> tuple[str, str]:
    names = [facts.prefill[s].label for s in span.sources]
    plain = "from " + "+".join(names)
    if len(plain) <= 9:
        return plain, plain[:5] + "+".join(paint.rank(n, s) for n, s in zip(names, span.sources))
    return "+".join(names), "+".join(paint.rank(n, s) for n, s in zip(names, span.sources))


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, min(width, 100))
