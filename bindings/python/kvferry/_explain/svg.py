"""The facts as a picture: ranks as columns, heads as bands, lanes as arrows.

Prefill ranks stand above, decode ranks below. A band is as wide as the heads that it stands for, and
has the colour of the prefill rank that they come from; so the colours of a decode rank are the ranks
that it reads. No scripts and no fonts of its own: it may stand in a README.
"""

from __future__ import annotations

import textwrap
from html import escape

from . import words
from .facts import Facts, Panel
from .text import Span, _parts

# Prefill ranks in turn; each dark enough for white figures on it.
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#db2777", "#65a30d")
INK, GREY, LINE, PAPER, UNREAD = "#1f2328", "#59636e", "#d1d9e0", "#ffffff", "#c9d1d9"
FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"

EDGE = 28  # white around everything
LABELS = 96  # for the names of the two rows
GAP = 26  # between ranks
HEADER, STRIP = 26, 34  # a rank's name and its bands
FLIGHT = 132  # between the rows
LEAST = 46  # width of a rank
MOST = 1080  # width of a row, unless there are very many ranks


def picture(facts: Facts) -> str:
    """An SVG document."""
    panels = [_Panel(facts, p) for p in facts.panels]
    width = max([EDGE * 2 + LABELS + p.width for p in panels] + [640])
    body, y = [], EDGE + 22
    arrow = "\N{RIGHTWARDS ARROW}"
    heading = f"prefill {facts.shapes['prefill']} {arrow} decode {facts.shapes['decode']}"
    body.append(_text(EDGE, y, heading, 22, weight=650))
    verb = "prefill ranks write" if facts.direction == "push" else "decode ranks read"
    body.append(_text(EDGE, y + 22, f"Who gets which heads from whom; {verb}.", 13, GREY))
    y += 48
    for panel in panels:
        y = panel.draw(body, y, width)
    height = y + EDGE - 12
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" font-family="{FONT}" role="img">',
        f"<title>{escape(heading)}</title>",
        f"<desc>{escape(' '.join(words.title(facts, p) for p in facts.panels))}</desc>",
        _hatch(),
        f'<rect width="{_n(width)}" height="{_n(height)}" rx="12" fill="{PAPER}"/>',
        *body,
        "</svg>",
        "",
    ])


