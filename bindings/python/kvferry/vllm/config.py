"""vLLM's configuration, as the options of the library's two halves, and what is refused at start."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vllm import __version__ as vllm_version
from vllm import envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    CircularBufferSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from ..layout import Group, GroupKind

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.kvferry")

#: Releases whose connector interface and wire format are known: 0.32 was run, 0.33 was read.
KNOWN_VERSIONS = ("0.32.", "0.33.")
#: Kinds of device whose memory is registered as it is.
DEVICES = ("cpu", "cuda")


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``kv_connector_extra_config`` and the environment say: the keys of the stock connector."""

    engine_id: str
    host: str
    port: int
    transport: str
    backends: list[str]
    threads: int
    nixl_library: str | None
    lease: float
    engine_ttl: float
    enforce_compatibility: bool
    bidirectional: bool
    recompute_threshold: int
    pin: float
    registration_timeout: float

    @classmethod
    def of(cls, config: VllmConfig) -> Settings:
        transfer = config.kv_transfer_config
        extra = transfer.get_from_extra_config
        pin = extra("decoder_kv_blocks_ttl", 480)
        return cls(
            engine_id=transfer.engine_id,
            host=envs.VLLM_NIXL_SIDE_CHANNEL_HOST,
            port=envs.VLLM_NIXL_SIDE_CHANNEL_PORT + config.parallel_config.data_parallel_index,
            transport=extra("kvferry_transport", "nixl"),
            backends=extra("backends", ["UCX"]),
            threads=extra("num_threads", 4),
            nixl_library=extra("kvferry_nixl_library", None),
            lease=extra("kv_lease_duration", 30),
            engine_ttl=extra("engine_ttl", 3600.0),
            enforce_compatibility=bool(extra("enforce_handshake_compat", True)),
            bidirectional=bool(extra("bidirectional_kv_xfer", False)),
            recompute_threshold=int(extra("kv_recompute_threshold", 64)),
            pin=pin,
            registration_timeout=extra("push_registration_timeout", pin),
        )


def layer_specs(cache: KVCacheConfig) -> dict[str, KVCacheSpec]:
    """The spec of every layer that takes part in transfers."""
    specs: dict[str, KVCacheSpec] = {}
    for group in cache.transfer_groups:
        if isinstance(group.kv_cache_spec, UniformTypeKVCacheSpecs):
            specs.update(group.kv_cache_spec.kv_cache_specs)
        else:
            specs.update(dict.fromkeys(group.layer_names, group.kv_cache_spec))
    return specs


def one_spec(spec: KVCacheSpec) -> KVCacheSpec:
    """A spec that stands for its group."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return next(iter(spec.kv_cache_specs.values()))
    return spec


def transfer_groups(cache: KVCacheConfig) -> list[Group]:
    """The block tables, in the order of the block id lists that engines exchange."""
    return [_group(group.kv_cache_spec) for group in cache.transfer_groups]


def _group(spec: KVCacheSpec) -> Group:
    tokens, spec = spec.block_size, one_spec(spec)
    if isinstance(spec, MambaSpec):
        return Group(GroupKind.STATE, 1)
    if isinstance(spec, SlidingWindowSpec):
        return Group(GroupKind.SLIDING_WINDOW, tokens, window=spec.sliding_window)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return Group(GroupKind.CHUNKED_LOCAL, tokens, window=spec.attention_chunk_size)
    if isinstance(spec, MLAAttentionSpec):
        return Group(GroupKind.MLA, tokens)
    return Group(GroupKind.FULL, tokens)


def scratch_blocks(cache: KVCacheConfig) -> list[int]:
    """Per group, the slots at the end of a request's list that hold only speculative state."""
    return [
        spec.num_speculative_blocks if isinstance(spec, MambaSpec) else 0
        for spec in (one_spec(group.kv_cache_spec) for group in cache.transfer_groups)
    ]


def is_hybrid(config: VllmConfig, cache: KVCacheConfig) -> bool:
    """Whether block lists are clipped: the hybrid manager is on and has something to manage."""
    return not config.scheduler_config.disable_hybrid_kv_cache_manager and any(
        not isinstance(group.kv_cache_spec, FullAttentionSpec) for group in cache.transfer_groups
    )


def backoff_tokens(config: VllmConfig, cache: KVCacheConfig) -> int:
    """Tokens at the end of a prompt that the prefill engine leaves to the decode engine.

    One where a recurrent state cannot be stepped back, or a window is not replayed; and all that a
    draft model of several modules looks ahead.
    """
    replayed = any(group.kv_cache_spec.prefix_replay_tokens > 0 for group in cache.kv_cache_groups)
    return max(int(cache.has_mamba_layers or replayed), config.num_prefill_lookahead_tokens - 1)


def check(config: VllmConfig, cache: KVCacheConfig, push: bool) -> None:
    """Refuses what is not supported, before anything is built."""
    if not vllm_version.startswith(KNOWN_VERSIONS):
        logger.warning_once(
            "kvferry knows vLLM 0.32 and 0.33, and this is %s: if its connector interface or wire "
            "format differ, use the stock NixlConnector",
            vllm_version,
        )
    transfer = config.kv_transfer_config
    if transfer.kv_role == "kv_both":
        logger.warning_once(
            "kv_role is kv_both: state kv_producer for prefill engines and kv_consumer for decode "
            "engines, as vLLM will soon require"
        )
    for refused, what in _refusals(config, cache, push):
        if refused:
            raise NotImplementedError(
                f"KvFerryConnector does not support {what}. The stock NixlConnector may; it can be "
                "used for this engine while others use kvferry."
            )


def _refusals(config: VllmConfig, cache: KVCacheConfig, push: bool) -> list[tuple[Any, str]]:
    parallel, transfer = config.parallel_config, config.kv_transfer_config
    device = current_platform.device_type
    specs = list(layer_specs(cache).values())
    bidirectional = bool(transfer.get_from_extra_config("bidirectional_kv_xfer", False))
    return [
        (device not in DEVICES, f"devices of kind {device} (supported: {', '.join(DEVICES)})"),
        (
            transfer.kv_buffer_device != device,
            f"kv_buffer_device {transfer.kv_buffer_device} on {device}: caches are registered where "
            f"they are, without a copy in host memory; set kv_buffer_device to {device}",
        ),
        (transfer.enable_permute_local_kv, "enable_permute_local_kv"),
        (
            parallel.prefill_context_parallel_size > 1,
            f"prefill context parallelism (size {parallel.prefill_context_parallel_size})",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            f"pipeline parallelism (size {parallel.pipeline_parallel_size})",
        ),
        (
            push and parallel.decode_context_parallel_size > 1,
            f"decode context parallelism in push mode (size {parallel.decode_context_parallel_size})",
        ),
        (push and bidirectional, "bidirectional_kv_xfer in push mode"),
        (
            cache.hisparse_host_num_blocks is not None
            or any(group.host_resident for group in cache.kv_cache_groups),
            "HiSparse host pools",
        ),
        (
            any(isinstance(spec, CircularBufferSpec) for spec in specs),
            "circular buffer caches (CSA-linear models)",
        ),
        (
            any(isinstance(spec, MambaSpec) and spec.tp_replicated for spec in specs),
            "recurrent states that are replicated over tensor-parallel ranks",
        ),
    ]
