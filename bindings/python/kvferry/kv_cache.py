"""What an engine knows about its KV cache, as data: what a connector's worker half registers."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from ctypes import addressof, c_uint32, pointer, sizeof
from typing import Any

from . import _convert
from ._ffi import kvf_group, kvf_kv_cache, kvf_kv_state, kvf_kv_tensor
from .agent import MemKind, member
from .layout import Group, GroupKind

__all__ = ["Content", "KvCache", "KvState", "KvTensor", "SlabOrder", "StateKind"]

MAX_DIMS = 5


class Content(enum.IntEnum):
    """What a layer's cache holds."""

    HEADS = 0  #: K and V of this rank's share of the heads.
    LATENT = 1  #: One vector per token, whole on every rank: MLA, indexer caches.
    STATE = 2  #: Recurrent state of a Mamba or linear attention layer.


class SlabOrder(enum.IntEnum):
    """Order of K and V inside one head of a block."""

    CELLS = 0  #: Each token's K is followed by its V: most attention backends.
    HALVES = 1  #: All tokens' K, then all tokens' V: vLLM's CPU backend.
    OPAQUE = 2  #: Not known: moved whole, and only between engines with blocks of one size.


class StateKind(enum.IntEnum):
    """How the channels of a convolution state fall into sub-projections."""

    STATED = 0  #: As ``conv_channels`` says.
    MAMBA1 = 1  #: x.
    MAMBA2 = 2  #: x, B, C.
    GDN = 3  #: Q, K, V.


@dataclasses.dataclass
class KvState:
    """Recurrent state of one layer on this rank: convolution state, then recurrent state."""

    #: Channels and rows of the convolution state.
    conv_shape: tuple[int, int]
    conv_elem_bytes: int
    #: Shape of the recurrent state, heads first.
    ssm_shape: Sequence[int]
    ssm_elem_bytes: int
    kind: StateKind | str = StateKind.STATED
    #: With ``STATED``: channels of each sub-projection, in their order in memory.
    conv_channels: Sequence[int] = ()


@dataclasses.dataclass
class KvTensor:
    """One layer's cache. Shapes are ``[blocks, heads, tokens, cell]`` or without heads, blocks being
    kernel blocks; strides are in bytes. One dimension is a flat view of bytes; none, blocks that
    follow each other as ``layout`` of the cache says."""

    layer: str
    group: int
    content: Content | str
    #: Address of block 0.
    address: int
    shape: Sequence[int] = ()
    strides: Sequence[int] = ()
    elem_bytes: int = 0
    #: Elements of a K head; of a latent, its elements per token.
    k_head_size: int = 0
    #: 0 is ``k_head_size``.
    v_head_size: int = 0
    #: Bytes of one logical block of this layer, padding included; 0 is what its content needs.
    page_bytes: int = 0
    #: The allocation that this is a view of; 0 is ``address``, and what the blocks take up.
    storage_address: int = 0
    storage_bytes: int = 0
    #: Logical blocks, if the layer has a pool of its own.
    num_blocks: int = 0
    mem: MemKind | str = MemKind.DRAM
    device: int = 0
    #: KV heads of this layer in the model, if they are not those of the cache.
    kv_heads: int = 0
    state: KvState | None = None


@dataclasses.dataclass
class KvCache:
    """The KV cache of one rank."""

    #: The layers, in any order. Layers that use another layer's cache are left out.
    tensors: Sequence[KvTensor]
    #: Block tables, in the order in which the engine lists its block ids.
    groups: Sequence[Group]
    #: Logical blocks in the pool.
    num_blocks: int
    #: Tokens of one kernel block.
    block_tokens: int
    #: KV heads of the model, before tensor parallelism; 1 with ``mla``.
    kv_heads: int
    #: Kernel blocks of one logical block.
    blocks_per_logical: int = 1
    #: Physical order, outermost first: layers, blocks, heads, tokens (N), cells.
    layout: str = "LBHNC"
    #: Name of the attention backend; peers are told.
    attn_backend: str = ""
    slab_order: SlabOrder | str = SlabOrder.CELLS
    #: Whether the model as a whole uses multi-head latent attention.
    mla: bool = False
    #: Whether groups that are not full attention have block tables of their own.
    hybrid: bool = False
    #: Prefill-context-parallel size.
    pcp_size: int = 1

    def _c(self) -> tuple[kvf_kv_cache, Any]:
        """As C takes it, and what must live as long as that."""
        keep: list[Any] = []
        tensors = (kvf_kv_tensor * len(self.tensors))(*(_tensor(t, keep) for t in self.tensors))
        groups = (kvf_group * len(self.groups))(*map(_group, self.groups))
        keep += [tensors, groups]
        cache = kvf_kv_cache(
            sizeof(kvf_kv_cache),
            kv_heads=self.kv_heads,
            tensors=addressof(tensors) if len(tensors) else None,
            tensors_len=len(tensors),
            groups=addressof(groups) if len(groups) else None,
            groups_len=len(groups),
            num_blocks=self.num_blocks,
            blocks_per_logical=self.blocks_per_logical,
            block_tokens=self.block_tokens,
            layout=_convert.text(self.layout, "layout"),
            attn_backend=_convert.text(self.attn_backend, "attn_backend"),
            slab_order=member(SlabOrder, self.slab_order),
            pcp_size=self.pcp_size,
            mla=self.mla,
            hybrid=self.hybrid,
        )
        return cache, keep


def _group(group: Group) -> kvf_group:
    kind, *rest = group
    return kvf_group(member(GroupKind, kind), *rest)


def _tensor(t: KvTensor, keep: list[Any]) -> kvf_kv_tensor:
    if len(t.shape) != len(t.strides) or len(t.shape) > MAX_DIMS:
        raise ValueError(
            f"{t.layer}: {len(t.shape)} dimensions with {len(t.strides)} strides; "
            f"both have to be of one length, {MAX_DIMS} at most"
        )
    out = kvf_kv_tensor(
        _convert.text(t.layer, "layer"),
        group=t.group,
        content=member(Content, t.content),
        address=t.address,
        storage_address=t.storage_address,
        storage_bytes=t.storage_bytes,
        page_bytes=t.page_bytes,
        num_blocks=t.num_blocks,
        device=t.device,
        mem_kind=member(MemKind, t.mem),
        elem_bytes=t.elem_bytes,
        dims=len(t.shape),
        k_head_size=t.k_head_size,
        v_head_size=t.v_head_size,
        kv_heads=t.kv_heads,
    )
    out.shape[: len(t.shape)] = list(t.shape)
    out.strides[: len(t.strides)] = list(t.strides)
    if t.state is not None:
        out.state = pointer(_state(t.state, keep))
        keep.append(out.state)
    return out


def _state(s: KvState, keep: list[Any]) -> kvf_kv_state:
    channels = (c_uint32 * len(s.conv_channels))(*s.conv_channels)
    keep.append(channels)
    out = kvf_kv_state(
        member(StateKind, s.kind),
        conv_channels_total=s.conv_shape[0],
        conv_rows=s.conv_shape[1],
        conv_elem_bytes=s.conv_elem_bytes,
        ssm_dims=len(s.ssm_shape),
        ssm_elem_bytes=s.ssm_elem_bytes,
        conv_channels=addressof(channels) if len(channels) else None,
        conv_channels_len=len(channels),
    )
    if len(s.ssm_shape) > len(out.ssm_shape):
        raise ValueError(f"a recurrent state has {len(out.ssm_shape)} dimensions at most: {s.ssm_shape}")
    out.ssm_shape[: len(s.ssm_shape)] = list(s.ssm_shape)
    return out