class _Panel:
    """Places and draws one panel."""

    def __init__(self, facts: Facts, panel: Panel):
        self.facts, self.panel = facts, panel
        self.labelled = False
        self.top = {r: spans for r, spans in panel.prefill.items()}
        self.bottom = {r: spans for r, spans in panel.decode.items()}
        self.each = self._head_width()
        self.width = max(self._row_width(self.top), self._row_width(self.bottom))

    def _head_width(self) -> float:
        """Pixels of a head: as wide as the rows allow, and no rank narrower than its name."""
        rows = [[_heads_in(spans) for spans in row.values()] for row in (self.top, self.bottom)]
        wide = min((MOST - LABELS - GAP * len(row)) / sum(row) for row in rows)
        most = 190.0 if self.panel.heads_total == 1 else 52.0
        return max(min(wide, most), LEAST / min(map(min, rows)))

    def _row_width(self, row: dict[int, list[tuple[int, int]]]) -> float:
        return sum(_heads_in(s) for s in row.values()) * self.each + GAP * len(row)

    def _columns(self, row: dict[int, list[tuple[int, int]]], left: float) -> dict[int, tuple[float, float]]:
        """Where each rank of a row begins and ends: spread over the width, so that ranks stand near
        those that they deal with."""
        used = sum(_heads_in(spans) for spans in row.values()) * self.each
        gap = (self.width - used) / len(row)
        x, out = left + gap / 2, {}
        for rank, spans in row.items():
            wide = _heads_in(spans) * self.each
            out[rank] = x, x + wide
            x += wide + gap
        return out

    def draw(self, body: list[str], y: float, width: float) -> float:
        facts, panel = self.facts, self.panel
        body.append(f'<line x1="{EDGE}" x2="{_n(width - EDGE)}" y1="{_n(y)}" y2="{_n(y)}" stroke="{LINE}"/>')
        y += 30
        body.append(_text(EDGE, y, words.title(facts, panel), 15, weight=600))
        body.append(_text(EDGE, y + 19, f"{words.kind(facts, panel)}", 12.5, GREY))
        left = EDGE + LABELS + max(0.0, (width - 2 * EDGE - LABELS - self.width) / 2)
        up, down = self._columns(self.top, left), self._columns(self.bottom, left)
        y_up = y + 40
        y_from = y_up + HEADER + STRIP
        y_to = y_from + FLIGHT
        for side, at in (("prefill", y_up + HEADER), ("decode", y_to)):
            body.append(_text(EDGE, at + 15, side, 14, weight=600))
            body.append(_text(EDGE, at + 32, facts.shapes[side], 12.5, GREY))
        self._arrows(body, up, down, y_from, y_to)
        for rank, (x, end) in up.items():
            self._source(body, rank, x, end, y_up)
        for rank, (x, end) in down.items():
            self._target(body, rank, x, end, y_to)
        y = y_to + STRIP + HEADER + 34
        if (note := words.stretch(facts, panel)) and self.labelled:
            several = sum(p.group == panel.group for p in facts.panels) > 1
            group = f", all of group {panel.group} together" if several else ""
            body.append(_text(EDGE, y + 12, f"Copies and bytes are {note}{group}.", 12.5, GREY))
            y += 20
        for line in _lines(" ".join(words.why(facts, panel)), (width - 2 * EDGE) / 7.6):
            body.append(_text(EDGE, y + 16, line, 14))
            y += 21
        return y + 18

    def _source(self, body: list[str], rank: int, x: float, end: float, y: float) -> None:
        """A prefill rank: its name above its bands."""
        read = bool(self.panel.targets(rank))
        label = self.facts.prefill[rank].label
        body.append(_card(x, y, end - x, HEADER + STRIP, bottom=True))
        body.append(_text((x + end) / 2, y + 18, label, 13.5, INK if read else GREY, "middle", 600))
        at = x
        for first, count in self.top[rank]:
            fill = _colour(rank) if read else "url(#unread)"
            self._band(body, at, y + HEADER, first, count, fill, "white" if read else GREY)
            at += count * self.each

    def _target(self, body: list[str], rank: int, x: float, end: float, y: float) -> None:
        """A decode rank: its bands, its name and what it reads below."""
        body.append(_card(x, y, end - x, STRIP + HEADER, bottom=False))
        for part in _parts(self.panel, rank):
            at = x + self._offset(self.bottom[rank], part.first)
            count = part.end - part.first
            self._band(body, at, y, part.first, count, self._fill(body, part), "white")
        body.append(_text((x + end) / 2, y + STRIP + 18, self.facts.decode[rank].label, 13.5, INK, "middle", 600))
        names = [self.facts.prefill[s].label for s in self.panel.sources(rank)]
        if end - x > 8 * len(verb := "from " + ", ".join(names)) * 0.8:
            body.append(_text((x + end) / 2, y + STRIP + HEADER + 17, verb, 12, GREY, "middle"))

    def _fill(self, body: list[str], part: Span) -> str:
        """The colour of a part's source; stripes where several ranks deal out its tokens."""
        if len(part.sources) == 1:
            return _colour(part.sources[0])
        name = "mix-" + "-".join(map(str, part.sources))
        stripes = "".join(
            f'<rect x="{i * 10}" width="10" height="10" fill="{_colour(s)}"/>'
            for i, s in enumerate(part.sources)
        )
        wide = 10 * len(part.sources)
        body.append(
            f'<defs><pattern id="{name}" width="{wide}" height="10" patternUnits="userSpaceOnUse">'
            f"{stripes}</pattern></defs>"
        )
        return f"url(#{name})"

    def _band(self, body: list[str], x: float, y: float, first: int, count: int, fill: str, ink: str) -> None:
        wide = count * self.each
        body.append(
            f'<rect x="{_n(x + 1)}" y="{_n(y + 1)}" width="{_n(max(wide - 2, 0.5))}" height="{STRIP - 2}" '
            f'rx="3" fill="{fill}"/>'
        )
        middle = y + STRIP / 2 + 4.5
        if self.panel.heads_total == 1:
            body.append(_text(x + wide / 2, middle, self.panel.what, 12.5, ink, "middle", 500))
        elif self.each >= 15:
            for i in range(count):
                if i:
                    at = _n(x + i * self.each)
                    body.append(
                        f'<line x1="{at}" x2="{at}" y1="{_n(y + 1)}" y2="{_n(y + STRIP - 1)}" '
                        f'stroke="{PAPER}" stroke-opacity="0.75"/>'
                    )
                body.append(_text(x + (i + 0.5) * self.each, middle, str(first + i), 12.5, ink, "middle", 500))
        else:
            label = f"{first}\N{EN DASH}{first + count - 1}" if count > 1 else str(first)
            if len(label) * 7.2 < wide:
                body.append(_text(x + wide / 2, middle, label, 12, ink, "middle", 500))

    def _offset(self, spans: list[tuple[int, int]], head: int) -> float:
        """Pixels from the start of a rank to a head that it holds."""
        before = 0
        for first, count in spans:
            if first <= head < first + count:
                return (before + head - first) * self.each
            before += count
        return before * self.each

    def _arrows(
        self, body: list[str], up: dict[int, tuple[float, float]], down: dict[int, tuple[float, float]],
        y_from: float, y_to: float,
    ) -> None:
        labels = []
        for target, (x_to, _) in down.items():
            for part in _parts(self.panel, target):
                count = part.end - part.first
                room = count * self.each / len(part.sources)
                for i, source in enumerate(part.sources):
                    a = up[source][0] + self._offset(self.top[source], part.first)
                    b = x_to + self._offset(self.bottom[target], part.first) + i * room
                    body.append(_ribbon((a, a + count * self.each), (b, b + room), y_from, y_to, _colour(source)))
                    labels.append(self._flow_label(source, target, (a + count * self.each / 2 + b + room / 2) / 2,
                                                   min(count * self.each, room), y_from))
        self.labelled = any(labels)
        body += filter(None, labels)

    def _flow_label(self, source: int, target: int, x: float, room: float, y_from: float) -> str:
        """Copies and bytes, where there is room, at the middle of an arrow."""
        cost = self.facts.costs.get((self.panel.group, source, target))
        # Parts of one pair of ranks would each claim all of it.
        parts = [p for p in _parts(self.panel, target) if source in p.sources]
        if cost is None or len(parts) > 1:
            return ""
        middle = y_from + FLIGHT / 2
        lines = [words.copies(cost), words.size(cost.bytes)]
        lines = [line for line in lines if len(line) * 6.6 < room]
        return "".join(
            _text(x, middle + 16 * i - 8 * (len(lines) - 1) + 1, line, 12, INK, "middle", 500)
            for i, line in enumerate(lines)
        )


