"""The package without engines: what it refuses, what it offers vLLM, and under which names."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from kvferry.kv_cache import Content, SlabOrder, StateKind
from kvferry.layout import GroupKind
from kvferry.vllm import cache as vllm_cache
from kvferry.vllm import config as vllm_config
from kvferry.vllm import connector, plugin, stats, worker
from kvferry.worker import WorkerResults
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import supports_hma
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

BLOCK = 16


def configuration(**changes):
    """vLLM's configuration with what the package asks for; changes by dotted name."""
    transfer = SimpleNamespace(
        get_from_extra_config=lambda key, default: extra.get(key, default),
        kv_buffer_device="cpu",
        kv_role="kv_consumer",
        engine_id="engine",
        enable_permute_local_kv=False,
    )
    whole = SimpleNamespace(
        kv_transfer_config=transfer,
        cache_config=SimpleNamespace(
            block_size=BLOCK, get_resolved_kv_cache_layout=lambda: SimpleNamespace(name="LBHNC")
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            data_parallel_index=0,
        ),
        model_config=SimpleNamespace(use_mla=False, get_total_num_kv_heads=lambda: 2),
        num_prefill_lookahead_tokens=0,
    )
    extra = changes.pop("extra", {})
    for name, value in changes.items():
        part, field = name.split("__")
        setattr(getattr(whole, part), field, value)
    return whole


def full(**kwargs):
    return FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.float32, **kwargs
    )


def gdn():
    return MambaSpec(
        block_size=BLOCK,
        shapes=((96, 3), (4, 8, 16)),
        dtypes=(torch.float16, torch.float32),
        mamba_type=MambaAttentionBackendEnum.GDN_ATTN,
        num_speculative_blocks=2,
    )


def blocks(*specs) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layers.{i}.attn"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_transfer_config__kv_buffer_device": "cuda"}, "kv_buffer_device cuda on cpu"),
        ({"kv_transfer_config__enable_permute_local_kv": True}, "enable_permute_local_kv"),
        ({"parallel_config__pipeline_parallel_size": 2}, r"pipeline parallelism \(size 2\)"),
        ({"parallel_config__prefill_context_parallel_size": 2}, r"prefill context .*\(size 2\)"),
    ],
)
def test_refused_at_start(changes, words):
    with pytest.raises(NotImplementedError, match=words):
        vllm_config.check(configuration(**changes), blocks(full()), push=False)


def test_refused_in_push_mode_only():
    config = configuration(
        parallel_config__decode_context_parallel_size=2, extra={"bidirectional_kv_xfer": True}
    )
    vllm_config.check(config, blocks(full()), push=False)
    with pytest.raises(NotImplementedError, match="push mode"):
        vllm_config.check(config, blocks(full()), push=True)


@pytest.mark.parametrize("specs", [(full(),), (full(), gdn())])
def test_no_way_of_asking_loses_a_failure(specs):
    """``get_finished`` has no place for failures: the blocks tell, or the request waits for the results."""
    reports = [WorkerResults(["s"], ["good", "bad"], ["bad"], [3, 4], False)]
    nothing = WorkerResults([], [], [], [], False)
    side = object.__new__(worker.WorkerSide)
    side._cache, side._failed, side._failed_blocks = blocks(*specs), set(), set()
    side._library = SimpleNamespace(poll=lambda: reports.pop() if reports else nothing)
    sent, received = side.finished()
    assert sent == {"s"} and "good" in received
    told = side.failed_blocks() == {3, 4}
    assert told == ("bad" in received) == (len(specs) == 1)
    results = side.results()
    late = set() if told else {"bad"}
    assert (results.finished_recving, results.failed_recving) == (late, late)
    assert side.results().finished_recving == set()
    reports.append(WorkerResults([], ["bad"], ["bad"], [], False))
    results = side.results()
    assert results.finished_recving == results.failed_recving == {"bad"}


def test_settings_have_stocks_keys_and_defaults(monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "10.0.0.7")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "7000")
    config = configuration(parallel_config__data_parallel_index=3)
    settings = vllm_config.Settings.of(config)
    assert (settings.host, settings.port) == ("10.0.0.7", 7003)
    assert (settings.transport, settings.backends, settings.threads) == ("nixl", ["UCX"], 4)
    assert (settings.lease, settings.engine_ttl, settings.pin) == (30, 3600, 480)
    assert settings.registration_timeout == settings.pin
    assert settings.enforce_compatibility and not settings.bidirectional

    extra = {
        "kvferry_transport": "local",
        "kv_lease_duration": 12,
        "decoder_kv_blocks_ttl": 60,
        "enforce_handshake_compat": False,
        "kv_recompute_threshold": 0,
    }
    settings = vllm_config.Settings.of(configuration(extra=extra))
    assert (settings.transport, settings.lease, settings.pin) == ("local", 12, 60)
    assert settings.registration_timeout == 60
    assert not settings.enforce_compatibility and settings.recompute_threshold == 0


