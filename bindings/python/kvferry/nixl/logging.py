"""The logger of the drop-in: ``nixl``, at the level that ``NIXL_LOG_LEVEL`` names.

As with NIXL, records go to standard output. Unlike NIXL, nothing is configured if the program has
given the logger ``nixl`` a handler of its own.
"""

from __future__ import annotations

import logging
import os
import sys

_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}
_configured = False


def setup_logging() -> None:
    """Configures the logger ``nixl`` once; called by :func:`get_logger`."""
    global _configured
    if _configured:
        return
    _configured = True
    root = logging.getLogger("nixl")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s NIXL %(levelname)-7s %(filename)s:%(lineno)d %(message)s",
            "%Y-%m-%d %H:%M:%S",
        )
    )
    root.addHandler(handler)
    root.propagate = False
    wanted = os.environ.get("NIXL_LOG_LEVEL", "")
    root.setLevel(_LEVELS.get(wanted.upper(), logging.INFO))
    if wanted and wanted.upper() not in _LEVELS:
        root.warning("NIXL_LOG_LEVEL %r is not one of %s", wanted, ", ".join(_LEVELS))


def get_logger(name: str) -> logging.Logger:
    """The logger ``nixl.<name>``; leading underscores of the name do not count."""
    setup_logging()
    return logging.getLogger(f"nixl.{name.lstrip('_')}")
