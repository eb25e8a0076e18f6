"""Writes tests/vllm/data/geometry.json: what vLLM's connector makes of KV-cache tensors.

Run it with the Python of an environment that has vLLM 0.32 (the CPU build will do):

    python tests/vllm/record_geometry.py > tests/vllm/data/geometry.json

Where tests/vllm/record_descriptors.py is about which bytes move, this is about the step before: from the
tensors that an engine allocates to the region list that its workers tell each other, in every physical
layout. Real are, besides the connector's worker, the code that places layers in the allocation and the
code that makes a tensor of each. Replaced is the same as there.

For every rank the table has the tensors (address, allocation, shape and strides in bytes) and the metadata
of the handshake; for every request what each decode rank reads, as [prefill rank, address here, address
there, bytes]. An allocation's real address means nothing elsewhere: the n-th of a rank begins at
(n + 1) << 40.
"""

from __future__ import annotations

import json
import os
import random
import sys
from types import SimpleNamespace
from unittest import mock

import record_descriptors as base
import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.push_worker import NixlPushConnectorWorker
from vllm.v1.core.kv_cache_utils import _get_kv_cache_bytes_per_block, get_kv_cache_config_from_groups
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
    create_kv_cache_views,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

HALF = torch.float16


class Recorder(base.Recorder):
    """The push worker has a thread that asks for notifications."""

    def get_new_notifs(self):
        return {}


