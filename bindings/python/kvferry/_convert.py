"""From Python values to what C takes, and back. Copies happen only where they are named."""

from __future__ import annotations

import ctypes
import sys
from array import array
from collections.abc import Iterable, Sequence
from ctypes import c_char, c_char_p
from typing import Any

from ._ffi import kvf_buffer, kvf_param, kvf_param_list, kvf_reg_desc, kvf_string_list, lib
from .errors import InvalidArgumentError

# Typing only: a range is (addr, len) or (addr, len, device).
Ranges = Any


def text(value: str | bytes, what: str) -> bytes:
    """A name as NUL-terminated UTF-8. ctypes adds the NUL; one inside would cut the name short."""
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as e:
            raise InvalidArgumentError(f"{what} {value!r} is not UTF-8: {e}") from None
    elif not isinstance(value, bytes):
        raise TypeError(f"{what} must be str or bytes, not {type(value).__name__}")
    if b"\0" in value:
        raise InvalidArgumentError(f"{what} {value!r} contains a NUL")
    return value


def optional_text(value: str | bytes | None, what: str) -> bytes | None:
    return None if value is None else text(value, what)


def names(values: Iterable[str | bytes], what: str) -> tuple[Any, int]:
    """An array of strings; keeps its strings alive."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{what} must be a sequence of names, not one name")
    encoded = [text(v, what) for v in values]
    if not encoded:
        return None, 0
    return (c_char_p * len(encoded))(*encoded), len(encoded)


def payload(value: bytes | bytearray | memoryview | str, what: str) -> tuple[bytes, int]:
    """Bytes to send. Text is sent as UTF-8."""
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, bytes):
        try:
            value = bytes(memoryview(value))
        except TypeError:
            raise TypeError(f"{what} must be bytes or str, not {type(value).__name__}") from None
    return value, len(value)


def range_of(buffer: Any) -> tuple[int, int, int]:
    """``(address, length, device 0)`` of the memory of a writable buffer.

    Takes a bytearray, array, mmap, numpy array, or anything else with a writable, contiguous buffer.
    The caller keeps the object, and its size, as it is while the range is in use.
    """
    view = memoryview(buffer)
    if view.readonly:
        raise InvalidArgumentError(f"the buffer of {type(buffer).__name__} is read-only")
    if not view.c_contiguous:
        raise InvalidArgumentError(f"the buffer of {type(buffer).__name__} is not contiguous")
    if view.nbytes == 0:
        return 0, 0, 0
    return ctypes.addressof(c_char.from_buffer(buffer)), view.nbytes, 0


def is_ndarray(value: object) -> bool:
    """Whether it is a numpy array. It can only be one if numpy has been imported by somebody."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def address(ndarray: Any) -> int:
    """Where the elements of a numpy array are."""
    return ndarray.__array_interface__["data"][0]


class Table:
    """Rows of 64-bit integers: an address, a number of rows, and what keeps them alive."""

    __slots__ = ("pointer", "rows", "columns", "keep")

    def __init__(self, pointer: Any, rows: int, columns: int, keep: object):
        self.pointer, self.rows, self.columns, self.keep = pointer, rows, columns, keep


def table(ranges: Ranges, what: str) -> Table:
    """Ranges as C takes them.

    An N×3 or N×5 numpy array of uint64 or int64 in C order is taken where it lies. A sequence of
    tuples of 2 (device 0), 3 or 5 integers is copied.
    """
    if isinstance(ranges, Table):
        return ranges
    if is_ndarray(ranges):
        return _ndarray_table(ranges, what)
    rows = ranges if isinstance(ranges, (list, tuple)) else list(ranges)
    if rows and isinstance(rows[0], int):
        raise TypeError(f"{what} must be a sequence of (address, length, device), not one of them")
    width = len(rows[0]) if rows else 3
    columns = 3 if width == 2 else width
    if columns not in (3, 5):
        raise InvalidArgumentError(
            f"{what}[0] has {width} fields; a range has 2, 3 or (strided) 5"
        )
    flat = array("Q")
    for i, row in enumerate(rows):
        if len(row) != width:
            raise InvalidArgumentError(f"{what}[{i}] has {len(row)} fields, {what}[0] has {width}")
        try:
            flat.extend(row)
            if width == 2:
                flat.append(0)
        except OverflowError:
            raise InvalidArgumentError(f"{what}[{i}] is {row!r}: not all of 0 to 2**64-1") from None
    return Table(flat.buffer_info()[0] if rows else None, len(rows), columns, flat)