def _ribbon(top: tuple[float, float], under: tuple[float, float], y0: float, y1: float, colour: str) -> str:
    """A band that flows from one place to another and ends in a point."""
    inset = min(3.0, (top[1] - top[0]) / 6)
    (a, b), (c, d) = ((x + inset, end - inset) for x, end in (top, under))
    tip = min(16.0, max(7.0, (d - c) / 2))
    neck, middle = y1 - tip - 2, (y0 + y1 - tip) / 2
    path = (
        f"M{_n(a)} {_n(y0)}C{_n(a)} {_n(middle)} {_n(c)} {_n(middle)} {_n(c)} {_n(neck)}"
        f"L{_n(d)} {_n(neck)}C{_n(d)} {_n(middle)} {_n(b)} {_n(middle)} {_n(b)} {_n(y0)}Z"
    )
    point = f"M{_n(c - 2)} {_n(neck)}L{_n(d + 2)} {_n(neck)}L{_n((c + d) / 2)} {_n(y1 - 2)}Z"
    return (
        f'<path d="{path}" fill="{colour}" fill-opacity="0.28"/>'
        f'<path d="{point}" fill="{colour}" fill-opacity="0.9" stroke="{colour}" stroke-width="1" '
        f'stroke-linejoin="round"/>'
    )


def _card(x: float, y: float, wide: float, high: float, bottom: bool) -> str:
    """A rank's outline, open towards the arrows."""
    r, end, base = 9, x + wide, y + high
    if bottom:
        path = f"M{_n(x)} {_n(base)}V{_n(y + r)}q0 -{r} {r} -{r}H{_n(end - r)}q{r} 0 {r} {r}V{_n(base)}Z"
    else:
        path = f"M{_n(x)} {_n(y)}V{_n(base - r)}q0 {r} {r} {r}H{_n(end - r)}q{r} 0 {r} -{r}V{_n(y)}Z"
    return f'<path d="{path}" fill="#f6f8fa" stroke="{LINE}"/>'


def _hatch() -> str:
    return (
        '<defs><pattern id="unread" width="7" height="7" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="7" height="7" fill="#eef1f4"/>'
        f'<rect width="2" height="7" fill="{UNREAD}"/></pattern></defs>'
    )


def _text(
    x: float, y: float, content: str, size: float, fill: str = INK, anchor: str = "", weight: int = 0,
) -> str:
    more = f' text-anchor="{anchor}"' if anchor else ""
    more += f' font-weight="{weight}"' if weight else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size}" fill="{fill}"{more}>{escape(content)}</text>'


def _lines(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, max(int(width), 40))


def _heads_in(spans: list[tuple[int, int]]) -> int:
    return sum(count for _, count in spans)


def _colour(rank: int) -> str:
    return COLOURS[rank % len(COLOURS)]


def _n(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
