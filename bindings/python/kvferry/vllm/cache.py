"""vLLM's KV cache tensors as the description that the library works out regions and layouts from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.utils import (
    get_current_attn_backends,
    get_current_attn_backends_and_specs,
)
from vllm.utils.torch_utils import get_dtype_size
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import (
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
)
from vllm.v1.worker.utils import select_common_block_size

from ..agent import MemKind
from ..kv_cache import Content, KvCache, KvState, KvTensor, SlabOrder, StateKind
from .config import is_hybrid, layer_specs, one_spec, transfer_groups

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

#: Backends that keep K and V of a block's head apart instead of token by token.
HALVES = ("CPU_ATTN",)

STATE_KINDS = {
    MambaAttentionBackendEnum.MAMBA1: StateKind.MAMBA1,
    MambaAttentionBackendEnum.MAMBA2: StateKind.MAMBA2,
    MambaAttentionBackendEnum.GDN_ATTN: StateKind.GDN,
}


def attention_backend(config: VllmConfig) -> str:
    """Name of the first layer's attention backend; known once the model is built."""
    return get_current_attn_backends(config)[0].get_name()


def describe(
    config: VllmConfig, cache: KVCacheConfig, tensors: dict[str, torch.Tensor]
) -> KvCache:
    """What ``register_kv_caches`` was given, as data."""
    model = config.model_config
    specs, group_of = layer_specs(cache), cache.transfer_group_index_by_layer
    logical, kernel = _block_sizes(config, cache)
    backend = attention_backend(config)
    heads = 1 if model.use_mla else model.get_total_num_kv_heads()
    shared = max(1, heads // config.parallel_config.tensor_parallel_size)
    return KvCache(
        # A layer without a spec shares another layer's cache.
        tensors=[
            _tensor(name, tensor, specs[name], group_of[name], shared, config)
            for name, tensor in tensors.items()
            if name in specs
        ],
        groups=transfer_groups(cache),
        num_blocks=cache.num_blocks,
        block_tokens=kernel,
        blocks_per_logical=logical // kernel,
        kv_heads=heads,
        layout=config.cache_config.get_resolved_kv_cache_layout().name,
        attn_backend=backend,
        slab_order=SlabOrder.HALVES if backend in HALVES else SlabOrder.CELLS,
        mla=model.use_mla,
        hybrid=is_hybrid(config, cache),
        pcp_size=config.parallel_config.prefill_context_parallel_size,
    )


def _block_sizes(config: VllmConfig, cache: KVCacheConfig) -> tuple[int, int]:
    """Tokens of a block as the scheduler counts them, and as the attention kernel does."""
    sizes = [
        group.kv_cache_spec.block_size
        for group in cache.transfer_groups
        if not isinstance(one_spec(group.kv_cache_spec), MambaSpec)
    ]
    logical = math.lcm(*sizes) if sizes else config.cache_config.block_size
    backends, specs = get_current_attn_backends_and_specs(
        config, cache, get_current_attn_backends(config)
    )
    return logical, select_common_block_size(logical, backends, specs)


def _tensor(
    name: str,
    tensor: torch.Tensor,
    spec: KVCacheSpec,
    group: int,
    shared_heads: int,
    config: VllmConfig,
) -> KvTensor:
    storage = tensor.untyped_storage()
    size = tensor.element_size()
    on_host = tensor.device.type == "cpu"
    return KvTensor(
        layer=name,
        group=group,
        address=tensor.data_ptr(),
        storage_address=storage.data_ptr(),
        storage_bytes=storage.nbytes(),
        shape=tuple(tensor.shape),
        strides=tuple(stride * size for stride in tensor.stride()),
        page_bytes=spec.page_size_bytes,
        mem=MemKind.DRAM if on_host else MemKind.VRAM,
        device=0 if on_host else max(tensor.get_device(), 0),
        **_content(tensor, spec, shared_heads, config),
    )


def _content(
    tensor: torch.Tensor, spec: KVCacheSpec, shared_heads: int, config: VllmConfig
) -> dict[str, Any]:
    if isinstance(spec, MambaSpec):
        return {
            "content": Content.STATE,
            "elem_bytes": tensor.element_size(),
            "state": _state(spec),
        }
    # A flat view of bytes says nothing about elements; the spec does.
    size = get_dtype_size(spec.dtype) if tensor.ndim == 1 else tensor.element_size()
    if isinstance(spec, (MLAAttentionSpec, SlidingWindowMLASpec)):
        # Quantised latents carry their scales: the row is wider than the head.
        row = spec.head_size if tensor.ndim == 1 else tensor.shape[-1]
        return {"content": Content.LATENT, "elem_bytes": size, "k_head_size": row}
    heads = {}
    if spec.num_kv_heads != shared_heads:  # a draft model with heads of its own
        heads["kv_heads"] = spec.num_kv_heads * config.parallel_config.tensor_parallel_size
    return {
        "content": Content.HEADS,
        "elem_bytes": size,
        "k_head_size": spec.head_size,
        "v_head_size": spec.head_size_v,
        **heads,
    }


def _state(spec: MambaSpec) -> KvState:
    kind = STATE_KINDS.get(spec.mamba_type)
    if kind is None:
        raise NotImplementedError(
            f"KvFerryConnector does not know how a state of kind {spec.mamba_type.name} is sharded; "
            f"it knows {', '.join(k.name for k in STATE_KINDS)}"
        )
    conv, ssm = spec.shapes
    return KvState(
        kind=kind,
        conv_shape=tuple(conv),
        conv_elem_bytes=get_dtype_size(spec.dtypes[0]),
        ssm_shape=tuple(ssm),
        ssm_elem_bytes=get_dtype_size(spec.dtypes[1]),
    )
