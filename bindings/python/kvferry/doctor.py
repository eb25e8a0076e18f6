"""``python -m kvferry doctor``: what kvferry finds on this machine, and whether transfers work.

It looks for NIXL as an agent would, lists its plugins and what UCX can use, moves bytes over each
transport within a process and between two, and says why for what does not work. Each check runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap

from ._doctor.checks import run

__all__ = ["main"]

_MARKS = {"ok": "ok", "failed": "FAILED", "absent": "--"}
_COLOURS = {"ok": "32", "failed": "31;1", "absent": "2"}


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code: 0, or 1 if anything that was asked for does not work."""
    parser = argparse.ArgumentParser(
        prog="python -m kvferry doctor",
        description="Tells what kvferry finds on this machine, tries transfers on each transport, and "
        "says why for what does not work. Exit code 0 if all of it does, else 1.",
    )
    parser.add_argument(
        "--transport", choices=["local", "nixl"], action="append",
        help="only this one (may be repeated); without it, both have to work",
    )
    parser.add_argument("--nixl-library", metavar="PATH", help="libnixl_capi.so to use, instead of searching")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    options = parser.parse_args(arguments)

    transports = list(dict.fromkeys(options.transport or ["local", "nixl"]))
    checks = []
    for check in run(transports, options.nixl_library):
        checks.append(check)
        if not options.json:
            if len(checks) == 1 or checks[-2].section != check.section:
                print(("" if len(checks) == 1 else "\n") + check.section)
            _show(check.name, check.state, check.detail)
    failed = any(c.state == "failed" for c in checks)
    if options.json:
        print(json.dumps({"ok": not failed, "checks": [c.as_dict() for c in checks]}, indent=2))
    else:
        print("\n" + ("Something does not work; see above." if failed else "All of it works."))
    return int(failed)


def _show(name: str, state: str, detail: str) -> None:
    mark = f"{_MARKS[state]:<6}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        mark = f"\x1b[{_COLOURS[state]}m{mark}\x1b[0m"
    lines = [
        part for line in detail.splitlines()
        for part in textwrap.wrap(line, 92, break_long_words=False, break_on_hyphens=False) or [""]
    ]
    print(f"  {mark}  {name:<18}  {lines[0] if lines else ''}")
    for line in lines[1:]:
        print(f"{'':30}{line}")
    sys.stdout.flush()