def test_groups():
    window = SlidingWindowSpec(
        block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.float32, sliding_window=256
    )
    mla = MLAAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=576, dtype=torch.float32)
    cache = blocks(full(), window, mla, gdn())
    kinds = [(g.kind, g.tokens_per_block, g.window) for g in vllm_config.transfer_groups(cache)]
    assert kinds == [
        (GroupKind.FULL, BLOCK, 0),
        (GroupKind.SLIDING_WINDOW, BLOCK, 256),
        (GroupKind.MLA, BLOCK, 0),
        (GroupKind.STATE, 1, 0),
    ]
    assert vllm_config.scratch_blocks(cache) == [0, 0, 0, 2]
    assert vllm_config.is_hybrid(configuration(), cache)
    assert not vllm_config.is_hybrid(configuration(), blocks(full(), mla))
    off = configuration(scheduler_config__disable_hybrid_kv_cache_manager=True)
    assert not vllm_config.is_hybrid(off, cache)
    assert vllm_config.backoff_tokens(configuration(), cache) == 1
    assert vllm_config.backoff_tokens(configuration(), blocks(full())) == 0


def test_tensors_as_data(monkeypatch):
    backend = SimpleNamespace(get_name=lambda: "CPU_ATTN")
    monkeypatch.setattr(vllm_cache, "get_current_attn_backends", lambda *_: [backend])
    monkeypatch.setattr(
        vllm_cache, "get_current_attn_backends_and_specs", lambda *_: ([backend], [None])
    )
    monkeypatch.setattr(vllm_cache, "select_common_block_size", lambda *_: BLOCK // 2)
    memory = torch.empty(2, 16, 2, BLOCK // 2, 128)
    state = torch.empty(8 * 4096, dtype=torch.uint8)
    described = vllm_cache.describe(
        configuration(),
        blocks(full(), gdn()),
        {"layers.0.attn": memory[1], "layers.1.attn": state, "layers.2.shares": memory[0]},
    )
    assert (described.num_blocks, described.block_tokens, described.blocks_per_logical) == (8, 8, 2)
    assert (described.kv_heads, described.hybrid, described.slab_order) == (2, True, SlabOrder.HALVES)
    attention, recurrent = described.tensors
    assert (attention.layer, attention.group, attention.content) == ("layers.0.attn", 0, Content.HEADS)
    assert attention.address == memory.data_ptr() + memory[0].nbytes
    assert (attention.storage_address, attention.storage_bytes) == (memory.data_ptr(), memory.nbytes)
    assert attention.shape == (16, 2, 8, 128) and attention.strides == (8192, 4096, 512, 4)
    assert attention.page_bytes == 2 * 8192
    assert (recurrent.group, recurrent.content) == (1, Content.STATE)
    assert recurrent.state.kind == StateKind.GDN
    assert (recurrent.state.conv_shape, recurrent.state.conv_elem_bytes) == ((96, 3), 2)
    assert (recurrent.state.ssm_shape, recurrent.state.ssm_elem_bytes) == ((4, 8, 16), 4)


def test_plugin(monkeypatch):
    before = dict(KVConnectorFactory._registry)
    monkeypatch.setattr(KVConnectorFactory, "_registry", dict(before))
    monkeypatch.delenv("KVFERRY_REPLACE_NIXL", raising=False)
    plugin.register()
    plugin.register()
    registered = KVConnectorFactory.get_connector_class_by_name
    assert registered("KvFerryConnector") is connector.KvFerryConnector
    assert registered("NixlConnector").__module__.startswith("vllm.")

    monkeypatch.setenv("KVFERRY_REPLACE_NIXL", "1")
    plugin.register()
    for name in plugin.STOCK_NAMES:
        found = registered(name)
        assert issubclass(found, connector.KvFerryConnector)
        # MultiConnector files statistics under this name, and looks it up again.
        assert found.__name__ == name
    assert registered("NixlPushConnector").PUSH and not registered("NixlConnector").PUSH


def test_what_vllm_asks_the_class():
    ours = connector.KvFerryConnector
    assert supports_hma(ours)
    assert ours.get_required_kvcache_layout(configuration()) == "LBHNC"
    assert ours.get_required_kvcache_layout(configuration(model_config__use_mla=True)) is None
    assert not ours.supports_sleep_mode(configuration())
    assert ours.build_kv_connector_stats().is_empty()


def test_statistics_travel_and_add_up():
    assert stats.from_library({}) is None
    one = stats.from_library({"bytes_transferred": [10], "transfer_duration": [0.5],
                              "post_duration": [0.1], "num_descriptors": [3]})
    two = stats.from_library({"num_failed_transfers": [1]})
    one = pickle.loads(pickle.dumps(one))
    rebuilt = connector.KvFerryConnector.build_kv_connector_stats(two.to_dict())
    assert one.aggregate(rebuilt).reduce()["Num failed transfers"] == 1
    assert one.data["bytes_transferred"] == [10]
