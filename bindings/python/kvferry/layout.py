"""How one rank's KV cache lies in memory, as data: what :class:`~kvferry.Plan` is made from."""

from __future__ import annotations

import ctypes
import enum
import json
from array import array
from collections.abc import Iterable, Sequence
from ctypes import addressof, c_uint32, c_uint64, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    CONSTANTS,
    kvf_buffer,
    kvf_dense_layers,
    kvf_group,
    kvf_latent_layers,
    kvf_layout_options,
    kvf_layout_tables,
    kvf_parallel,
    kvf_part,
    kvf_region,
    kvf_state_layers,
    kvf_sub_projection,
    lib,
)
from .agent import MemKind, member

__all__ = [
    "ConvOrder",
    "DenseLayers",
    "Group",
    "GroupKind",
    "KvPlacement",
    "LatentLayers",
    "Layout",
    "PageOrder",
    "Parallel",
    "Part",
    "Region",
    "Role",
    "StateLayers",
    "SubProjection",
    "shard",
]


class GroupKind(enum.IntEnum):
    """What the blocks of a group hold."""

    FULL = 0  #: Attention over all tokens.
    SLIDING_WINDOW = 1  #: Attention over the last ``window`` tokens.
    CHUNKED_LOCAL = 2  #: Attention inside chunks of ``window`` tokens.
    MLA = 3  #: Multi-head latent attention.
    STATE = 4  #: Recurrent state: a block id is a state, not a range of tokens.


class PageOrder(enum.IntEnum):
    """Which of tokens and heads lies outside in a page."""

    NHD = 0  #: ``[tokens][heads][head size]``.
    HND = 1  #: ``[heads][tokens][head size]``.


class KvPlacement(enum.IntEnum):
    """Where K and V of a layer are in relation to each other."""

    REGIONS = 0  #: Two regions for each layer: first K's, then V's.
    PLANES = 1  #: One page, all of K before all of V.
    HALVES = 2  #: One page, K before V within the outer of heads and tokens.
    CELLS = 3  #: One page, V right behind K in each cell.
    SLABS = 4  #: One page of slabs, one for each head, whose inner order only the backend knows.


class ConvOrder(enum.IntEnum):
    """Order of a convolution state."""

    CHANNELS_FIRST = 0  #: ``[channels][rows]``.
    ROWS_FIRST = 1  #: ``[rows][channels]``.


class Role(enum.IntEnum):
    """What a part is. Numbers between these and beyond ``OTHER`` are plain integers."""

    K = 0
    V = 1
    KV = 2  #: K and V in an order that only the attention backend knows.
    LATENT = 3  #: The latent of MLA, with its rotary part.
    SSM = 4
    CONV = 16  #: The first convolution sub-projection; the others have the numbers that follow.
    OTHER = 256  #: First number that is free for the caller.


