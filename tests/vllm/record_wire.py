"""Records what stock vLLM's NIXL connector puts on the wire, for tests/connector_wire/.

    VLLM_PYTHON tests/vllm/record_wire.py > tests/vllm/data/wire.json

VLLM_PYTHON is the Python of an environment with vllm 0.32.0; NIXL is not needed. Only to be run again
when the cases change: the test needs nothing but the file.

Everything is made by vLLM's own classes and functions with msgspec's encoder, which is what the
connector uses: ``NixlAgentMetadata``, ``NixlHandshakePayload``, ``compute_nixl_compatibility_hash``,
``TransferTopology``. Under "judged" are altered maps and whether vLLM's decoder takes them: `begin`
bytes of the first map, the middle, and its last `end` bytes.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import asdict
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import msgspec  # noqa: E402
import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.utils import TransferTopology  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import (  # noqa: E402
    GET_META_MSG,
    NIXL_CONNECTOR_VERSION,
    PUSH_REG_NOTIF_PREFIX,
    NixlAgentMetadata,
    NixlHandshakePayload,
    compute_nixl_compatibility_hash,
)

pack = msgspec.msgpack.encode
REQUIRED = 12


def smallest():
    return NixlAgentMetadata(
        engine_id="e", agent_metadata=b"", kv_caches_base_addr=[], device_id=0, num_blocks=0,
        block_lens=[], block_strides=[], kv_cache_layout="LBHNC", block_size=16, ssm_sizes=(0, 0),
        attn_backend_name="FLASH_ATTN", physical_blocks_per_logical_kv_block=1,
    )


def usual(rng, regions):
    """A rank with so many regions; numbers around the places where MessagePack changes its form."""
    edges = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**47, 2**63, 2**64 - 1]
    page = rng.choice([4096, 65535, 65536, 131072])
    return NixlAgentMetadata(
        engine_id="0f8fad5b-d9cb-469f-a165-70867728950e" + "_dp7" * rng.randint(0, 1),
        agent_metadata=rng.randbytes(rng.choice([31, 255, 256, 486])),
        kv_caches_base_addr=[rng.choice(edges) for _ in range(regions)],
        device_id=rng.choice([0, 7]),
        num_blocks=rng.choice(edges[:8]),
        block_lens=[page] * regions,
        block_strides=[page * rng.choice([1, regions])] * regions,
        kv_cache_layout=rng.choice(["LBHNC", "LBNHC", "LHBNC"]),
        block_size=rng.choice([16, 128, 784]),
        ssm_sizes=rng.choice([(0, 0), (288, 512), (2**20, 2**33)]),
        attn_backend_name=rng.choice(["CPU_ATTN", "FLASHINFER", "FLASH_ATTN,FLASHINFER"]),
        physical_blocks_per_logical_kv_block=rng.choice([1, 49]),
        region_num_blocks=rng.choice([None, [2048] * regions]),
        region_group_ids=rng.choice([None, [rng.choice([-1, 0, 1, 200]) for _ in range(regions)]]),
        region_names=rng.choice(
            [None, [f"model.layers.{i}.self_attn.attn" for i in range(regions)]]),
        region_mem_types=rng.choice([None, ["VRAM"] * regions, ["DRAM"] * regions]),
        dcp_size=rng.choice([1, 8]),
        pcp_size=rng.choice([1, 2]),
        ple_block_len=rng.choice([None, 36864]),
        region_members=rng.choice([[], [[f"layers.{i}", "μ"] for i in range(regions)]]),
        packed_member_layouts=rng.choice(
            [{}, {f"model.layers.{i}.mla": (i * 9216, 9216) for i in range(regions)}]),
    )


def payloads():
    rng = random.Random(4)
    for metadata in [smallest(), *(usual(rng, n) for n in (1, 2, 4, 15, 16, 31, 32, 60, 300))]:
        inner = pack(metadata)
        fields = asdict(metadata)
        fields["agent_metadata"] = metadata.agent_metadata.hex()
        fields["packed_member_layouts"] = list(fields["packed_member_layouts"].items())
        outer = pack(NixlHandshakePayload("5d" * 32, inner))
        yield dict(fields=fields, inner=inner.hex(), outer_head=outer[: len(outer) - len(inner)].hex())


def judged():
    """Altered inner maps, and whether vLLM's decoder takes them."""
    decoder = msgspec.msgpack.Decoder(NixlAgentMetadata)
    base = msgspec.msgpack.decode(pack(usual(random.Random(1), 2)))
    base.update(agent_metadata=b"abc", region_num_blocks=[1, 2], region_group_ids=[-1, 0],
                region_names=["a", "b"], region_mem_types=["VRAM", "DRAM"], ple_block_len=7,
                region_members=[["a"], ["b", "c"]], packed_member_layouts={"a": [0, 1]})
    keys = list(base)
    others = [None, True, 3, 10.0, "text", b"bytes", [], [1], [1, 2], [1, 2, 3], ["a"], [["a"]],
              [[1]], {}, {"a": [1, 2]}, {"a": [1]}, {"a": 1}, [None], [1.5], "1"]
    variants = [("as it is", base), ("all keys the other way round", dict(reversed(base.items())))]
    variants.append(("only the required keys", {k: base[k] for k in keys[:REQUIRED]}))
    variants.append(("an unknown key", {"unknown": {"deep": [1, {"er": None}]}, **base}))
    variants.append(("an array", list(base.values())))
    variants += [(f"without {k}", {o: v for o, v in base.items() if o != k}) for k in keys]
    variants += [(f"{k} = {other!r}", {**base, k: other}) for k in keys for other in others]
    raw = [(name, pack(value)) for name, value in variants]
    whole = pack(base)
    raw += [("a byte behind it", whole + b"\0"), ("nothing", b""), ("the last byte missing", whole[:-1])]
    for name, data in raw:
        try:
            decoder.decode(data)
            taken = True
        except (msgspec.DecodeError, msgspec.ValidationError):
            taken = False
        # As what stands between a beginning and an end of the first one, to keep the file small.
        first = raw[0][1] if name != raw[0][0] else b""
        begin = len(os.path.commonprefix([first, data]))
        end = len(os.path.commonprefix([first[begin:][::-1], data[begin:][::-1]]))
        middle = data[begin : len(data) - end].hex()
        yield dict(name=name, begin=begin, middle=middle, end=end, taken=taken)


