"""Who copies which bytes from whom, between one local rank and a remote engine."""

from __future__ import annotations

import enum
import json
from array import array
from collections.abc import Iterable, Sequence
from ctypes import addressof, c_uint64, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    kvf_coverage,
    kvf_expand_stats,
    kvf_group_geometry,
    kvf_group_side,
    kvf_lane,
    kvf_lane_inner,
    kvf_lane_side,
    kvf_peer,
    kvf_plan_custom,
    kvf_plan_options,
    kvf_plan_tables,
    kvf_range,
    kvf_range_list,
    lib,
)
from .agent import MemKind, member
from .layout import Arrays, GroupKind, Layout, describe, rows

__all__ = [
    "Coverage",
    "Direction",
    "Expansion",
    "GroupBlocks",
    "GroupGeometry",
    "GroupSide",
    "Lane",
    "LaneInner",
    "LaneSide",
    "Peer",
    "PeerRole",
    "Plan",
    "Range",
    "RunStats",
]


class Direction(enum.IntEnum):
    """Which way the bytes go, seen from the local rank."""

    PULL = 0  #: It reads: it is the consumer.
    PUSH = 1  #: It writes: it is the producer.


class PeerRole(enum.IntEnum):
    """What the local rank has to do with a remote rank."""

    IDLE = 0  #: Nothing: another local rank deals with it.
    TRANSFER = 1  #: Bytes are copied, and it is notified when they are in.
    NOTIFY_ONLY = 2  #: No bytes; but it waits to hear that its blocks are no longer wanted.


class Peer(NamedTuple):
    """A remote rank."""

    tp_rank: int
    pp_rank: int = 0
    role: PeerRole = PeerRole.TRANSFER
    #: How many local ranks notify it about one request (pull) or write to it (push); 0 is unknown.
    notifiers: int = 0


class GroupSide(NamedTuple):
    """One side's block ids of a group."""

    tokens_per_block: int
    block_count: int
    kernel_blocks: int = 1
    dcp_size: int = 1
    dcp_interleave: int = 0
    #: Groups of one side with the same number share their memory, block id by block id.
    pool: int = 0


class GroupGeometry(NamedTuple):
    """A group on both sides."""

    kind: GroupKind
    local: GroupSide
    remote: GroupSide
    window: int = 0
    #: Tokens that a lane copies at a time; follows from the rest.
    atom_tokens: int = 0


class LaneSide(NamedTuple):
    """One side of a lane: atom ``a`` of page ``p`` is at ``base + p * stride + a * sub_stride``."""

    base: int
    stride: int
    sub_stride: int = 0
    mem: MemKind = MemKind.DRAM
    device: int = 0


class LaneInner(NamedTuple):
    """A repetition inside a lane."""

    count: int = 1
    local_stride: int = 0
    remote_stride: int = 0


class Lane(NamedTuple):
    """A strided copy, made for every pair of atoms of its group."""

    peer: int
    group: int
    len: int
    local: LaneSide
    remote: LaneSide
    inner: tuple[LaneInner, LaneInner] = (LaneInner(), LaneInner())
    local_shard: int = 0
    remote_shard: int = 0


class GroupBlocks(NamedTuple):
    """The block ids of one group of a request, in the order of their tokens.

    Lists, or numpy arrays of int32 or uint32, which are taken where they lie. A list may begin later
    than the request: the consumer lists only what it does not have yet. Where it begins is stated
    here, or follows from the number of tokens; or else both lists end together and the producer's
    begins with the first token.
    """

    local: Any
    remote: Any
    #: How many blocks of the request come before the first of ``local``.
    local_first: int | None = None
    #: How many blocks of the request come before the first of ``remote``.
    remote_first: int | None = None


class Range(NamedTuple):
    """One copy of a request."""

    peer: int
    lane: int
    local: int
    remote: int
    len: int


class Coverage(NamedTuple):
    """What of a group's destination blocks a request fills, in tokens (for state, in blocks)."""

    first: int
    end: int
    #: Positions at the beginning of the first block that are outside the window.
    missing_head: int
    #: Positions at the end of the last block that the producer has not got.
    missing_tail: int


class RunStats(NamedTuple):
    """Figures of one request."""

    bytes: int
    #: Ranges if neighbouring blocks were not merged.
    ranges_before: int
    ranges: int


class Expansion(NamedTuple):
    """What a request moves."""

    ranges: list[Range]
    coverage: list[Coverage]
    stats: RunStats