class Parallel(NamedTuple):
    """A rank's place in its engine."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    #: Which share of the tokens this rank keeps in its attention groups.
    dcp_rank: int = 0
    #: Decode-context-parallel size.
    dcp_size: int = 1
    #: Consecutive tokens that go to one rank before the next rank's turn; 0 is a whole block.
    dcp_interleave: int = 0


class Region(NamedTuple):
    """A row of equal pages: page ``p`` begins at ``base + p * page_stride``."""

    base: int
    page_count: int
    #: Bytes from page to page; 0 is ``page_len``.
    page_stride: int = 0
    #: Bytes of a page; with layers, 0 is what the layer needs and anything else is checked.
    page_len: int = 0
    mem: MemKind | str = MemKind.DRAM
    device: int = 0


class Group(NamedTuple):
    """Layers that share a block table."""

    kind: GroupKind | str = GroupKind.FULL
    #: Tokens of one block on this rank; 1 for state groups.
    tokens_per_block: int = 0
    #: Pages that one block id stands for in each region.
    kernel_blocks: int = 1
    #: Tokens of the window or chunk; 0 where block lists are never cut.
    window: int = 0
    #: A number of the caller's for what the cells mean; both sides must state the same.
    format: int = 0


class Part(NamedTuple):
    """One role of one layer, or some heads of it, inside the pages of one region."""

    group: int
    region: int
    layer: int
    role: int
    offset: int
    heads_total: int
    head_first: int
    head_count: int
    rows: int
    head_stride: int
    row_stride: int
    cell_bytes: int
    elem_bytes: int


class DenseLayers(NamedTuple):
    """Attention layers with heads, of one shape, one region each (two with ``KvPlacement.REGIONS``).

    This rank's share of the heads follows from :class:`Parallel`.
    """

    kv_heads: int
    k_head_size: int
    elem_bytes: int
    regions: Sequence[Region]
    order: PageOrder | str = PageOrder.NHD
    kv: KvPlacement | str = KvPlacement.REGIONS
    group: int = 0
    #: Numbers of the layers; None counts up from ``first_layer``.
    layers: Sequence[int] | None = None
    first_layer: int = 0
    #: Elements of a V head; 0 is ``k_head_size``.
    v_head_size: int = 0


class LatentLayers(NamedTuple):
    """Layers with one vector per token, the same on every rank: MLA, indexer caches."""

    size: int
    elem_bytes: int
    regions: Sequence[Region]
    group: int = 0
    layers: Sequence[int] | None = None
    first_layer: int = 0
    role: int = Role.LATENT


class SubProjection(NamedTuple):
    """One sub-projection of a convolution state."""

    #: What tensor parallelism deals out: channels, or groups of channels.
    units: int
    channels_per_unit: int = 1


class StateLayers(NamedTuple):
    """Layers with recurrent state: convolution sub-projections, then the SSM state."""

    ssm_heads: int
    ssm_head_bytes: int
    ssm_elem_bytes: int
    regions: Sequence[Region]
    conv: Sequence[SubProjection] = ()
    conv_rows: int = 0
    conv_elem_bytes: int = 0
    conv_order: ConvOrder | str = ConvOrder.CHANNELS_FIRST
    group: int = 0
    layers: Sequence[int] | None = None
    first_layer: int = 0


def shard(heads_total: int, tp_size: int, tp_rank: int) -> tuple[int, int]:
    """The heads that one rank holds: the first, and their number."""
    first, count = c_uint32(), c_uint32()
    sizes = (_u32(heads_total, "heads_total"), _u32(tp_size, "tp_size"), _u32(tp_rank, "tp_rank"))
    errors.check(lib.kvf_layout_shard(*sizes, first, count))
    return first.value, count.value


class Layout:
    """One rank's KV cache: groups, and the layers in them.

    Args:
        parallel: Which rank of which engine this is.
        groups: Block tables, in the order in which the engine lists its block ids.
        dense, latent, state: Layers of the common kinds.
        regions: Regions for ``parts``; those of the layers follow them.
        parts: Parts in an arrangement of the engine's own.

    Raises:
        InvalidArgumentError: the layout cannot be; the message names the field and its value.
    """

    def __init__(
        self,
        parallel: Parallel = Parallel(),
        groups: Iterable[Group] = (),
        *,
        dense: Iterable[DenseLayers] = (),
        latent: Iterable[LatentLayers] = (),
        state: Iterable[StateLayers] = (),
        regions: Iterable[Region] = (),
        parts: Iterable[Part] = (),
    ):
        keep = _Arrays()
        options = kvf_layout_options(sizeof(kvf_layout_options))
        options.parallel = keep.struct(kvf_parallel, parallel._asdict(), "parallel")
        keep.store(options, "groups", kvf_group, [_group(g) for g in groups])
        keep.store(options, "regions", kvf_region, [_region(r) for r in regions])
        keep.store(options, "parts", kvf_part, [p._asdict() for p in parts])
        keep.store(options, "dense", kvf_dense_layers, [_dense(d, keep) for d in dense])
        keep.store(options, "latent", kvf_latent_layers, [keep.layers(x._asdict()) for x in latent])
        keep.store(options, "state", kvf_state_layers, [_state(s, keep) for s in state])
        handle = c_uint64()
        errors.check(lib.kvf_layout_create(options, handle))
        self._own(handle.value)

    def _own(self, handle: int) -> None:
        self._handle = handle
        self._finalizer = _lifetime.ends_with(self, lib.kvf_layout_destroy, handle)

    @classmethod
    def decode(cls, data: bytes) -> Layout:
        """A layout from the bytes of :meth:`encode`, which need not be trusted.

        Raises:
            PeerIncompatibleError: they are not a sound layout.
        """
        handle = c_uint64()
        errors.check(lib.kvf_layout_decode(*_convert.payload(data, "data"), handle))
        made = cls.__new__(cls)
        made._own(handle.value)
        return made

    def encode(self) -> bytes:
        """The layout as bytes, for exchange between ranks; the same for the same layout."""
        data = kvf_buffer()
        errors.check(lib.kvf_layout_encode(self._handle, data))
        return _convert.take_buffer(data)

    def describe(self) -> str:
        """The layout in words, for people."""
        return describe(lib.kvf_layout_describe, self._handle, "KVF_DESCRIBE_TEXT")

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain data: the library's JSON."""
        return json.loads(describe(lib.kvf_layout_describe, self._handle, "KVF_DESCRIBE_JSON"))

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_layout.id``)."""
        return self._handle

    @property
    def parallel(self) -> Parallel:
        """Which rank of which engine it is."""
        return self._tables(lambda t: Parallel(*(getattr(t.parallel, f) for f in Parallel._fields)))

    @property
    def groups(self) -> list[Group]:
        """The groups, with all defaults filled in."""
        return self._tables(lambda t: [
            Group(GroupKind(g.kind), *(getattr(g, f) for f in Group._fields[1:]))
            for g in rows(t, "groups", kvf_group)
        ])

    @property
    def regions(self) -> list[Region]:
        """The regions, with all defaults filled in."""
        return self._tables(lambda t: [
            Region(r.base, r.page_count, r.page_stride, r.page_len, MemKind(r.mem_kind), r.device)
            for r in rows(t, "regions", kvf_region)
        ])

    @property
    def parts(self) -> list[Part]:
        """What the pages hold."""
        return self._tables(lambda t: [
            Part(*(getattr(p, f) for f in Part._fields)) for p in rows(t, "parts", kvf_part)
        ])

    def _tables(self, read: Any) -> Any:
        tables = kvf_layout_tables()
        errors.check(lib.kvf_layout_tables_get(self._handle, tables))
        try:
            return read(tables)
        finally:
            lib.kvf_layout_tables_free(tables)


def rows(tables: ctypes.Structure, name: str, kind: type[ctypes.Structure]) -> Any:
    """One of the arrays in a struct of the library's tables."""
    length = getattr(tables, f"{name}_len")
    return (kind * length).from_address(getattr(tables, name)) if length else ()


