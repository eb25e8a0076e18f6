"""Two real vLLM engines under load: what the block pool's policy does to their transfers.

    KVF_TEST_VLLM_MODELS=.cache/vllm-models VLLM_PYTHON benches/vllm/pool_policy.py [--turns N]

Pairs of engines with a tiny model on the CPU, kvferry's connector, and prefix caching; the pairs differ in
the pool of both engines: vLLM's own (LRU), and kvferry's with its default policy. Every pair serves the same
sessions of several turns with shared beginnings, several at a time, through both legs. Counts are vLLM's own metrics of
the decode engine: descriptors and posting time of each read, and both engines' prefix hits. The pairs run
one after the other, since their engines would take each other's cores.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "vllm"))

from harness import models  # noqa: E402
from harness.engine import Engine, Settings  # noqa: E402
from harness.installed import entry_points  # noqa: E402
from harness.prompts import prompt  # noqa: E402
from harness.router import Pair  # noqa: E402

POOLS = {"vLLM's pool": {}, "default policy": {"KVFERRY_BLOCK_POOL": "local"}}
BLOCK, BLOCKS = 32, 640
PREFIXES, SESSIONS, AT_ONCE = 6, 40, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=4)
    turns = parser.parse_args().turns
    path = models.make("llama", os.environ["KVF_TEST_VLLM_MODELS"])
    with tempfile.TemporaryDirectory() as folder:
        site = str(entry_points(pathlib.Path(folder)))
        rows = {name: measure(path, env, site, turns) for name, env in POOLS.items()}
    names = list(next(iter(rows.values())))
    print(f"{'':>16}" + "".join(f"{name:>22}" for name in names))
    for pool, values in rows.items():
        print(f"{pool:>16}" + "".join(f"{values[name]:22.3f}" for name in names))


def measure(path, env: dict[str, str], site: str, turns: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as logs:
        engines = [
            Engine(
                Settings(role, path, role, "ours", blocks=BLOCKS, block_size=BLOCK, env=env, path=(site,)),
                pathlib.Path(logs),
            ).start()
            for role in ("kv_producer", "kv_consumer")
        ]
        try:
            for engine in engines:
                engine.wait_ready()
            return load(Pair(*engines), turns)
        finally:
            for engine in engines:
                engine.stop()


def load(pair: Pair, turns: int) -> dict[str, float]:
    shared = [prompt(10 * BLOCK, seed) for seed in range(PREFIXES)]

    def session(number: int) -> list[float]:
        source = random.Random(number)
        text = shared[number % PREFIXES] + prompt(source.randrange(600, 2000), 100 + number)
        times = []
        for turn in range(turns):
            params = pair.prefill_leg(text)
            begun = time.perf_counter()
            answer = pair.decode.complete(text, source.randrange(8, 64), params=params)
            times.append(time.perf_counter() - begun)
            text = text + answer.tokens + prompt(source.randrange(20, 200), 1000 * number + turn)
        return times

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        times = sorted(t for list_ in threads.map(session, range(SESSIONS)) for t in list_)
    prefill, decode = pair.prefill.metrics(), pair.decode.metrics()
    reads = decode["vllm:nixl_num_descriptors_count"]
    return {
        "reads": reads,
        "blocks a read": decode["vllm:nixl_bytes_transferred_sum"] / reads / BLOCK_BYTES,
        "descriptors a read": decode["vllm:nixl_num_descriptors_sum"] / reads,
        "post, ms a read": decode["vllm:nixl_post_time_seconds_sum"] / reads * 1e3,
        "transfer, ms a read": decode["vllm:nixl_xfer_time_seconds_sum"] / reads * 1e3,
        "hits, prefill %": 100 * hits(prefill),
        "hits, decode %": 100 * hits(decode),
        "decode leg, median ms": times[len(times) // 2] * 1e3,
    }


# Keys and values of a block's tokens: layers, both, heads, size, float32.
BLOCK_BYTES = BLOCK * 4 * 2 * 2 * 64 * 4


def hits(metrics: dict[str, float]) -> float:
    return metrics["vllm:prefix_cache_hits_total"] / metrics["vllm:prefix_cache_queries_total"]


if __name__ == "__main__":
    main()
