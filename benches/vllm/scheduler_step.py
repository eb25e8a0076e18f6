"""What an engine's scheduler spends in its connector, stock vLLM's and kvferry's, with 1,000 live requests.

    PYTHONPATH=bindings/python KVF_LIBRARY=target/release/libkvferry.so \
        VLLM_PYTHON benches/vllm/scheduler_step.py

The objects are vLLM's own: ``NixlPullConnectorScheduler``, and ``kvferry.vllm``'s ``SchedulerSide``; the
requests are stand-ins with the fields that both ask for. Each figure is the median over the requests or
steps of one side; the sides take turns. The last row is the mean of everything but the steps with nothing
new, so that what one call leaves for a later one to do is in it.
"""

from __future__ import annotations

import os
import pickle
import statistics
import time
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from kvferry.vllm.config import Settings  # noqa: E402
from kvferry.vllm.connector import StepMetadata  # noqa: E402
from kvferry.vllm.scheduler import SchedulerSide  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import (  # noqa: E402
    NixlPullConnectorScheduler,
)
from vllm.v1.request import RequestStatus  # noqa: E402
from worker_step import TOKENS, cache_configuration, configuration, parameters  # noqa: E402

LIVE, BLOCKS, STEPS, ROUNDS = 1000, 118, 2000, 5


class Blocks:
    """A request's blocks, none of them in the prefix cache."""

    def __init__(self, first: int):
        self.blocks = (
            [SimpleNamespace(block_id=first + i, block_hash=None, is_null=False) for i in range(BLOCKS)],
        )

    def get_unhashed_block_ids_all_groups(self):
        return [[b.block_id for b in g if b.block_hash is None and not b.is_null] for g in self.blocks]


def make_request(name: str):
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=parameters(list(range(1, BLOCKS + 1)), 9, name),
        prompt_token_ids=[0] * (BLOCKS * TOKENS),
        num_prompt_tokens=BLOCKS * TOKENS,
        num_computed_tokens=BLOCKS * TOKENS,
        status=RequestStatus.FINISHED_LENGTH_CAPPED,
        get_skip_reading_prefix_cache=lambda: False,
    )


class Stock:
    def __init__(self):
        config = configuration(1)
        self._s = NixlPullConnectorScheduler(config, "engine", cache_configuration())

    def add(self, request):
        self._s.on_new_request(request)

    def stage(self, request, blocks):
        count, _ = self._s.get_num_new_matched_tokens(request, 0)
        self._s.update_state_after_alloc(request, blocks, count)

    def step(self):
        return self._s.build_connector_meta(None)

    def received(self, names):
        self._s.update_connector_output(SimpleNamespace(finished_recving=names, finished_sending=None))

    def finish(self, request):
        self._s.request_finished(request, ([],))


class Ours:
    def __init__(self):
        config = configuration(1)
        self._s = SchedulerSide(config, cache_configuration(), Settings.of(config), push=False)

    def add(self, request):
        self._s.add(request)

    def stage(self, request, blocks):
        self._s.allocated(request, blocks, self._s.match(request, 0))

    def step(self):
        return StepMetadata(self._s.build_step())

    def received(self, names):
        self._s.reported(names, None)

    def finish(self, request):
        self._s.finished(request, ([],))


def timed(call, *args) -> float:
    t = time.perf_counter()
    call(*args)
    return time.perf_counter() - t


def measure(side) -> dict[str, float]:
    requests = [make_request(f"request-{i}") for i in range(LIVE)]
    found, total = {}, 0.0

    def each(what: str, call, arguments=lambda r: (r,)) -> None:
        nonlocal total
        times = [timed(call, *arguments(r)) for r in requests]
        found[what] = statistics.median(times)
        total += sum(times)

    each("a request enters", side.add)
    each("its load is staged", side.stage, lambda r: (r, Blocks(1)))
    # What a step has for the workers is pickled: part of what it costs.
    found["the step that carries them all"] = timed(lambda: pickle.dumps(side.step()))
    total += found["the step that carries them all"]
    steps = [timed(lambda: pickle.dumps(side.step())) for _ in range(STEPS)]
    found["a step with nothing new"] = statistics.median(steps)
    each("one of them received", side.received, lambda r: ({r.request_id},))
    each("and finished", side.finish)
    found["all of that, one request"] = total / LIVE
    return found


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for side in (Stock, Ours):
            for what, seconds in measure(side()).items():
                found.setdefault(what, {}).setdefault(side.__name__, []).append(seconds * 1e6)
    print(f"{LIVE} live requests of {BLOCKS} blocks; microseconds\n{'':>32} {'stock':>10} {'ours':>10}"
          f" {'ours / stock':>13}")
    for what, sides in found.items():
        stock, ours = (statistics.median(sides[s]) for s in ("Stock", "Ours"))
        print(f"{what:>32} {stock:10.2f} {ours:10.2f} {ours / stock:13.2f}")


if __name__ == "__main__":
    main()
