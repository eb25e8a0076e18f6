"""The calls of the hot path: make, post, state, release, and looking for notifications.

ctypes converts every argument of a declared function through a class of its own; that costs as much
as the call. These are the same functions once more, without declared argument types: arguments are
ctypes objects that exist already, ``bytes``, None, or integers that fit into a C ``int``, and go
through as they are. The declarations proper are in ``kvferry._ffi``; who calls something here must
pass exactly what stands there.
"""

from __future__ import annotations

import sys
from array import array
from ctypes import c_int32, c_size_t
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
notifications = _undeclared("kvf_agent_notifications")

# Numbers of elements that occur again and again, as ctypes objects.
_FEW = 256
_COUNTS = [c_size_t(n) for n in range(_FEW + 1)]


def count(n: int) -> c_size_t:
    """A number of elements as an argument."""
    return _COUNTS[n] if n <= _FEW else c_size_t(n)


# Below this packing is faster than making an array object.
_PACKED = 33
_PACK = [Struct(f"={n}i").pack for n in range(_PACKED)]
# numpy's int32, once numpy has been seen: dtypes of this kind are one object, and comparing it
# stands for a dozen checks.
_int32: object = object()


def indices(values: Any) -> tuple[bytes, c_size_t]:
    """Indices as 32-bit integers, and their number. The copy costs less than asking for an address.

    Takes what NIXL takes: integers in a list or another iterable, or a one-dimensional numpy array
    of numbers, and raises what NIXL raises for anything else.
    """
    if type(values) is list:
        n = len(values)
        if n < _PACKED:
            try:
                return _PACK[n](*values), _COUNTS[n]
            except StructError as e:
                raise RuntimeError(f"Unable to cast {values!r} to indices: {e}") from None
    elif getattr(values, "dtype", None) is _int32 and values.ndim == 1:
        n = len(values)
        return values.tobytes(), _COUNTS[n] if n <= _FEW else c_size_t(n)
    elif is_ndarray(values):
        return _ndarray_indices(values)
    elif isinstance(values, (bytes, bytearray, str)):
        raise RuntimeError(f"Unable to cast {values!r} to indices")
    try:
        made = array("i", values)
    except (TypeError, OverflowError) as e:
        raise RuntimeError(f"Unable to cast {type(values).__name__} to indices: {e}") from None
    return made.tobytes(), count(len(made))


def _ndarray_indices(values: Any) -> tuple[bytes, c_size_t]:
    global _int32
    _int32 = sys.modules["numpy"].dtype("=i4")
    if values.ndim != 1:
        raise ValueError("indices numpy array must be 1D")
    dtype = values.dtype
    if dtype.char not in "iI" or not dtype.isnative:
        # As NIXL does: numbers of another type are cut to 32 bits.
        values = values.astype("=i8", casting="unsafe").astype("=u4")
    return values.tobytes(), count(len(values))
