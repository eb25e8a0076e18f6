"""NIXL's enumerations, with the numbers of ``nixl_types.h``.

NIXL's own are made by pybind11: they are not integers, but convert to one, and those that come
from plain C enums also compare equal to one. :class:`enum.Enum` gives the rest.
"""

from __future__ import annotations

import enum


class _Convertible(enum.Enum):
    """A member converts to its number, and any number has a member."""

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    @classmethod
    def _missing_(cls, value: object) -> _Convertible | None:
        if not isinstance(value, int):
            return None
        unknown = object.__new__(cls)
        unknown._name_, unknown._value_ = "???", value
        return unknown


class _Comparable(_Convertible):
    """A member also equals its number."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, enum.Enum):
            other = other.value if type(other) is type(self) else None
        return self.value == other

    def __hash__(self) -> int:
        return hash(self.value)


class nixl_mem_t(_Comparable):
    """Kinds of memory."""

    DRAM_SEG = 0
    VRAM_SEG = 1
    BLK_SEG = 2
    OBJ_SEG = 3
    FILE_SEG = 4


class nixl_xfer_op_t(_Comparable):
    """Directions of a transfer."""

    NIXL_READ = 0
    NIXL_WRITE = 1


class nixl_status_t(_Comparable):
    """Outcomes that calls return; those that are errors are raised instead."""

    NIXL_IN_PROG = 1
    NIXL_SUCCESS = 0
    NIXL_ERR_NOT_POSTED = -1
    NIXL_ERR_INVALID_PARAM = -2
    NIXL_ERR_BACKEND = -3
    NIXL_ERR_NOT_FOUND = -4
    NIXL_ERR_MISMATCH = -5
    NIXL_ERR_NOT_ALLOWED = -6
    NIXL_ERR_REPOST_ACTIVE = -7
    NIXL_ERR_UNKNOWN = -8
    NIXL_ERR_NOT_SUPPORTED = -9


class nixl_thread_sync_t(_Convertible):
    """How calls from several threads are serialised."""

    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1
    NIXL_THREAD_SYNC_RW = 2
    NIXL_THREAD_SYNC_DEFAULT = 0


class nixl_cost_t(_Convertible):
    """How an estimate was arrived at."""

    NIXL_COST_ANALYTICAL_BACKEND = 0
