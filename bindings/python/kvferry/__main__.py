"""``python -m kvferry COMMAND``: what kvferry can tell an operator."""

from __future__ import annotations

import importlib
import sys

#: command → (module with ``main(arguments) -> exit code``, what it does)
COMMANDS = {
    "explain": ("kvferry.explain", "who reads what from whom between two engines, as a table and a drawing"),
    "doctor": ("kvferry.doctor", "what kvferry finds on this machine, and whether transfers work"),
}


def main(arguments: list[str]) -> int:
    """Runs a command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from . import __version__

        print(f"kvferry {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"python -m kvferry: there is no command {arguments[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])


def usage() -> str:
    """The commands, one a line."""
    lines = ["usage: python -m kvferry COMMAND [OPTION...]", ""]
    lines += [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m kvferry COMMAND --help tells its options."])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # the reader of the output has seen enough
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
