"""The calls of the hot path: make, post, state, release, and looking for notifications.

ctypes converts every argument of a declared function through a class of its own; that costs as much
as the call. These are the same functions once more, without declared argument types: arguments are
ctypes objects that exist already, ``bytes``, None, or integers that fit into a C ``int``, and go
through as they are. The declarations proper are in ``kvferry._ffi``; who calls something here must
pass exactly what stands there.
"""

from __future__ import annotations

import threading
from array import array
from ctypes import byref, c_int32, c_size_t
from struct import Struct
from struct import error as StructError
from typing import Any

from .._convert import is_ndarray
from .._ffi import lib


def _undeclared(name: str) -> Any:
    function = lib[name]  # not lib.name: that is the declared one
    function.restype = c_int32
    return function


make = _undeclared("kvf_transfer_make")
post = _undeclared("kvf_transfer_post")
state = _undeclared("kvf_transfer_state")
release = _undeclared("kvf_transfer_release")
notification_count = _undeclared("kvf_agent_notification_count")



class _Counts(dict):
    """Number of bytes → the number of 32-bit integers in them, as an argument. Small ones are kept."""

    def __missing__(self, nbytes: int) -> c_size_t:
        count = c_size_t(nbytes // 4)
        if nbytes <= 4096:
            self[nbytes] = count
        return count


count_in = _Counts()
NONE = c_size_t(0)


class _Local(threading.local):
    """Where the calls of a thread leave a state: an integer, and the reference to it."""

    def __init__(self) -> None:
        state = c_int32()
        self.state = state, byref(state)


local = _Local()

# Below this packing is faster than making an array object.
_PACKED = 33
_PACK = [Struct(f"={n}i").pack for n in range(_PACKED)]


def indices(values: Any) -> bytes:
    """Indices as the bytes of 32-bit integers. The copy costs less than asking for an address.

    Takes what NIXL takes: integers in a list or another iterable, or a one-dimensional numpy array
    of numbers, and raises what NIXL raises for anything else.
    """
    if type(values) is list:
        n = len(values)
        if n < _PACKED:
            try:
                return _PACK[n](*values)
            except StructError as e:
                raise RuntimeError(f"Unable to cast {values!r} to indices: {e}") from None
    elif is_ndarray(values):
        return _ndarray_indices(values)
    elif isinstance(values, (bytes, bytearray, str)):
        raise RuntimeError(f"Unable to cast {values!r} to indices")
    try:
        return array("i", values).tobytes()
    except (TypeError, OverflowError) as e:
        raise RuntimeError(f"Unable to cast {type(values).__name__} to indices: {e}") from None


def _ndarray_indices(values: Any) -> bytes:
    if values.ndim != 1:
        raise ValueError("indices numpy array must be 1D")
    dtype = values.dtype
    if dtype.char not in "iI" or not dtype.isnative:
        # As NIXL does: numbers of another type are cut to 32 bits.
        values = values.astype("=i8", casting="unsafe").astype("=u4")
    return values.tobytes()
