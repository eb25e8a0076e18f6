"""Time to the first token through two real vLLM engines, stock's connector and kvferry's.

    make bench-vllm

Four engines with a tiny model on the CPU: a pair with the stock connector on both sides and one with
kvferry's. A request goes through both legs; the time is from sending the second leg, to the decode
engine, until its first token is here, which is what the connector has a share in. Requests alone at several prompt
lengths, then several at once. The pairs take turns, request by request.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "vllm"))

from harness import models  # noqa: E402
from harness.engine import Engine, Settings  # noqa: E402
from harness.prompts import prompt  # noqa: E402
from harness.router import Pair  # noqa: E402

LENGTHS = (64, 512, 2048, 6000)
AT_ONCE = (4, 8)


def decode_leg(pair: Pair, text: list[int], params) -> float:
    begun = time.perf_counter()
    pair.decode.complete(text, 1, params=params)
    return time.perf_counter() - begun


def alone(pair: Pair, text: list[int]) -> float:
    return decode_leg(pair, text, pair.prefill_leg(text))


def together(pair: Pair, texts: list[list[int]]) -> list[float]:
    """The second legs at once, after all first legs."""
    params = [pair.prefill_leg(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(len(texts)) as threads:
        return list(threads.map(decode_leg, [pair] * len(texts), texts, params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    path = models.make("llama", os.environ["KVF_TEST_VLLM_MODELS"])
    with tempfile.TemporaryDirectory() as logs:
        engines = [
            Engine(Settings(f"{role}-{kind}", path, role, kind, blocks=512), pathlib.Path(logs)).start()
            for kind in ("stock", "ours")
            for role in ("kv_producer", "kv_consumer")
        ]
        try:
            for engine in engines:
                engine.wait_ready()
            compare({"stock": Pair(*engines[:2]), "ours": Pair(*engines[2:])}, rounds)
        finally:
            for engine in engines:
                engine.stop()


def compare(pairs: dict[str, Pair], rounds: int) -> None:
    seed = 0
    found: dict[str, dict[str, list[float]]] = {}
    for pair in pairs.values():  # handshakes, and whatever else is slow once
        alone(pair, prompt(300, -1))
    for _ in range(rounds):
        for length in LENGTHS:
            for name, pair in pairs.items():
                seed += 1
                found.setdefault(f"{length} tokens", {}).setdefault(name, []).append(
                    alone(pair, prompt(length, seed))
                )
        for number in AT_ONCE:
            for name, pair in pairs.items():
                seed += number
                texts = [prompt(1000, seed + i) for i in range(number)]
                found.setdefault(f"{number} at once, 1000 tokens", {}).setdefault(name, []).extend(
                    together(pair, texts)
                )
    print(f"{'ms to the first token':>28} {'stock: median':>14} {'p90':>8} {'ours: median':>14} {'p90':>8}")
    for what, sides in found.items():
        columns = []
        for name in pairs:
            times = sorted(sides[name])
            columns += [statistics.median(times) * 1e3, times[int(len(times) * 0.9)] * 1e3]
        print(f"{what:>28} {columns[0]:14.1f} {columns[1]:8.1f} {columns[2]:14.1f} {columns[3]:8.1f}")


if __name__ == "__main__":
    main()
