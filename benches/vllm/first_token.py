"""Time to the first token through two real vLLM engines, stock's connector and kvferry's.

    KVF_TEST_VLLM_MODELS=.cache/vllm-models VLLM_PYTHON benches/vllm/first_token.py [--rounds N]

Four engines with a tiny model on the CPU: a pair with the stock connector on both sides and one with
kvferry's. A request goes through both legs; the time is from sending the second leg, to the decode
engine, until its first token is here, which is what the connector has a share in. Requests alone at several prompt
lengths, then several at once. The pairs take turns, round by round, and the one whose turn it is not is
stopped (SIGSTOP): on a machine with few cores the stock connector's progress threads, which never sleep,
would be measured in kvferry's times too.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "vllm"))

from harness import models  # noqa: E402
from harness.engine import Engine, Settings  # noqa: E402
from harness.prompts import prompt  # noqa: E402
from harness.router import Pair  # noqa: E402

LENGTHS = (64, 512, 2048, 6000)
AT_ONCE = (4, 8)
IDLE = 3.0  # seconds


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


def one_round(pair: Pair, seeds: Iterator[int]) -> Iterator[tuple[str, list[float]]]:
    for length in LENGTHS:
        yield f"{length} tokens", [alone(pair, prompt(length, next(seeds)))]
    for number in AT_ONCE:
        texts = [prompt(1000, next(seeds)) for _ in range(number)]
        yield f"{number} at once, 1000 tokens", together(pair, texts)


def idle_share(pair: Pair) -> float:
    """Cores that both engines take while they have nothing to do."""
    time.sleep(IDLE)  # what they still do for the round before ends
    used = sum(e.cpu_seconds() for e in (pair.prefill, pair.decode))
    begun = time.perf_counter()
    time.sleep(IDLE)
    more = sum(e.cpu_seconds() for e in (pair.prefill, pair.decode)) - used
    return more / (time.perf_counter() - begun)


def pause(pair: Pair) -> None:
    pair.prefill.pause()
    pair.decode.pause()


def resume(pair: Pair) -> None:
    pair.prefill.resume()
    pair.decode.resume()


def compare(pairs: dict[str, Pair], rounds: int) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    idle: dict[str, list[float]] = {}
    seeds = itertools.count(1)
    for pair in pairs.values():
        pause(pair)
    for number in range(rounds + 1):
        for name, pair in pairs.items():
            resume(pair)
            if number > 0:
                idle.setdefault(name, []).append(idle_share(pair))
            for what, times in one_round(pair, seeds):
                if number > 0:  # the first has the handshakes, and whatever else is slow once
                    found.setdefault(what, {}).setdefault(name, []).extend(times)
            pause(pair)
    for pair in pairs.values():
        resume(pair)
    print(f"{'':>28} {'stock':>14} {'ours':>14}")
    busy = {name: 100 * statistics.median(shares) for name, shares in idle.items()}
    print(f"{'idle pair, % of a core':>28} {busy['stock']:14.1f} {busy['ours']:14.1f}")
    print(f"{'ms to the first token':>28} {'stock: median':>14} {'p90':>8} {'ours: median':>14} {'p90':>8}")
    for what, sides in found.items():
        columns = []
        for name in pairs:
            times = sorted(sides[name])
            columns += [statistics.median(times) * 1e3, times[int(len(times) * 0.9)] * 1e3]
        print(f"{what:>28} {columns[0]:14.1f} {columns[1]:8.1f} {columns[2]:14.1f} {columns[3]:8.1f}")


if __name__ == "__main__":
    main()
