"""Memory for tests, with the names of ``nixl._utils``: NIXL's examples allocate with it."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)
_libc.malloc.restype, _libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_libc.free.restype, _libc.free.argtypes = None, (ctypes.c_void_p,)

_BA = 0xBA


def malloc_passthru(size: int) -> int:
    """The address of ``size`` new bytes."""
    address = _libc.malloc(size)
    if not address:
        raise MemoryError(f"malloc of {size} bytes")
    return address


def free_passthru(address: int) -> None:
    """Frees what :func:`malloc_passthru` gave."""
    _libc.free(address)


def ba_buf(address: int, size: int) -> None:
    """Fills memory with the byte 0xBA."""
    ctypes.memset(address, _BA, size)


def verify_transfer(first: int, second: int, size: int) -> None:
    """Raises AssertionError unless both ranges hold the same bytes."""
    a, b = ctypes.string_at(first, size), ctypes.string_at(second, size)
    if a != b:
        at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
        raise AssertionError(f"byte {at} of {size} is {a[at]:#04x} in one and {b[at]:#04x} in the other")
