"""``python -m kvferry explain``: who reads what from whom between two engines.

From a model's shape::

    python -m kvferry explain --prefill-tp 4 --decode-tp 2 --kv-heads 8 --svg plan.svg

or from layouts that engines have exchanged, one file for each rank (:meth:`kvferry.Layout.encode`)::

    python -m kvferry explain --prefill p0.kvl p1.kvl --decode d0.kvl
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys

from ._explain import facts, svg, text
from .errors import Error
from .layout import (
    DenseLayers,
    Group,
    KvPlacement,
    LatentLayers,
    Layout,
    PageOrder,
    Parallel,
    Region,
)

__all__ = ["main"]

# Blocks of the caches that are made up to plan with, and what separates their regions.
_BLOCKS = 4096
_APART = 1 << 40


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code: 0, or 1 if no plan is possible."""
    options = _parser().parse_args(arguments)
    try:
        if options.prefill:
            prefill, decode = ([_read(f) for f in files] for files in (options.prefill, options.decode))
        else:
            prefill, decode = (_made_up(options, side) for side in ("prefill", "decode"))
        found = facts.gather(
            prefill, decode, push=options.push, keep_lanes=options.keep_lanes,
            uneven_blocks=options.uneven_blocks,
        )
        if options.svg:
            _write(options.svg, svg.picture(found))
    except (Error, OSError) as e:
        print(f"explain: {e}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found.plans))
    else:
        colours = options.color == "always" or options.color == "auto" and _on_terminal()
        width = options.width or shutil.get_terminal_size((100, 40)).columns
        print(text.report(found, width=max(width, 40), colours=colours))
    return 0


def _on_terminal() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _read(path: str) -> Layout:
    with open(path, "rb") as file:
        data = file.read()
    try:
        return Layout.decode(data)
    except Error as e:
        raise type(e)(f"{path}: {e}", e.status) from None


def _write(path: str, content: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def _made_up(options: argparse.Namespace, side: str) -> list[Layout]:
    """Layouts of all ranks of an engine with this shape, at addresses of no meaning."""
    def of(name: str):
        own = getattr(options, f"{side}_{name}")
        return getattr(options, name) if own is None else own

    ranks = []
    for stage in range(of("pp")):
        layers = range(options.layers * stage // of("pp"), options.layers * (stage + 1) // of("pp"))
        for tp_rank in range(of("tp")):
            base = (len(ranks) + 1) * _APART << (4 if side == "decode" else 0)
            each = 2 if not options.mla and KvPlacement[of("kv").upper()] is KvPlacement.REGIONS else 1
            regions = [
                Region(base + i * (_APART >> 14), _BLOCKS * of("kernel_blocks"))
                for i in range(each * len(layers))
            ]
            parallel = Parallel(
                tp_rank, of("tp"), stage, of("pp"), tp_rank % of("dcp"), of("dcp"), options.dcp_interleave
            )
            group = Group(
                "mla" if options.mla else "full", of("block_size"), of("kernel_blocks")
            )
            common = {"layers": list(layers), "regions": regions, "elem_bytes": options.elem_bytes}
            if options.mla:
                ranks.append(Layout(parallel, [group], latent=[LatentLayers(options.mla, **common)]))
            else:
                shape = DenseLayers(
                    options.kv_heads, options.head_size, order=of("order"), kv=of("kv"),
                    v_head_size=options.v_head_size, **common,
                )
                ranks.append(Layout(parallel, [group], dense=[shape]))
    return ranks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvferry explain",
        description="Prints who reads what from whom between a prefill and a decode engine: a table, a "
        "drawing, and with --svg a picture. Nothing is connected or moved.",
        epilog="What is said of both engines (--block-size 16) can be said of one "
        "(--decode-block-size 32).",
    )
    shape = parser.add_argument_group("from a model's shape")
    both = parser.add_argument_group("of both engines, or of one with --prefill-... or --decode-...")

    def number(group, name: str, default: int | None, what: str, least: int = 1) -> None:
        def read(value: str) -> int:
            n = int(value)
            if n < least:
                raise argparse.ArgumentTypeError(f"{n} is less than {least}")
            return n

        group.add_argument(name, type=read, default=default, metavar="N", help=what)

    def of_both(name: str, default, what: str, choices: list[str] | None = None) -> None:
        for side in ("", "prefill-", "decode-"):
            told = f"{what} (default: {default})"
            if side:
                # Shown for one, as an example of all.
                told = f"{what} of that engine" if name == "tp" else argparse.SUPPRESS
            value = default if not side else None
            if choices:
                both.add_argument(f"--{side}{name}", choices=choices, default=value, help=told)
            else:
                number(both, f"--{side}{name}", value, told)

    number(shape, "--kv-heads", 8, "KV heads of the model (default: 8)")
    number(shape, "--head-size", 128, "elements of a head (default: 128)")
    number(shape, "--v-head-size", 0, "elements of a V head, if that differs", least=0)
    number(shape, "--layers", 32, "layers (default: 32)")
    number(shape, "--elem-bytes", 2, "bytes of an element (default: 2)")
    shape.add_argument(
        "--mla", type=int, nargs="?", const=576, metavar="SIZE",
        help="latent attention with SIZE elements per token (576) instead of heads",
    )
    number(shape, "--dcp-interleave", 0, "tokens that go to one rank in turn, with --dcp", least=0)
    of_both("tp", 1, "tensor-parallel size")
    of_both("pp", 1, "pipeline stages")
    of_both("dcp", 1, "decode-context-parallel size")
    of_both("block-size", 16, "tokens of a block")
    of_both("kernel-blocks", 1, "pages of a block")
    of_both("order", "hnd", "order of a page", [m.name.lower() for m in PageOrder])
    of_both("kv", "planes", "where K and V are", [m.name.lower() for m in KvPlacement])

    files = parser.add_argument_group("from layouts, one file for each rank")
    files.add_argument("--prefill", nargs="+", metavar="FILE", help="layouts of the prefill ranks")
    files.add_argument("--decode", nargs="+", metavar="FILE", help="layouts of the decode ranks")

    plan = parser.add_argument_group("the plan")
    plan.add_argument("--push", action="store_true", help="prefill ranks write, instead of decode ranks reading")
    plan.add_argument("--keep-lanes", action="store_true", help="leave adjacent lanes as they are")
    plan.add_argument("--uneven-blocks", action="store_true", help="accept any two block sizes")

    output = parser.add_argument_group("output")
    output.add_argument("--svg", metavar="FILE", help="also draw a picture")
    output.add_argument("--json", action="store_true", help="print the plans as JSON, one for each local rank")
    output.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="colours (default: auto)")
    output.add_argument("--width", type=int, metavar="COLUMNS", help="width of the drawing (the terminal's)")

    def check(arguments: list[str]) -> argparse.Namespace:
        options = argparse.ArgumentParser.parse_args(parser, arguments)
        if bool(options.prefill) != bool(options.decode):
            parser.error("--prefill and --decode belong together: the layouts of both engines")
        return options

    parser.parse_args = check
    return parser
