"""The calls of the hot path: make, post, state, release, and looking for notifications.

ctypes converts every argument of a declared function through a class of its own; that costs as much
as the call. These are the same functions once more, without declared argument types: arguments are
ctypes objects that exist already, ``bytes``, None, or integers that fit into a C ``int``, and go
through as they are. The declarations proper are in ``kvferry._ffi``; who calls something here must
pass exactly what stands there.
"""

from __future__ import annotations

import ctypes
from array import array
from ctypes import c_int32, c_size_t, c_void_p
from struct import Struct
from struct import error as StructError
from typing import Any

from .._convert import address, is_ndarray
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

# Sizes that occur again and again, as ctypes objects.
_SIZES = [c_size_t(n) for n in range(257)]


def size(n: int) -> c_size_t:
    """A length as an argument."""
    return _SIZES[n] if n <= 256 else c_size_t(n)


# Up to here packing is faster than making an array object.
_FEW = 32
_PACK = [Struct(f"={n}i").pack for n in range(_FEW + 1)]
# Below this a copy is faster than asking numpy for the address.
_SMALL_ARRAY = 16 << 10


def indices(values: Any) -> tuple[Any, Any, Any]:
    """Indices as a pointer, a length, and what must live until the call is over.

    Takes what NIXL takes: integers in a list or another iterable, or a one-dimensional numpy array
    of numbers, and raises what NIXL raises for anything else.
    """
    if type(values) is list:
        n = len(values)
        if n <= _FEW:
            try:
                packed = _PACK[n](*values)
            except StructError as e:
                raise RuntimeError(f"Unable to cast {values!r} to indices: {e}") from None
            return packed, _SIZES[n], None
    elif is_ndarray(values):
        return _ndarray_indices(values)
    elif isinstance(values, (bytes, bytearray, str)):
        raise RuntimeError(f"Unable to cast {values!r} to indices")
    try:
        made = array("i", values)
    except (TypeError, OverflowError) as e:
        raise RuntimeError(f"Unable to cast {type(values).__name__} to indices: {e}") from None
    return c_void_p(made.buffer_info()[0]), size(len(made)), made


def _ndarray_indices(values: Any) -> tuple[Any, Any, Any]:
    if values.ndim != 1:
        raise ValueError("indices numpy array must be 1D")
    dtype = values.dtype
    if dtype.char not in "iI" or not dtype.isnative:
        # As NIXL does: numbers of another type are cut to 32 bits.
        values = values.astype("=i8", casting="unsafe").astype("=u4")
    if values.nbytes < _SMALL_ARRAY or not values.flags.c_contiguous:
        return values.tobytes(), size(len(values)), None
    return c_void_p(address(values)), size(len(values)), values


byref = ctypes.byref
