"""The library's log: how much of it, and where it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from . import _lifetime
from ._ffi import CONSTANTS, kvf_free_fn, kvf_log_fn, lib
from .errors import check

__all__ = ["set_log_callback", "set_log_level"]

_LEVELS = {
    name.removeprefix("KVF_LOG_").lower(): number
    for name, number in CONSTANTS.items()
    if name.startswith("KVF_LOG_")
}

#: The library's levels as those of :mod:`logging`, which has none for trace.
PYTHON_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG, 5: 5}

# The thunk in use. ctypes frees a thunk with its last reference, and the library calls it until it
# is replaced.
_installed: object = None


def set_log_level(level: str | int) -> None:
    """``"off"``, ``"error"``, ``"warn"``, ``"info"``, ``"debug"`` or ``"trace"``.

    Until it is called the environment variable ``KVF_LOG`` decides, and ``warn`` if that is unset.
    """
    if isinstance(level, str):
        if level.lower() not in _LEVELS:
            raise ValueError(f"log level {level!r} is not known; there are {', '.join(_LEVELS)}")
        level = _LEVELS[level.lower()]
    check(lib.kvf_log_set_level(level))


def set_log_callback(callback: Callable[[int, str, str], None] | None) -> None:
    """Sends the log to ``callback(level, target, message)``; None is standard error again.

    Levels are those of :mod:`logging`. The callback is called from any thread and must not call back
    into kvferry; what it raises is reported by :func:`sys.unraisablehook` and otherwise ignored.
    """
    global _installed
    if callback is None:
        check(lib.kvf_log_set_callback(kvf_log_fn(), None, kvf_free_fn()))
        _installed = None
        return

    def record(_env: int | None, level: int, target: bytes, message: bytes) -> None:
        with _lifetime.callback():
            callback(
                PYTHON_LEVELS.get(level, logging.INFO),
                target.decode("utf-8", "replace"),
                message.decode("utf-8", "replace"),
            )

    thunk = kvf_log_fn(record)
    check(lib.kvf_log_set_callback(thunk, None, kvf_free_fn()))
    _installed = thunk
