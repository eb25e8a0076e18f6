"""kvferry moves the KV caches of large language models between inference engines.

    >>> import kvferry
    >>> memory = bytearray(1 << 20)
    >>> with kvferry.Agent("prefill", "local") as agent:
    ...     agent.register([kvferry.range_of(memory)])

:class:`Agent` is one rank's endpoint, over NIXL (``"nixl"``) or shared memory on one host
(``"local"``); :class:`SideChannel` and :func:`request_metadata` carry metadata between processes;
:mod:`kvferry.nixl` has the Python API of NIXL itself. Everything here calls ``libkvferry`` through
ctypes; see ``kvferry._library`` for where that is looked for.
"""

from __future__ import annotations

from . import errors
from ._convert import range_of
from ._ffi import lib as _lib
from .agent import Agent, BackendInfo, MemKind, Notification, Progress, SyncMode
from .errors import Error, status_name
from .log import set_log_callback, set_log_level
from .side_channel import Address, SideChannel, request_metadata
from .transfer import Cost, DescList, Op, State, Telemetry, Transfer, states

__version__: str = _lib.kvf_version().decode()

__all__ = [
    "Address",
    "Agent",
    "BackendInfo",
    "Cost",
    "DescList",
    "Error",
    "MemKind",
    "Notification",
    "Op",
    "Progress",
    "SideChannel",
    "State",
    "SyncMode",
    "Telemetry",
    "Transfer",
    "errors",
    "range_of",
    "request_metadata",
    "set_log_callback",
    "set_log_level",
    "states",
    "status_name",
]
