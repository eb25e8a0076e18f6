"""kvferry moves the KV caches of large language models between inference engines.

    >>> import kvferry
    >>> memory = bytearray(1 << 20)
    >>> with kvferry.Agent("prefill", "local") as agent:
    ...     agent.register([kvferry.range_of(memory)])

:class:`Agent` is one rank's endpoint, over NIXL (``"nixl"``) or shared memory on one host
(``"local"``); :class:`Layout` describes a rank's KV cache, :class:`Plan` says which bytes of which
rank go where, and :class:`Queue` moves them in the background; :class:`Scheduler` is the half of a
connector that keeps an engine's books of what is fetched and kept for whom; :class:`SideChannel` and
:func:`request_metadata` carry metadata between processes; :mod:`kvferry.nixl` has the Python API of
NIXL itself. Everything here calls ``libkvferry`` through ctypes; see ``kvferry._library`` for where
that is looked for.
"""

from __future__ import annotations

from . import errors
from ._convert import range_of
from ._ffi import lib as _lib
from .agent import Agent, BackendInfo, MemKind, Notification, Progress, SyncMode
from .errors import Error, status_name
from .kv_cache import Content, KvCache, KvState, KvTensor, SlabOrder, StateKind
from .layout import (
    ConvOrder,
    DenseLayers,
    Group,
    GroupKind,
    KvPlacement,
    LatentLayers,
    Layout,
    PageOrder,
    Parallel,
    Part,
    Region,
    Role,
    StateLayers,
    SubProjection,
    shard,
)
from .log import set_log_callback, set_log_level
from .plan import (
    Coverage,
    Direction,
    Expansion,
    GroupBlocks,
    GroupGeometry,
    GroupSide,
    Lane,
    LaneInner,
    LaneSide,
    Peer,
    PeerRole,
    Plan,
    Range,
    RunStats,
)
from .queue import Completion, Queue, QueueStats
from .scheduler import (
    Finish,
    Finished,
    Keep,
    Mode,
    RequestBlocks,
    Scheduler,
    SchedulerStats,
    TransferGroup,
)
from .side_channel import (
    Address,
    ClockSample,
    RankAnswer,
    SideChannel,
    request_metadata,
    request_rank,
)
from .transfer import Cost, DescList, Op, State, Telemetry, Transfer, states
from .worker import Worker, WorkerResults, WorkerState

__version__: str = _lib.kvf_version().decode()

__all__ = [
    "Address",
    "Agent",
    "BackendInfo",
    "Completion",
    "Content",
    "ConvOrder",
    "Cost",
    "Coverage",
    "DenseLayers",
    "DescList",
    "Direction",
    "Error",
    "Expansion",
    "Finish",
    "Finished",
    "Group",
    "GroupBlocks",
    "GroupGeometry",
    "GroupKind",
    "GroupSide",
    "Keep",
    "KvCache",
    "KvPlacement",
    "KvState",
    "KvTensor",
    "Lane",
    "LaneInner",
    "LaneSide",
    "LatentLayers",
    "Layout",
    "MemKind",
    "Mode",
    "Notification",
    "Op",
    "PageOrder",
    "Parallel",
    "Part",
    "Peer",
    "PeerRole",
    "Plan",
    "Progress",
    "Queue",
    "QueueStats",
    "Range",
    "Region",
    "RequestBlocks",
    "Role",
    "RunStats",
    "Scheduler",
    "SchedulerStats",
    "SideChannel",
    "SlabOrder",
    "State",
    "StateKind",
    "StateLayers",
    "SubProjection",
    "SyncMode",
    "Telemetry",
    "Transfer",
    "TransferGroup",
    "Worker",
    "WorkerResults",
    "WorkerState",
    "errors",
    "range_of",
    "request_metadata",
    "request_rank",
    "set_log_callback",
    "set_log_level",
    "shard",
    "states",
    "status_name",
]
