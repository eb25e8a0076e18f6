"""A real engine with kvferry's block pool: the same tokens as with vLLM's own, with prefix caching on and
so few blocks that cached ones are evicted all the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm")
from harness import models
from harness.installed import entry_points

from kvferry import pool_client

# Seconds; starting an engine takes one minute on an idle machine.
LIMIT = float(os.environ.get("KVF_VLLM_START_LIMIT", 800))

ENGINE = """
import json, random, sys

from vllm import LLM, SamplingParams

llm = LLM(
    model=sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
    enable_prefix_caching=True, block_size=32, num_gpu_blocks_override=24, max_model_len=512,
    max_num_seqs=4, max_num_batched_tokens=256, disable_log_stats=True,
)
pool = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
rng = random.Random(7)
shared = [[rng.randrange(3, 2000) for _ in range(96)] for _ in range(3)]
sessions = [shared[i % 3] + [rng.randrange(3, 2000) for _ in range(40)] for i in range(8)]
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
tokens, cached, runs = [], 0, 0
for turn in range(4):
    # Side by side, so that requests wait for each other's blocks.
    outputs = llm.generate([{"prompt_token_ids": s} for s in sessions], params, use_tqdm=False)
    for i, output in enumerate(outputs):
        answer = list(output.outputs[0].token_ids)
        tokens.append(answer)
        cached += output.num_cached_tokens
        sessions[i] = sessions[i] + answer + [rng.randrange(3, 2000) for _ in range(20)]
report = {"pool": type(pool).__module__, "tokens": tokens, "cached": cached, "usage": pool.get_usage()}
if hasattr(pool, "_pool"):
    report["stats"] = pool._pool.stats()._asdict()
print("REPORT " + json.dumps(report))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What engines with different pools reported; they run side by side."""
    folder = tmp_path_factory.mktemp("pools")
    model = models.make("llama", folder)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(entry_points(folder))])
    common = {
        "PYTHONPATH": path,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
    }
    wanted = {
        "vllm": {"KVFERRY_BLOCK_POOL": ""},
        "lru": {"KVFERRY_BLOCK_POOL": "local", "KVFERRY_BLOCK_POOL_POLICY": "lru"},
        "default": {"KVFERRY_BLOCK_POOL": "local"},
    }
    with pool_client.serve() as server:
        wanted["server"] = {
            **{"KVFERRY_BLOCK_POOL": "server", "KVFERRY_BLOCK_POOL_POLICY": "lru"},
            "KV_CACHE_SOCKET_PATH": server.address,
        }
        yield run(model, common, wanted)


def run(model, common: dict[str, str], wanted: dict[str, dict[str, str]]) -> dict:
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(model)],
            env={**os.environ, **common, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, more in wanted.items()
    }
    found = {}
    try:
        for name, process in running.items():
            output, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, output[-4000:]
            line = next(one for one in output.splitlines() if one.startswith("REPORT "))
            found[name] = json.loads(line.removeprefix("REPORT "))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def test_each_engine_had_its_pool(reports):
    assert reports["vllm"]["pool"] == "vllm.v1.core.block_pool"
    ours = {reports[name]["pool"] for name in ("lru", "default", "server")}
    assert ours == {"kvferry.vllm.block_pool"}


@pytest.mark.parametrize("policy", ["lru", "default", "server"])
def test_same_tokens(reports, policy):
    assert reports[policy]["tokens"] == reports["vllm"]["tokens"]
    assert len(set(map(tuple, reports["vllm"]["tokens"]))) > 8  # the prompts matter
    stats = reports[policy]["stats"]
    assert stats["hits"] > 0 and stats["removed_keys"] > 0, stats
    assert reports[policy]["usage"] == 0 and stats["free"] == stats["blocks"] - 1


@pytest.mark.parametrize("name", ["lru", "server"])
def test_lru_hits_what_vllm_hits(reports, name):
    assert reports[name]["cached"] == reports["vllm"]["cached"] > 0
