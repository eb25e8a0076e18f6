"""NIXL's descriptor lists: rows of (address, length, device), for transfers and registrations.

The numbers lie in one ``array('Q')``, three to a row, which is what C takes, so a list crosses the
boundary without being touched.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from .._convert import is_ndarray
from ._enums import nixl_mem_t
from ._errors import failure, nixlNotFoundError

Row = tuple[Any, ...]


def to_bytes(value: Any) -> bytes:
    """What C++ would take as a string: bytes, or text as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytearray):
        return bytes(value)
    # As pybind11 does for an element that has the wrong type.
    raise RuntimeError(f"Unable to cast {value!r} to a string")


def to_row(desc: Row) -> tuple[int, int, int]:
    """The first three elements of a tuple, as unsigned 64-bit integers."""
    row = desc[0], desc[1], desc[2]
    try:
        array("Q", row)
    except (TypeError, OverflowError) as e:
        raise RuntimeError(f"Unable to cast {desc!r} to a descriptor: {e}") from None
    return row


def need_tuple(desc: Any) -> None:
    if not isinstance(desc, tuple):
        raise TypeError(f"a descriptor is a tuple, not {type(desc).__name__}")


def numbers_of_array(descs: Any) -> array:
    """The numbers of an N×3 numpy array."""
    if descs.ndim != 2 or descs.shape[1] != 3:
        raise ValueError("descs must be a Nx3 numpy array")
    check_array(descs)
    numbers = array("Q")
    if len(descs):
        numbers.frombytes(memoryview(descs).cast("B"))
    return numbers


def check_array(descs: Any) -> None:
    """Whether a numpy array holds 64-bit integers as they lie in C."""
    if descs.dtype.kind not in "ui" or descs.dtype.itemsize != 8 or not descs.dtype.isnative:
        raise ValueError(f"descs must be a numpy array of uint64 or int64, not {descs.dtype}")
    if not descs.flags.c_contiguous:
        raise ValueError("descs must be a C-contiguous numpy array")


class _DescList:
    """What the lists have in common; a subclass says what a row has beside the numbers."""

    __slots__ = ("_kind", "_numbers", "_extras")
    __hash__ = None  # type: ignore[assignment]

    #: Elements of a tuple that describes a row.
    _WIDTH = 3
    #: Makes the fourth element of a row what it is stored as; None: there is none.
    _EXTRA: Callable[[Any], Any] | None = None
    #: The fourth element of rows that are given without one.
    _NO_EXTRA: Any = None

    def __init__(self, type: nixl_mem_t, descs: Any = 0):
        if not isinstance(type, nixl_mem_t):
            raise TypeError(f"a memory kind is a nixl_mem_t, not {type!r}")
        self._kind = type
        self._numbers = array("Q")
        self._extras: list[Any] = []
        if isinstance(descs, list):
            self._extend(descs)
        elif is_ndarray(descs):
            self._take_array(descs)
        elif isinstance(descs, int) and not isinstance(descs, bool):
            # A size to reserve in C++. There the rows are uninitialised; here they are zero.
            self._numbers = array("Q", bytes(24 * descs))
            self._extras = [self._NO_EXTRA] * descs if self._EXTRA else []
        else:
            raise TypeError(f"descs must be a list or a numpy array, not {descs!r}")

    def _take_array(self, descs: Any) -> None:
        self._numbers = numbers_of_array(descs)
        if self._EXTRA:
            self._extras = [self._NO_EXTRA] * len(descs)

    def _extend(self, descs: list) -> None:
        width = self._WIDTH
        for desc in descs:
            if not isinstance(desc, tuple):
                raise TypeError("Each descriptor must be a tuple when provided as a list")
            if len(desc) != width:
                raise ValueError(f"Each descriptor tuple must have exactly {width} elements")
        rows: Iterable[Row] = descs
        if self._EXTRA:
            rows = [desc[:3] for desc in descs]
            self._extras = [self._EXTRA(desc[3]) for desc in descs]
        try:
            self._numbers = array("Q", list(chain.from_iterable(rows)))
        except (TypeError, OverflowError) as e:
            raise RuntimeError(f"Unable to cast a descriptor: {e}") from None

    def getType(self) -> nixl_mem_t:
        """The kind of memory of all rows."""
        return self._kind

    def descCount(self) -> int:
        """Number of rows."""
        return len(self._numbers) // 3

    def isEmpty(self) -> bool:
        """Whether there are none."""
        return not self._numbers

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return (
            self._kind == other._kind
            and self._numbers == other._numbers
            and self._extras == other._extras
        )

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if index < 0:
            raise TypeError(f"an index is an unsigned integer, not {index}")
        if index >= self.descCount():
            raise IndexError(f"index {index} is outside a list of {self.descCount()}")
        return index

    def __getitem__(self, index: int) -> Row:
        at = self._position(index) * 3
        row = tuple(self._numbers[at : at + 3])
        return (*row, self._extras[index]) if self._EXTRA else row

    def __setitem__(self, index: int, desc: Row) -> None:
        at = self._position(index) * 3
        need_tuple(desc)
        row = to_row(desc)
        if self._EXTRA:
            self._extras[index] = self._EXTRA(desc[3])
        self._numbers[at : at + 3] = array("Q", row)

    def addDesc(self, desc: Row) -> None:
        """Appends a row."""
        need_tuple(desc)
        row = to_row(desc)
        if self._EXTRA:
            self._extras.append(self._EXTRA(desc[3]))
        self._numbers.extend(row)

    append = addDesc

    def remDesc(self, index: int) -> None:
        """Removes a row."""
        if not 0 <= index < self.descCount():
            raise IndexError(f"index {index} is outside a list of {self.descCount()}")
        del self._numbers[index * 3 : index * 3 + 3]
        if self._EXTRA:
            del self._extras[index]

    def clear(self) -> None:
        """Removes all rows."""
        self._numbers = array("Q")
        self._extras = []

    def print(self) -> None:
        """Writes the rows to standard output."""
        print(f"{type(self).__name__} of {self._kind.name}, {self.descCount()} descriptors:")
        for i in range(self.descCount()):
            print(f"  {i}: addr {self[i][0]:#x} len {self[i][1]} dev {self[i][2]}", *self[i][3:])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.descCount()} in {self._kind.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self._kind.value, self._numbers.tobytes(), self._extras)


