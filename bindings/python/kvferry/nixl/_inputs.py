"""Arguments as NIXL's bindings take them, checked and made into what C takes."""

from __future__ import annotations

from array import array
from ctypes import string_at
from typing import Any

from .. import _convert
from .._ffi import kvf_notification_list, lib
from ._descs import check_array, nixlRegDList, nixlXferDList
from ._errors import failure, nixlInvalidParamError


def text(value: Any) -> bytes:
    """A name, as what C++ would take as a string."""
    if not isinstance(value, (str, bytes, bytearray)):
        raise TypeError(f"a name is str or bytes, not {value!r}")
    encoded = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    if b"\0" in encoded:
        raise failure(nixlInvalidParamError, f"the name {value!r} contains a NUL")
    return encoded


def message(value: Any) -> bytes:
    """Bytes to send; text as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytearray):
        return bytes(value)
    raise TypeError(f"a message is bytes or str, not {value!r}")


def port_number(value: int) -> int:
    """A port number."""
    if not 0 <= value < 65536:
        raise failure(nixlInvalidParamError, f"port {value} is not one of 0 to 65535")
    return value


def registration(descs: Any) -> tuple[_convert.Table, int]:
    """A registration list as an array of ``kvf_reg_desc``, and its kind of memory."""
    if not isinstance(descs, nixlRegDList):
        raise TypeError(f"descs is a nixlRegDList, not {descs!r}")
    return _convert.reg_descs(descs._numbers, descs._extras), descs._kind.value


def xfer_numbers(descs: Any) -> array:
    """The numbers of a transfer list."""
    if not isinstance(descs, nixlXferDList):
        raise TypeError(f"descs is a nixlXferDList, not {descs!r}")
    return descs._numbers


def flat_table(descs: Any) -> _convert.Table:
    """A transfer list as an array of ``kvf_mem_desc``."""
    numbers = xfer_numbers(descs)
    return _convert.Table(numbers.buffer_info()[0], len(numbers) // 3, 3, numbers)


def strided_table(descs: Any) -> _convert.Table:
    """An N×5 numpy array as an array of ``kvf_strided_desc``."""
    if not _convert.is_ndarray(descs):
        raise TypeError(f"strided descs are an N×5 numpy array, not {descs!r}")
    if descs.ndim != 2 or descs.shape[1] != 5:
        raise ValueError("strided descs must be a Nx5 numpy array")
    check_array(descs)
    return _convert.Table(_convert.address(descs) if len(descs) else None, len(descs), 5, descs)


def messages(value: Any) -> list[bytes]:
    """The messages of one sender, copied."""
    if not isinstance(value, list) or not all(isinstance(m, bytes) for m in value):
        raise TypeError(f"the messages of a sender are a list of bytes, not {value!r}")
    return list(value)


def take_notifications(
    notif_map: dict[str, list[bytes]], arrived: kvf_notification_list
) -> dict[str, list[bytes]]:
    """Adds messages to a dictionary of sender → messages, frees them, and returns it."""
    try:
        for i in range(arrived.len):
            n = arrived.items[i]
            sender = getattr(n, "from").decode("utf-8", "surrogateescape")
            message = string_at(n.payload, n.payload_len) if n.payload_len else b""
            notif_map.setdefault(sender, []).append(message)
    finally:
        lib.kvf_notification_list_free(arrived)
    return notif_map