def _ndarray_table(ranges: Any, what: str) -> Table:
    if ranges.ndim != 2 or ranges.shape[1] not in (3, 5):
        raise InvalidArgumentError(f"{what} has shape {ranges.shape}; it must be N×3 or N×5")
    if ranges.dtype.kind not in "ui" or ranges.dtype.itemsize != 8 or not ranges.dtype.isnative:
        raise InvalidArgumentError(f"{what} has dtype {ranges.dtype}; it must be uint64 or int64")
    if not ranges.flags.c_contiguous:
        raise InvalidArgumentError(f"{what} is not C-contiguous")
    rows, columns = ranges.shape
    return Table(address(ranges) if rows else None, rows, columns, ranges)


def registrations(ranges: Ranges, what: str, metas: Sequence[bytes | str] | None = None) -> Table:
    """Ranges as an array of ``kvf_reg_desc``; ``metas`` has one entry for each, or is None."""
    plain = table(ranges, what)
    if plain.columns != 3:
        raise InvalidArgumentError(f"{what} has {plain.columns} columns; it must have 3")
    if metas is not None and len(metas) != plain.rows:
        raise InvalidArgumentError(f"{len(metas)} metadata strings for {plain.rows} ranges")
    if not plain.rows:
        return Table(None, 0, 5, None)
    columns = array("Q")
    columns.frombytes(ctypes.string_at(plain.pointer, plain.rows * 24))
    return reg_descs(columns, [payload(m, "metadata")[0] for m in metas] if metas else None)


def reg_descs(columns: array, metas: Sequence[bytes] | None) -> Table:
    """An array of ``kvf_reg_desc`` from addresses, lengths and devices, and metadata if any."""
    rows = len(columns) // 3
    if not rows:
        return Table(None, 0, 5, None)
    width = ctypes.sizeof(kvf_reg_desc) // 8
    flat = array("Q", bytes(rows * ctypes.sizeof(kvf_reg_desc)))
    for i in range(3):
        flat[i::width] = columns[i::3]
    keep: list[object] = [flat]
    if metas is not None and any(metas):
        pointers = (c_char_p * rows)(*metas)
        keep.append(pointers)
        flat[3::width] = array("Q", bytes(pointers))
        flat[4::width] = array("Q", map(len, metas))
    return Table(flat.buffer_info()[0], rows, width, keep)


def indices(values: Any, what: str) -> tuple[Any, int, object]:
    """Indices as an address, their number, and what keeps them alive.

    A numpy array of int32 or uint32 in C order is taken where it lies; anything else is copied.
    """
    if is_ndarray(values):
        if values.ndim != 1:
            raise InvalidArgumentError(f"{what} has {values.ndim} dimensions; it must have 1")
        if values.dtype.kind in "ui":
            if values.dtype.itemsize == 4 and values.flags.c_contiguous and values.dtype.isnative:
                return address(values), len(values), values
            values = values.tolist()
    try:
        made = values if isinstance(values, array) and values.typecode == "i" else array("i", values)
    except (TypeError, OverflowError) as e:
        raise InvalidArgumentError(f"{what} must be integers of 32 bits: {e}") from None
    return made.buffer_info()[0], len(made), made


# ---------------------------------------------------------------------------- from C


def take_buffer(buffer: kvf_buffer) -> bytes:
    """Copies and frees."""
    try:
        return ctypes.string_at(buffer.data, buffer.len) if buffer.len else b""
    finally:
        lib.kvf_buffer_free(buffer)


def take_strings(strings: kvf_string_list) -> list[str]:
    """Copies and frees."""
    try:
        return [strings.items[i].decode("utf-8", "replace") for i in range(strings.len)]
    finally:
        lib.kvf_string_list_free(strings)


def params_dict(params: kvf_param_list) -> dict[str, str]:
    """Copies; the owner of the list frees it."""
    return {
        params.items[i].key.decode("utf-8", "replace"): params.items[i].value.decode("utf-8", "replace")
        for i in range(params.len)
    }


def take_params(params: kvf_param_list) -> dict[str, str]:
    """Copies and frees."""
    try:
        return params_dict(params)
    finally:
        lib.kvf_param_list_free(params)


def params_array(params: dict[str, str] | None) -> tuple[Any, int]:
    """An array of ``kvf_param``; keeps its strings alive."""
    if not params:
        return None, 0
    made = (kvf_param * len(params))()
    for slot, (key, value) in zip(made, params.items()):
        slot.key, slot.value = text(key, "parameter name"), text(str(value), f"parameter {key}")
    return made, len(params)


def kinds_of(mask: int) -> list[int]:
    """The memory kinds whose bits are set."""
    return [kind for kind in range(32) if mask >> kind & 1]


def milliseconds(seconds: float | None, what: str) -> int:
    """A time limit; None is for ever. Rounded up, so that a small one does not become none."""
    if seconds is None:
        return 2**63
    if not seconds >= 0:
        raise InvalidArgumentError(f"{what} is {seconds} s; it must not be negative")
    return min(-int(-seconds * 1000 // 1), 2**63)