def _unpickled(cls: type[_DescList], kind: int, numbers: bytes, extras: list[Any]) -> _DescList:
    made = cls(nixl_mem_t(kind))
    made._numbers.frombytes(numbers)
    if made.descCount() * 24 != len(numbers) or len(extras) != (made.descCount() if cls._EXTRA else 0):
        raise ValueError(f"{len(numbers)} bytes and {len(extras)} strings are not a {cls.__name__}")
    made._extras = list(map(cls._EXTRA, extras)) if cls._EXTRA else []
    return made


class _WithIndex(_DescList):
    __slots__ = ()

    def index(self, desc: Row) -> int:
        """The first row with these three numbers.

        Raises:
            nixlNotFoundError: there is none.
        """
        need_tuple(desc)
        wanted = array("Q", to_row(desc))
        if self._EXTRA:
            self._EXTRA(desc[3])
        for i in range(self.descCount()):
            if self._numbers[i * 3 : i * 3 + 3] == wanted:
                return i
        raise failure(nixlNotFoundError, f"the list has no descriptor {desc!r}")


class nixlXferDList(_WithIndex):
    """Ranges for transfers: (address, length, device).

    Args:
        type: Kind of memory.
        descs: A list of 3-tuples, an N×3 numpy array of uint64 or int64, or nothing.
    """

    __slots__ = ()


class nixlRegDList(_WithIndex):
    """Ranges for registrations: (address, length, device, metadata as bytes).

    Args:
        type: Kind of memory.
        descs: A list of 4-tuples, an N×3 numpy array (with no metadata), or nothing.
    """

    __slots__ = ()
    _WIDTH = 4
    _EXTRA = staticmethod(to_bytes)
    _NO_EXTRA = b""

    def trim(self) -> nixlXferDList:
        """The same ranges without the metadata."""
        made = nixlXferDList(self._kind)
        made._numbers = self._numbers[:]
        return made


class nixlRemoteDList(_DescList):
    """Ranges of several agents: (address, length, device, agent name)."""

    __slots__ = ()
    _WIDTH = 4
    _EXTRA = staticmethod(lambda name: to_bytes(name).decode("utf-8", "surrogateescape"))
    _NO_EXTRA = ""

    def _take_array(self, descs: Any) -> None:
        raise TypeError("descs must be a list of (address, length, device, agent name)")