class Plan:
    """The copies between a local rank and the ranks of a remote engine; holds for every request.

    Args:
        local: The layout of this rank.
        remotes: Those of the engine's ranks; their order is that of :attr:`peers`.
        direction: Which way the bytes go.
        keep_lanes: Whether to leave lanes that are adjacent in memory as they are.
        uneven_blocks: Whether to accept block sizes of which neither divides the other.

    Raises:
        MismatchError: the two sides cannot mean the same content; the message names the field.
    """

    def __init__(
        self,
        local: Layout,
        remotes: Sequence[Layout],
        *,
        direction: Direction | str = Direction.PULL,
        keep_lanes: bool = False,
        uneven_blocks: bool = False,
    ):
        options = kvf_plan_options(
            sizeof(kvf_plan_options), int(member(Direction, direction)), bool(keep_lanes),
            bool(uneven_blocks),
        )
        handles = (c_uint64 * len(remotes))(*(r.handle for r in remotes))
        handle = c_uint64()
        errors.check(
            lib.kvf_plan_build(local.handle, handles or None, len(remotes), options, handle)
        )
        self._own(handle.value)

    @classmethod
    def custom(
        cls,
        groups: Iterable[GroupGeometry],
        peers: Iterable[Peer],
        lanes: Iterable[Lane],
        *,
        direction: Direction | str = Direction.PULL,
        uneven_blocks: bool = False,
    ) -> Plan:
        """A plan of the caller's own lanes, which are checked and not merged."""
        keep = Arrays()
        custom = kvf_plan_custom(sizeof(kvf_plan_custom), int(member(Direction, direction)))
        custom.uneven_blocks = bool(uneven_blocks)
        keep.store(custom, "groups", kvf_group_geometry, [_geometry(g, keep) for g in groups])
        keep.store(custom, "peers", kvf_peer, [p._asdict() for p in peers])
        keep.store(custom, "lanes", kvf_lane, [_lane(x, keep) for x in lanes])
        handle = c_uint64()
        errors.check(lib.kvf_plan_create(custom, handle))
        made = cls.__new__(cls)
        made._own(handle.value)
        return made

    def _own(self, handle: int) -> None:
        self._handle = handle
        self._finalizer = _lifetime.ends_with(self, lib.kvf_plan_destroy, handle)

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_plan.id``)."""
        return self._handle

    def describe(self) -> str:
        """The plan in words, for people."""
        return describe(lib.kvf_plan_describe, self._handle, "KVF_DESCRIBE_TEXT")

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: the library's JSON."""
        return json.loads(describe(lib.kvf_plan_describe, self._handle, "KVF_DESCRIBE_JSON"))

    @property
    def direction(self) -> Direction:
        """Which way the bytes go."""
        return self._tables(lambda t: Direction(t.direction))

    @property
    def peers(self) -> list[Peer]:
        """The remote ranks, in the order in which their layouts were given."""
        return self._tables(lambda t: [
            Peer(p.tp_rank, p.pp_rank, PeerRole(p.role), p.notifiers) for p in rows(t, "peers", kvf_peer)
        ])

    @property
    def groups(self) -> list[GroupGeometry]:
        """What block ids mean on both sides."""
        def side(s: kvf_group_side) -> GroupSide:
            return GroupSide(*(getattr(s, f) for f in GroupSide._fields))

        return self._tables(lambda t: [
            GroupGeometry(GroupKind(g.kind), side(g.local), side(g.remote), g.window, g.atom_tokens)
            for g in rows(t, "groups", kvf_group_geometry)
        ])

    @property
    def lanes(self) -> list[Lane]:
        """The lanes, in the order to which :attr:`Range.lane` refers."""
        def side(s: kvf_lane_side) -> LaneSide:
            return LaneSide(s.base, s.stride, s.sub_stride, MemKind(s.mem_kind), s.device)

        return self._tables(lambda t: [
            Lane(
                x.peer, x.group, x.len, side(x.local), side(x.remote),
                tuple(LaneInner(i.count, i.local_stride, i.remote_stride) for i in x.inner),
                x.local_shard, x.remote_shard,
            )
            for x in rows(t, "lanes", kvf_lane)
        ])

    @property
    def lanes_before(self) -> int:
        """Number of lanes before adjacent ones were merged."""
        return self._tables(lambda t: t.lanes_before)

    def _tables(self, read: Any) -> Any:
        tables = kvf_plan_tables()
        errors.check(lib.kvf_plan_tables_get(self._handle, tables))
        try:
            return read(tables)
        finally:
            lib.kvf_plan_tables_free(tables)

    def expand(self, blocks: Sequence[Any], tokens: int | None = None) -> Expansion:
        """The exact ranges of a request.

        Args:
            blocks: For each group its :class:`GroupBlocks`, or a pair of lists (local, remote).
            tokens: Tokens of the request that the producer holds, from the first one.

        Raises:
            InvalidArgumentError: ids out of range or given twice, a position that is not known.
            MismatchError: counts that do not fit.
        """
        ranges = kvf_range_list()
        coverage, stats = self._expand(blocks, tokens, ranges)
        try:
            items = (kvf_range * ranges.len).from_address(ranges.items) if ranges.len else ()
            found = [Range(r.peer, r.lane, r.local, r.remote, r.len) for r in items]
        finally:
            lib.kvf_range_list_free(ranges)
        return Expansion(found, coverage, stats)

    def stats(self, blocks: Sequence[Any], tokens: int | None = None) -> RunStats:
        """The figures of a request alone."""
        return self._expand(blocks, tokens, None)[1]

    def _expand(
        self, blocks: Sequence[Any], tokens: int | None, ranges: kvf_range_list | None
    ) -> tuple[list[Coverage], RunStats]:
        groups = BlockLists(blocks)
        coverage = (kvf_coverage * groups.count)()
        stats = kvf_expand_stats()
        errors.check(
            lib.kvf_plan_expand(
                self._handle, groups.address, groups.count, _tokens(tokens),
                addressof(coverage) if groups.count else None, stats, ranges,
            )
        )
        return (
            [Coverage(c.first, c.end, c.missing_head, c.missing_tail) for c in coverage],
            RunStats(stats.bytes, stats.ranges_before, stats.ranges),
        )


