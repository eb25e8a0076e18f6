"""When the library's objects end: at the latest with the Python objects that hold them.

Three things make that less simple than a ``__del__``. A child of ``fork()`` has copies of all Python
objects but none of the library's threads, and must leave the originals' objects alone. At
interpreter exit agents end first, so that a handle found later is stale, which is no fault. And the
collector may run inside the log callback, from where the library must not be called: what it finds
there ends a little later.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

End = Callable[[int], int]

# Counts the forks between the first process and this one.
_generation = 0
_calling_back = threading.local()
_postponed: list[tuple[End, int, int]] = []


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


def generation() -> int:
    """What an object remembers of the process it was made in."""
    return _generation


@contextmanager
def callback() -> Iterator[None]:
    """Python code that the library calls runs in here."""
    _calling_back.depth = getattr(_calling_back, "depth", 0) + 1
    try:
        yield
    finally:
        _calling_back.depth -= 1


def end(function: End, handle: int, made_in: int) -> int:
    """Calls ``function(handle)`` if that is allowed here and now, and returns its status."""
    if made_in != _generation:
        return 0
    if getattr(_calling_back, "depth", 0):
        _postponed.append((function, handle, made_in))
        return 0
    while _postponed:
        try:
            waiting, its_handle, its_process = _postponed.pop()
        except IndexError:  # another thread was faster
            break
        if its_process == _generation:
            waiting(its_handle)
    return function(handle)


def ends_with(owner: Any, function: End, handle: int) -> weakref.finalize:
    """Ends ``handle`` when ``owner`` is collected or the interpreter exits."""
    return weakref.finalize(owner, end, function, handle, _generation)