def config(model, dtype, heads, head, layers, cache_dtype, hma, draft):
    speculative = None
    if draft is not None:
        speculative = SimpleNamespace(
            use_eagle=lambda: True, method=draft["method"], kv_cache_dtype=draft["kv_cache_dtype"],
            parallel_drafting=draft["parallel_drafting"],
            draft_model_config=SimpleNamespace(
                model=draft["model"], revision=draft["revision"], code_revision=draft["code_revision"],
                hf_config=SimpleNamespace(
                    eagle_aux_hidden_state_layer_ids=draft["auxiliary_layer_ids"])),
        )
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=model, dtype=dtype, get_total_num_kv_heads=lambda: heads,
            get_head_size=lambda: head, get_total_num_hidden_layers=lambda: layers),
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not hma),
        speculative_config=speculative,
    )


def hashes():
    eagle = dict(method="eagle3", model="org/draft", revision=None, code_revision="v1",
                 parallel_drafting=False, kv_cache_dtype=None, auxiliary_layer_ids=[2, 16, 29])
    mtp = dict(method="mtp", model="dräft \"x\"", revision="main", code_revision=None,
               parallel_drafting=True, kv_cache_dtype="fp8", auxiliary_layer_ids=None)
    none = dict(eagle, auxiliary_layer_ids=[])
    odd = "m\u00f6del/\U0001f600/\"quoted\"\\back\tt\nn\rr\bb\ff\x00\x1f\x7f/\u2028~ "
    for model, dtype, heads, head, layers, cache, hma, draft, backend, mode in [
        ("models/tiny", torch.float32, 2, 64, 4, "auto", True, None, "CPU_ATTN", "pull"),
        ("models/tiny", torch.float32, 2, 64, 4, "auto", True, None, "CPU_ATTN", "push"),
        ("org/model-8B", torch.bfloat16, 8, 128, 36, "fp8", False, None, "FLASH_ATTN", "pull"),
        (odd, torch.float16, 1, 576, 61, "auto", True, None, "FLASHMLA,TRITON", "push"),
        ("org/model", torch.bfloat16, 8, 128, 36, "auto", True, eagle, "FLASH_ATTN", "pull"),
        ("org/model", torch.bfloat16, 8, 128, 36, "auto", True, mtp, "FLASH_ATTN", "pull"),
        ("org/model", torch.bfloat16, 8, 128, 36, "fp8_e4m3", False, none, "FLASH_ATTN", "push"),
    ]:
        digest = compute_nixl_compatibility_hash(
            config(model, dtype, heads, head, layers, cache, hma, draft), backend, mode)
        effective = draft and dict(draft, kv_cache_dtype=draft["kv_cache_dtype"] or cache)
        yield dict(model=model, dtype=str(dtype), num_kv_heads=heads, head_size=head,
                   num_hidden_layers=layers, cache_dtype=cache, is_hma_enabled=hma,
                   attn_backend_name=backend, transfer_mode=mode, speculative=effective, hash=digest)


