"""Finds and opens libkvferry.

In this order, and the first that is there counts:

1. the file named by the environment variable ``KVF_LIBRARY``;
2. ``libkvferry.so`` inside this package, where a wheel puts it;
3. ``libkvferry.so.0`` and ``libkvferry.so`` by the system's loader (``LD_LIBRARY_PATH``,
   ``ldconfig``).

Nothing is searched beyond that, and a library that is named explicitly but cannot be used is an
error, not a reason to take another one.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

#: The binary interface that the declarations in ``_ffi`` describe (``KVF_ABI_VERSION``).
ABI_VERSION = 0

_PACKAGED = Path(__file__).with_name("libkvferry.so")
_SYSTEM_NAMES = (f"libkvferry.so.{ABI_VERSION}", "libkvferry.so")


class LibraryError(ImportError):
    """libkvferry was not found, could not be loaded, or is of another ABI version."""


def _open(path: str, why: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as e:
        raise LibraryError(f"cannot load {path} ({why}): {e}") from e


def load() -> ctypes.CDLL:
    """Opens the library and checks its ABI version."""
    library = _find()
    try:
        version_of = library.kvf_abi_version
    except AttributeError:
        raise LibraryError(f"{library._name} is not libkvferry: it has no kvf_abi_version") from None
    version_of.argtypes, version_of.restype = (), ctypes.c_uint32
    found = version_of()
    if found != ABI_VERSION:
        raise LibraryError(
            f"{library._name} has ABI version {found}, but this Python package needs "
            f"{ABI_VERSION}: install package and library of the same release"
        )
    return library


def _find() -> ctypes.CDLL:
    explicit = os.environ.get("KVF_LIBRARY")
    if explicit:
        return _open(explicit, "from KVF_LIBRARY")
    if _PACKAGED.exists():
        return _open(str(_PACKAGED), "inside the package")
    failures = []
    for name in _SYSTEM_NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as e:
            failures.append(str(e))
    raise LibraryError(
        "libkvferry was not found. Looked at: KVF_LIBRARY (not set); "
        f"{_PACKAGED} (absent); the system's loader ({'; '.join(failures)}). "
        "Install the wheel, or set KVF_LIBRARY to the path of libkvferry.so"
    )
