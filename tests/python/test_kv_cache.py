"""The description of a KV cache as C takes it."""

from __future__ import annotations

import ctypes

import pytest
from kvferry import Group, KvCache, KvState, KvTensor
from kvferry._ffi import CONSTANTS, kvf_group, kvf_kv_tensor


def cache(**changes) -> KvCache:
    tensor = KvTensor(
        "layers.0", 0, "heads", 4096, shape=(8, 2, 16, 128), strides=(16384, 8192, 512, 4),
        elem_bytes=4, k_head_size=64, page_bytes=16384, mem="vram", device=3,
    )
    state = KvTensor(
        "layers.1", 1, "state", 8192,
        state=KvState((96, 3), 2, (4, 8, 16), 4, kind="stated", conv_channels=(32, 32, 32)),
    )
    values = dict(
        tensors=[tensor, state], groups=[Group("full", 16), Group("state", 1)], num_blocks=8,
        block_tokens=16, kv_heads=2, attn_backend="CPU_ATTN", slab_order="halves", hybrid=True,
    )
    return KvCache(**{**values, **changes})


def test_fields_arrive():
    made, _keep = cache()._c()
    assert (made.num_blocks, made.block_tokens, made.kv_heads) == (8, 16, 2)
    assert (made.layout, made.attn_backend) == (b"LBHNC", b"CPU_ATTN")
    assert made.slab_order == CONSTANTS["KVF_SLAB_HALVES"] and made.hybrid and not made.mla
    groups = (kvf_group * made.groups_len).from_address(made.groups)
    assert [(g.kind, g.tokens_per_block) for g in groups] == [
        (CONSTANTS["KVF_GROUP_FULL"], 16), (CONSTANTS["KVF_GROUP_STATE"], 1)]

    heads, state = (kvf_kv_tensor * made.tensors_len).from_address(made.tensors)
    assert (heads.layer, heads.content) == (b"layers.0", CONSTANTS["KVF_CONTENT_HEADS"])
    assert list(heads.shape)[: heads.dims] == [8, 2, 16, 128]
    assert list(heads.strides)[: heads.dims] == [16384, 8192, 512, 4]
    assert (heads.mem_kind, heads.device) == (CONSTANTS["KVF_MEM_VRAM"], 3)
    sizes = state.state.contents
    assert (sizes.conv_channels_total, sizes.conv_rows) == (96, 3)
    assert list(sizes.ssm_shape)[: sizes.ssm_dims] == [4, 8, 16]
    channels = (ctypes.c_uint32 * sizes.conv_channels_len).from_address(sizes.conv_channels)
    assert list(channels) == [32, 32, 32]


def test_what_does_not_fit_is_refused():
    uneven = KvTensor("layers.0", 0, "heads", 4096, shape=(8, 2), strides=(4,))
    with pytest.raises(ValueError, match="layers.0: 2 dimensions with 1 strides"):
        cache(tensors=[uneven])._c()
    deep = KvTensor("layers.0", 0, "state", 4096, state=KvState((1, 1), 2, (1, 1, 1, 1, 1), 4))
    with pytest.raises(ValueError, match="4 dimensions at most"):
        cache(tensors=[deep])._c()