def requests():
    for pp in (0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1):
        yield dict(pp=pp, tp=2**32 - 1 - pp, bytes=pack((GET_META_MSG, pp, 2**32 - 1 - pp)).hex())


def registrations():
    rng = random.Random(5)
    for blocks in ([], [[]], [[5, 6, 7]], [[1] * 16, list(range(0, 70000, 991)), []]):
        body = dict(
            request_id=f"cmpl-{rng.randbytes(4).hex()}", decode_engine_id="decode", decode_host="::1",
            decode_port=rng.choice([1, 5601, 65535]), decode_tp_size=rng.choice([1, 8]),
            local_block_ids=tuple(blocks), remote_engine_id="prefill", remote_host="10.0.0.1",
            remote_port=5600, remote_tp_size=2, remote_pp_size=4)
        yield dict(body=body, bytes=(PUSH_REG_NOTIF_PREFIX + pack(body)).hex())


def topology():
    """Who shakes hands with whom, and how many tell each producer rank that they are done."""
    sizes = [(tp, dcp) for tp in (1, 2, 3, 4, 6, 8) for dcp in sorted({1, tp})]
    for local_tp, local_dcp in sizes:
        for remote_tp, remote_dcp in sizes:
            ranks = []
            try:
                if remote_dcp > 1 and max(local_dcp, remote_dcp) % min(local_dcp, remote_dcp):
                    raise AssertionError("vLLM checks this elsewhere")
                for rank in range(local_tp):
                    t = TransferTopology.__new__(TransferTopology)
                    t.tp_rank, t.tp_size = rank, local_tp
                    t.dcp_size = local_dcp
                    ranks.append(t.handshake_target_ranks(remote_tp, remote_dcp))
                    count = t.dcp_consumer_count(remote_tp, remote_dcp)
            except AssertionError:
                ranks = count = None
            yield dict(local=[local_tp, local_dcp], remote=[remote_tp, remote_dcp], ranks=ranks,
                       count=count)


def main():
    sections = dict(payloads=payloads(), judged=judged(), hashes=hashes(), requests=requests(),
                    registrations=registrations(), topology=topology())
    clocks = [dict(seconds=s, bytes=pack(s).hex()) for s in (0.0, 1.5, 123456.789012345, 1e9 + 0.125)]
    out = [f'"vllm":{json.dumps(vllm.__version__)},"connector_version":{NIXL_CONNECTOR_VERSION}']
    for name, cases in [*sections.items(), ("clocks", clocks)]:
        lines = [json.dumps(case, separators=(",", ":")) for case in cases]
        print(f"{name}: {len(lines)}", file=sys.stderr)
        out.append(f'"{name}":[\n' + ",\n".join(lines) + "\n]")
    print("{" + ",\n".join(out) + "}")


if __name__ == "__main__":
    main()