class BlockLists:
    """Block ids as an array of ``kvf_group_blocks``.

    The array is made of 64-bit integers, which is several times faster than ctypes structs: addresses
    and lengths, then the two positions in one integer, then the two flags in another.
    """

    __slots__ = ("words", "address", "count", "keep")

    def __init__(self, blocks: Sequence[Any]):
        words = array("Q")
        self.keep = keep = []
        for i, group in enumerate(blocks):
            local_first = remote_first = None
            if len(group) == 2:
                local, remote = group
            else:
                local, remote, local_first, remote_first = group
            local_at, local_len, kept_local = block_ids(local, i)
            remote_at, remote_len, kept_remote = block_ids(remote, i)
            keep += kept_local, kept_remote
            words.extend((
                local_at, local_len, remote_at, remote_len,
                _first(local_first, i) | _first(remote_first, i) << 32,
                (local_first is not None) | (remote_first is not None) << 8,
            ))
        self.words, self.count = words, len(words) // 6
        self.address = words.buffer_info()[0] if words else None


def block_ids(values: Any, group: int) -> tuple[int, int, object]:
    """Block ids as an address, their number, and what keeps them alive."""
    if _convert.is_ndarray(values):
        where, length, keep = _convert.indices(values, f"block ids of group {group}")
        return where or 0, length, keep
    try:
        made = values if type(values) is array and values.typecode == "I" else array("I", values)
    except (TypeError, OverflowError) as e:
        raise errors.InvalidArgumentError(
            f"block ids of group {group} must be integers from 0 to 2**32-1: {e}"
        ) from None
    where, length = made.buffer_info()
    return where, length, made


def _first(value: int | None, group: int) -> int:
    if value is None:
        return 0
    if not 0 <= value < 2**32:
        raise errors.InvalidArgumentError(f"group {group}: first block {value} is not 0 to 2**32-1")
    return value


def _tokens(value: int | None) -> int:
    if value is None:
        return 0
    if not 0 < value < 2**64:
        raise errors.InvalidArgumentError(f"tokens is {value}; it must be 1 to 2**64-1, or None")
    return value


def _geometry(group: GroupGeometry, keep: Arrays) -> dict[str, Any]:
    fields = group._asdict() | {"kind": int(member(GroupKind, group.kind))}
    for side in ("local", "remote"):
        fields[side] = keep.struct(kvf_group_side, fields[side]._asdict(), side)
    return fields


def _lane(lane: Lane, keep: Arrays) -> dict[str, Any]:
    fields = lane._asdict()
    for name in ("local", "remote"):
        side = fields[name]._asdict()
        side["mem_kind"] = int(member(MemKind, side.pop("mem")))
        fields[name] = keep.struct(kvf_lane_side, side, name)
    inner = [keep.struct(kvf_lane_inner, i._asdict(), "inner") for i in fields["inner"]]
    fields["inner"] = (kvf_lane_inner * 2)(*inner)
    return fields
