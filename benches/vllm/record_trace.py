"""Records the block ids that a real vLLM engine gives to its KV connector, for merge_trace.py.

    OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0 VLLM_PYTHON benches/vllm/record_trace.py PART...
    with each PART one of producer, consumer, join       (by hand: needs vLLM 0.32, some minutes each)

One engine after the other serves the same prompts: as a *producer* (one token each; the finished
request's blocks are held for a few steps, as if somebody read them), and as a *consumer* (all of the
prompt but what its own prefix cache has comes from elsewhere; then it decodes 4 to 64 tokens). Engine,
scheduler, KV cache manager, prefix cache and model runner are vLLM's own; the connector below moves
nothing and writes down what it is told: `request_finished` on one side, `update_state_after_alloc` on
the other, of which the blocks without a hash are those to be read. `join` puts the two together.

The load: 1,600 prompts of 64 to 3,200 tokens, the last 600 of which are written down. Each begins with
one of 12 shared prefixes of 0 to 640 tokens, or, in a quarter of cases, with an earlier prompt, as the
next turn of a conversation does. The cache has 1,500 blocks of 32 tokens, a fraction of what all of it
would need, so blocks are evicted and used again all the time; at most 32 requests run at a time.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

BLOCKS, BLOCK, SEED = 1500, 32, 20_260
# The trace begins when the cache has been used up several times.
REQUESTS, KEPT = 1600, 600
HOLD_STEPS = 3
HERE = Path(__file__).resolve().parent
TRACE = HERE / "traces" / "tiny-llama.txt"
WHERE = "KVF_TRACE_PART"

MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 2048, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
}


def load() -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many tokens the consumer decodes for each."""
    rng = random.Random(SEED)
    tokens = lambda n: [rng.randrange(3, 2048) for _ in range(n)]  # noqa: E731
    prefixes = [tokens(rng.randrange(0, 641)) for _ in range(12)]
    prompts: list[list[int]] = []
    for _ in range(REQUESTS):
        if len(prompts) > 20 and rng.random() < 0.25:
            before = rng.choice(prompts[-120:])
            prompt = before + tokens(rng.randrange(40, 300))
        else:
            prompt = rng.choice(prefixes) + tokens(int(64 * 40 ** rng.random()))
        prompts.append(prompt[:3200])
    return prompts, [rng.randrange(4, 65) for _ in range(REQUESTS)]


def connector():
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole)

    class Reads(KVConnectorMetadata):
        """What the worker is to read in this step: it says at once that it has."""

        def __init__(self, requests):
            self.requests = requests

    class Recorder(KVConnectorBase_V1):
        """Tells vLLM that all is elsewhere, or held for somebody; writes down the block ids."""

        def __init__(self, vllm_config, role, kv_cache_config):
            super().__init__(vllm_config, role, kv_cache_config)
            self.producer = self._kv_transfer_config.is_kv_producer
            self.holding: dict[str, int] = {}
            self.reads: set[str] = set()
            if role == KVConnectorRole.SCHEDULER:
                self.out = open(os.environ[WHERE], "a", buffering=1)

        def write(self, request, ids) -> None:
            row = [request.request_id, request.num_prompt_tokens, list(ids)]
            self.out.write(json.dumps(row) + "\n")

        # The scheduler's half.
        def get_num_new_matched_tokens(self, request, num_computed_tokens):
            if self.producer or request.num_preemptions:
                return 0, False
            missing = request.num_prompt_tokens - num_computed_tokens
            return max(0, missing), missing > 0

        def update_state_after_alloc(self, request, blocks, num_external_tokens):
            if num_external_tokens:
                self.reads.add(request.request_id)
                self.write(request, blocks.get_unhashed_block_ids())

        def request_finished(self, request, block_ids):
            if self.producer:
                self.write(request, block_ids)
            return self.producer, None

        def build_connector_meta(self, scheduler_output):
            reads, self.reads = self.reads, set()
            return Reads(reads)

        # The worker's half.
        def get_finished(self, finished_req_ids):
            if self.producer:
                self.holding.update(dict.fromkeys(finished_req_ids, HOLD_STEPS))
            done = {r for r, left in self.holding.items() if left == 0}
            self.holding = {r: left - 1 for r, left in self.holding.items() if left > 0}
            return done or None, self._get_connector_metadata().requests or None

        def start_load_kv(self, forward_context, **kwargs):
            pass

        def wait_for_layer_load(self, layer_name):
            pass

        def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
            pass

        def wait_for_save(self):
            pass

    return Recorder


def __getattr__(name: str):
    # vLLM imports this file by its path and asks for the class by its name.
    if name == "Recorder":
        return globals().setdefault("Recorder", connector())
    raise AttributeError(name)


def serve(part: str) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ[WHERE] = str(TRACE.with_suffix(f".{part}"))
    TRACE.parent.mkdir(exist_ok=True)
    Path(os.environ[WHERE]).unlink(missing_ok=True)
    sys.path.insert(0, str(HERE))
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    prompts, decodes = load()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(MODEL))
        engine = LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True,
            max_model_len=4096, block_size=BLOCK, num_gpu_blocks_override=BLOCKS, max_num_seqs=32,
            max_num_batched_tokens=2048, enable_prefix_caching=True, seed=1,
            disable_hybrid_kv_cache_manager=True,
            kv_transfer_config=KVTransferConfig(
                kv_connector="Recorder", kv_connector_module_path="record_trace",
                kv_role=f"kv_{part}"),
        )
        params = [
            SamplingParams(max_tokens=1 if part == "producer" else n, ignore_eos=True, temperature=0,
                           detokenize=False)
            for n in decodes
        ]
        begin = time.monotonic()
        engine.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        print(f"{part}: {len(prompts)} requests in {time.monotonic() - begin:.0f} s")


def ranges(ids: list[int]) -> str:
    """Ids as text, neighbours as first-last, downwards too."""
    out, i = [], 0
    while i < len(ids):
        j, step = i, ids[i + 1] - ids[i] if i + 1 < len(ids) else 0
        while step in (1, -1) and j + 1 < len(ids) and ids[j + 1] - ids[j] == step:
            j += 1
        out.append(str(ids[i]) if j == i else f"{ids[i]}-{ids[j]}")
        i = j + 1
    return ",".join(out)


def join() -> None:
    sides = []
    for part in ("producer", "consumer"):
        rows = map(json.loads, TRACE.with_suffix(f".{part}").read_text().splitlines())
        # The engine's ids are the place in the list of prompts, with or without a suffix.
        sides.append({int(r[0].split("-")[0]): r for r in rows})
    with TRACE.open("w") as out:
        out.write("# request, tokens of its prompt, blocks of the producer, blocks that the consumer wants\n")
        for number in sides[1]:  # in the order in which the consumer asked for them
            (_, tokens, theirs), (_, again, ours) = sides[0][number], sides[1][number]
            blocks = -(-tokens // BLOCK)
            assert tokens == again and len(theirs) == blocks >= len(ours), number
            if ours and number >= REQUESTS - KEPT:
                out.write(f"{number} {tokens} {ranges(theirs)} {ranges(ours)}\n")
    for part in ("producer", "consumer"):
        TRACE.with_suffix(f".{part}").unlink()
    print(f"{TRACE.name}: {TRACE.stat().st_size} bytes")


if __name__ == "__main__":
    for part in sys.argv[1:]:
        join() if part == "join" else serve(part)