def describe(function: Any, handle: int, form: str) -> str:
    """A description by the library."""
    text = kvf_buffer()
    errors.check(function(handle, CONSTANTS[form], text))
    return _convert.take_buffer(text).decode()


class Arrays:
    """Makes C arrays out of fields by name, and keeps them alive."""

    def __init__(self) -> None:
        self.kept: list[object] = []

    def struct(self, kind: type[ctypes.Structure], fields: dict[str, Any], what: str) -> Any:
        """A struct with its fields checked: ctypes would cut off what does not fit."""
        made = kind()
        for name, value in fields.items():
            slot = getattr(kind, name)
            if isinstance(value, (ctypes.Structure, ctypes.Array)) or value is None:
                setattr(made, name, value)
                continue
            if not isinstance(value, int) or not 0 <= value < 1 << 8 * slot.size:
                limit = f"2**{8 * slot.size}-1"
                raise errors.InvalidArgumentError(
                    f"{what}.{name} is {value!r}; it must be 0 to {limit}"
                )
            setattr(made, name, value)
        return made

    def array(self, kind: type[ctypes.Structure], items: list[dict[str, Any]], what: str) -> int | None:
        """The address of an array; None if it is empty."""
        if not items:
            return None
        made = (kind * len(items))()
        for i, fields in enumerate(items):
            made[i] = self.struct(kind, fields, f"{what}[{i}]")
        self.kept.append(made)
        return addressof(made)

    def store(self, target: Any, name: str, kind: type, items: list[dict[str, Any]]) -> None:
        """An array and its length, as two fields of a struct."""
        setattr(target, name, self.array(kind, items, name))
        setattr(target, f"{name}_len", len(items))


class _Arrays(Arrays):
    def layers(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a set of layers with its numbers and regions as arrays."""
        numbers, regions = fields.pop("layers"), list(fields.pop("regions"))
        if numbers is not None:
            try:
                made = array("I", numbers)
            except (TypeError, OverflowError) as e:
                raise errors.InvalidArgumentError(f"layers {numbers!r}: {e}") from None
            self.kept.append(made)
            fields["layers"], fields["layers_len"] = made.buffer_info()
        fields["regions"] = self.array(kvf_region, [_region(r) for r in regions], "regions")
        fields["regions_len"] = len(regions)
        return fields


def _group(group: Group) -> dict[str, Any]:
    return group._asdict() | {"kind": _u32(member(GroupKind, group.kind), "kind")}


def _region(region: Region) -> dict[str, Any]:
    fields = region._asdict()
    fields["mem_kind"] = _u32(member(MemKind, fields.pop("mem")), "mem")
    return fields


def _dense(dense: DenseLayers, keep: _Arrays) -> dict[str, Any]:
    fields = keep.layers(dense._asdict())
    fields["order"] = member(PageOrder, fields["order"])
    fields["kv"] = member(KvPlacement, fields["kv"])
    return fields


def _state(state: StateLayers, keep: _Arrays) -> dict[str, Any]:
    fields = keep.layers(state._asdict())
    conv = [SubProjection(*c)._asdict() for c in fields.pop("conv")]
    fields["conv"] = keep.array(kvf_sub_projection, conv, "conv")
    fields["conv_len"] = len(conv)
    fields["conv_order"] = member(ConvOrder, fields["conv_order"])
    return fields


def _u32(value: int, what: str) -> int:
    if not 0 <= value < 2**32:
        raise errors.InvalidArgumentError(f"{what} is {value}; it must be 0 to 2**32-1")
    return value