def specs(case, side):
    """[(layer names, spec)] of the groups of a rank."""
    tp, block = side["tp"], side["block"]
    kind = case["kind"]
    heads = max(1, case["heads"] // tp)
    common = dict(block_size=block, num_kv_heads=heads, head_size=base.HEAD, dtype=HALF)
    latent = dict(block_size=block, num_kv_heads=1, head_size=base.LATENT, dtype=HALF)
    names = [f"model.layers.{n}.attn" for n in range(case["layers"])]
    if kind == "mla":
        return [(names, MLAAttentionSpec(**latent))]
    if kind == "mla+indexer":
        small = MLAAttentionSpec(**{**latent, "head_size": 16})
        members = {}
        for name in names:
            members[name] = MLAAttentionSpec(**latent)
            members[name + ".indexer"] = small
        return [(list(members), UniformTypeKVCacheSpecs(block_size=block, kv_cache_specs=members))]
    if kind == "mla+window":
        window = SlidingWindowMLASpec(**latent, sliding_window=2 * block)
        return [(names[0::2], MLAAttentionSpec(**latent)), (names[1::2], window)]
    full = FullAttentionSpec(**common)
    if kind == "window":
        window = SlidingWindowSpec(**common, sliding_window=2 * block)
        return [(names[0::2], full), (names[1::2], window)]
    if kind == "mamba":
        state = MambaSpec(
            block_size=block,
            shapes=((sum(base.CONV) // tp, base.CONV_ROWS),
                    (base.SSM_HEADS // tp, base.SSM_HEAD_DIM, base.SSM_STATE)),
            dtypes=(HALF, HALF), page_size_padded=full.page_size_bytes,
        )
        return [(names[0::2], full), (names[1::2], state)]
    return [(names, full)]


def number(dtype):
    return torch.tensor([], dtype=dtype).element_size()


class Rank:
    """A worker of one engine with memory of its own."""

    def __init__(self, case, side, name, rank):
        self.rank, self.side = rank, side
        layout = KVCacheLayout[case["layout"]]
        ppl = side["ppl"]
        groups = [KVCacheGroupSpec(layers, spec) for layers, spec in specs(case, side)]
        config = SimpleNamespace(
            kv_transfer_config=SimpleNamespace(
                get_from_extra_config=lambda key, default: default,
                kv_buffer_device="cpu", kv_role="kv_both", enable_permute_local_kv=False,
            ),
            cache_config=SimpleNamespace(
                block_size=side["block"], enable_prefix_caching=False, num_gpu_blocks_override=None,
                prefix_cache_retention_interval=None, get_resolved_kv_cache_layout=lambda: layout,
            ),
            attention_config=SimpleNamespace(hisparse_config=None),
            scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
            parallel_config=SimpleNamespace(
                tensor_parallel_size=side["tp"], prefill_context_parallel_size=1,
                decode_context_parallel_size=1, pipeline_parallel_size=1,
            ),
            model_config=SimpleNamespace(
                use_mla=case["kind"].startswith("mla"), get_total_num_kv_heads=lambda: case["heads"]),
        )
        row = _get_kv_cache_bytes_per_block(groups, layout)
        kv_config = get_kv_cache_config_from_groups(config, groups, row * side["pages"])
        assert kv_config.num_blocks == side["pages"]
        # As the engine does it: one allocation, and a view of it for each layer.
        raw = torch.empty(kv_config.kv_cache_tensors[0].size, dtype=torch.int8)
        self.storages = [(raw.data_ptr(), raw.nbytes)]
        self.specs = {}
        for group in groups:
            spec = group.kv_cache_spec
            inner = getattr(spec, "kv_cache_specs", None)
            self.specs.update(inner or dict.fromkeys(group.layer_names, spec))
        self.group_of = {name: g for g, group in enumerate(groups) for name in group.layer_names}
        self.caches = {}
        for placed in kv_config.kv_cache_tensors:
            spec = self.specs[placed.layers[0]]
            kernel = None if isinstance(spec, MambaSpec) else side["block"] // ppl
            views = create_kv_cache_views(raw, spec, kv_config.num_blocks, layout, placed, kernel)
            self.caches.update(zip(placed.layers, views))
        backend = SimpleNamespace(get_name=lambda: "RECORDED")
        patches = dict(
            NixlWrapper=Recorder,
            get_tensor_model_parallel_rank=lambda: rank,
            get_tensor_model_parallel_world_size=lambda: side["tp"],
            get_current_attn_backends=lambda *a: [backend],
            get_current_attn_backends_and_specs=lambda *a: ([backend], [None]),
            select_common_block_size=lambda block, *a: block // ppl,
            compute_nixl_compatibility_hash=lambda *a, **k: "recorded",
        )
        made = NixlPushConnectorWorker if case["mode"] == "push" else base.NixlPullConnectorWorker
        with mock.patch.multiple(base_worker, **patches):
            self.worker = made(config, name, kv_config)
            self.worker.register_kv_caches(self.caches)
        self.recorder = self.worker.nixl_wrapper
        payload = self.worker.xfer_handshake_metadata.agent_metadata_bytes
        self.metadata = lambda: base.msgspec.msgpack.decode(payload, type=base.NixlAgentMetadata)

    def place(self, address):
        """An address in terms of the allocation it is in."""
        for n, (start, size) in enumerate(self.storages):
            if start <= address <= start + size:
                return ((n + 1) << 40) + address - start
        raise AssertionError(f"{address:#x} is outside the cache")

    def facts(self):
        """What the engine knows, and what its worker tells others."""
        out = []
        for name, cache in self.caches.items():
            spec = self.specs[name]
            storage = cache.untyped_storage()
            size = cache.element_size()
            fact = dict(
                layer=name, group=self.group_of[name], address=self.place(cache.data_ptr()),
                storage=[self.place(storage.data_ptr()), storage.nbytes()],
                dims=[[n, s * size] for n, s in zip(cache.shape, cache.stride())],
                elem=size, page=spec.page_size_bytes,
            )
            if isinstance(spec, MambaSpec):
                fact.update(state=[list(s) for s in spec.shapes],
                            state_elems=[number(d) for d in spec.dtypes], content="state")
            else:
                latent = isinstance(spec, (MLAAttentionSpec, SlidingWindowMLASpec))
                fact.update(content="latent" if latent else "heads", head=spec.head_size)
            out.append(fact)
        m = self.metadata()
        told = {key: getattr(m, key) for key in (
            "num_blocks", "block_lens", "block_strides", "kv_cache_layout", "block_size", "ssm_sizes",
            "attn_backend_name", "physical_blocks_per_logical_kv_block", "region_num_blocks",
            "region_group_ids", "region_names", "region_mem_types", "dcp_size", "pcp_size",
            "region_members", "packed_member_layouts", "device_id")}
        told["kv_caches_base_addr"] = [self.place(a) for a in m.kv_caches_base_addr]
        return dict(tensors=out, metadata=told)


def groups_of(case, side):
    return [(type(spec).__name__, spec.block_size, getattr(spec, "sliding_window", 0))
            for _, spec in specs(case, side)]


def run(case):
    """Registers every rank, and for pull records what the decode ranks move."""
    for key in ("prefill", "decode"):
        case[key]["groups"] = groups_of(case, case[key])
    prefill = [Rank(case, case["prefill"], "P", r) for r in range(case["prefill"]["tp"])]
    decode = [Rank(case, case["decode"], "D", r) for r in range(case["decode"]["tp"])]
    for key, ranks in (("prefill", prefill), ("decode", decode)):
        case[key]["ranks"] = [rank.facts() for rank in ranks]
    names = {p.recorder.name: p for p in prefill}
    if case["mode"] == "pull":
        for d in decode:
            tp = case["prefill"]["tp"]
            for p in d.worker.transfer_topo.handshake_target_ranks(tp, 1):
                name = d.worker.add_remote_agent(prefill[p].metadata(), p, tp, 1)
                d.worker._remote_agents["P"][(0, p)] = name
        for request in case["requests"]:
            request["ranks"] = [moves(case, request, d, names) for d in decode]
    for rank in (*prefill, *decode):
        rank.worker.shutdown()


def moves(case, request, d, names):
    metadata = base.NixlConnectorMetadata()
    metadata.add_new_req_to_recv(
        "r", [list(g) for g in request["local"]],
        dict(remote_block_ids=[list(g) for g in request["remote"]], remote_engine_id="P",
             remote_request_id="p", remote_host="", remote_port=0,
             tp_size=case["prefill"]["tp"], dcp_size=1),
        local_num_computed_blocks=tuple(request["first"]), awaiting_kvs=True,
    )
    d.recorder.transfers.clear()
    d.worker.start_load_kv(metadata)
    assert d.worker._failed_recv_reqs.empty() and not d.worker._recv_failures
    # start_load_kv() goes on with a request whose transfers are still known; this one is over.
    d.worker._recving_transfers.clear()
    d.worker._recving_metadata.clear()
    out = []
    for agent, local, remote, length in d.recorder.transfers:
        source = names[agent]
        out.append([source.rank, d.place(local), source.place(remote), length])
    return joined(out)


def joined(moves):
    """Sorted, those joined that continue each other on both sides."""
    out = []
    for rank, local, remote, length in sorted(moves):
        last = out[-1] if out else None
        if last and last[0] == rank and last[1] + last[3] == local and last[2] + last[3] == remote:
            last[3] += length
        else:
            out.append([rank, local, remote, length])
    return out


def requests(rng, case):
    p, d = case["prefill"], case["decode"]
    for hit in (0, 1):
        blocks = rng.randint(2, 5)
        if p["block"] != d["block"]:
            hit = 0
        n_p, n_d = (blocks * max(p["block"], d["block"]) // s["block"] for s in (p, d))
        ids_p, ids_d = base.blocks(rng, p["pages"], n_p + 3), base.blocks(rng, d["pages"], n_d + 3)
        local, remote, first = [ids_d[hit:n_d]], [ids_p[:n_p]], [hit]
        rest_p, rest_d = ids_p[n_p:], ids_d[n_d:]
        if len(p["groups"]) > 1:
            # Windows: what is left of the list; states: one.
            count = 1 if case["kind"] == "mamba" else min(2, n_d)
            local.append(rest_d[:count])
            remote.append(rest_p[:count])
            first.append(0 if case["kind"] == "mamba" else n_d - count)
        yield dict(tokens=blocks * max(p["block"], d["block"]), local=local, remote=remote, first=first)


def side(tp, pages, block=16, ppl=1):
    return dict(tp=tp, block=block, pages=pages, ppl=ppl)


def cases():
    rng = random.Random(4)
    table = []

    def add(name, kind, layout, prefill, decode, heads=4, layers=2, mode="pull"):
        table.append(dict(name=name, kind=kind, layout=layout, heads=heads, layers=layers, mode=mode,
                          prefill=prefill, decode=decode))

    for p, d in ((1, 1), (1, 2), (2, 1)):
        add(f"TP {p} to {d}", "dense", "LBHNC", side(p, 12), side(d, 15), layers=12)
    add("several kernel blocks, TP 1 to 2", "dense", "LBHNC", side(1, 12, 32, 2), side(2, 15, 32, 2))
    add("one layer, TP 1 to 2", "dense", "LBHNC", side(1, 12), side(2, 15), layers=1)
    add("2 KV heads, TP 2 to 4", "dense", "LBHNC", side(2, 12), side(4, 15), heads=2)
    add("token-major", "dense", "LBNHC", side(2, 12), side(2, 15))
    add("by head", "dense", "LHBNC", side(1, 12), side(1, 15))
    add("by head, TP 2", "dense", "LHBNC", side(2, 12), side(2, 15), layers=3)
    add("by head, TP 4", "dense", "LHBNC", side(4, 12), side(4, 15))
    add("rows of layers", "dense", "BLHNC", side(1, 12), side(2, 15), layers=3)
    add("rows of layers, token-major", "dense", "BLNHC", side(2, 12), side(2, 15), layers=3)
    add("rows of heads", "dense", "BHLNC", side(1, 12), side(1, 15), layers=3)
    add("rows of heads, TP 2", "dense", "BHLNC", side(2, 12), side(2, 15), layers=3)
    add("rows of heads, one head", "dense", "BHLNC", side(4, 12), side(4, 15), layers=3)
    add("MLA", "mla", "LBHNC", side(2, 12), side(1, 15))
    add("MLA, several kernel blocks", "mla", "LBHNC", side(1, 12, 64, 4), side(2, 15, 64, 4))
    add("MLA, kernel blocks of 16 to 32", "mla", "LBHNC", side(1, 30, 16), side(1, 15, 32))
    add("MLA in rows", "mla", "BLHNC", side(2, 12), side(1, 15), layers=3)
    add("MLA with an indexer", "mla+indexer", "LBHNC", side(1, 12), side(2, 15))
    add("MLA with an indexer, in rows", "mla+indexer", "BLHNC", side(1, 12), side(2, 15))
    add("MLA and window, in rows", "mla+window", "BLHNC", side(1, 12), side(1, 15), layers=4)
    for p, d in ((1, 1), (1, 2), (2, 1)):
        add(f"window, TP {p} to {d}", "window", "LBHNC", side(p, 12), side(d, 15), layers=6)
    add("window, several kernel blocks", "window", "LBHNC", side(1, 12, 32, 2), side(1, 15, 32, 2), layers=4)
    add("window, by head", "window", "LHBNC", side(1, 12), side(1, 15), layers=4)
    add("window, in rows", "window", "BLHNC", side(1, 12), side(2, 15), layers=4)
    for p, d in ((1, 1), (1, 2), (2, 1), (4, 1)):
        add(f"Mamba hybrid, TP {p} to {d}", "mamba", "LBHNC", side(p, 12), side(d, 15), layers=4)
    add("Mamba hybrid, several kernel blocks", "mamba", "LBHNC", side(1, 12, 32, 2), side(2, 15, 32, 2),
        layers=4)
    # What is told to peers in push mode.
    for layout in ("LBHNC", "BLHNC"):
        add(f"push, {layout}", "dense", layout, side(1, 12), side(2, 15), mode="push", layers=3)
        add(f"push, MLA, {layout}", "mla", layout, side(1, 12), side(2, 15), mode="push", layers=3)
        add(f"push, window, {layout}", "window", layout, side(1, 12), side(2, 15), mode="push", layers=4)
    add("push, MLA and window", "mla+window", "BLHNC", side(1, 12), side(2, 15), mode="push", layers=4)
    add("push, Mamba hybrid", "mamba", "LBHNC", side(1, 12), side(2, 15), mode="push", layers=4)
    for case in table:
        for key in ("prefill", "decode"):
            case[key]["groups"] = groups_of(case, case[key])
        case["requests"] = list(requests(rng, case)) if case["mode"] == "pull" else []
    return table


def main():
    table = []
    for case in cases():
        try:
            run(case)
            table.append(case)
        except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
            if os.environ.get("RECORD_DEBUG"):
                raise
            print(f"not recorded: {case['name']}: {type(error).__name__} {error}", file=sys.stderr)
    print(f"{len(table)} cases recorded", file=sys.stderr)
    out = [json.dumps(case, separators=(",", ":")) for case in table]
    print('{"vllm":%s,"cases":[\n%s\n]}' % (json.dumps(vllm.__version__), ",\n".join(out)))


if __name__ == "__main__":
    main()
