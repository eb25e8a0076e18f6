"""The worker half of the connector in Python: both halves of two engines, and the marshalling."""

from __future__ import annotations

import select
import time

import numpy as np
import pytest
from conftest import DEADLINE

from kvferry import (
    Group, KvCache, KvTensor, Scheduler, TransferGroup, Worker, WorkerResults, WorkerState, _ffi, worker,
)
from kvferry.errors import Error, InvalidArgumentError, InvalidHandleError, InvalidStateError

LAYERS, HEADS, SIZE, TOKENS, BLOCKS = 2, 4, 8, 16, 80
TO_PRODUCER = {"do_remote_decode": True, "do_remote_prefill": False}
NOTHING = WorkerResults([], [], [], [], False)


class Engine:
    """Both halves, and ranks that share the heads. The memory is [layer, block, head, token, cell]."""

    def __init__(self, new_agent, transport: str, engine_id: str, tp: int, **options):
        self.scheduler = Scheduler(engine_id, "127.0.0.1", [TransferGroup("full", TOKENS)], tp_size=tp)
        self.caches, self.workers = [], []
        for rank in range(tp):
            cache = np.zeros((LAYERS, BLOCKS, HEADS // tp, TOKENS, 2 * SIZE), np.uint8)
            made = Worker(new_agent(transport), engine_id, tp_rank=rank, tp_size=tp, **options)
            made.register_kv(KvCache(
                [KvTensor(f"layers.{i}", 0, "heads", cache[i].ctypes.data, elem_bytes=1, k_head_size=SIZE)
                 for i in range(LAYERS)],
                [Group("full", TOKENS)], BLOCKS, TOKENS, HEADS,
            ))
            self.caches.append(cache)
            self.workers.append(made)
        self.scheduler.serve({(0, rank): w.payload() for rank, w in enumerate(self.workers)})

    @property
    def heads(self) -> np.ndarray:
        """All heads of all ranks side by side."""
        return np.concatenate(self.caches, axis=2)

    def step(self) -> list[WorkerResults]:
        step = self.scheduler.build_step()
        for w in self.workers:
            w.step(step)
        results = [w.poll() for w in self.workers]
        return results

    def step_until(self, kind: str, request_id: str) -> None:
        """Until every rank has reported it."""
        missing, end = set(range(len(self.workers))), time.monotonic() + DEADLINE
        while missing:
            assert time.monotonic() < end, f"{request_id} is not {kind}"
            for rank, results in enumerate(self.step()):
                if request_id in getattr(results, kind):
                    assert kind == "failed" or not results.failed
                    missing.remove(rank)
            time.sleep(0.001)
        getattr(self.scheduler, "sent" if kind == "sent" else "received")([request_id])

    def close(self) -> None:
        for w in self.workers:
            w.close()
        self.scheduler.close()


@pytest.mark.parametrize("p_tp, d_tp", [(1, 1), (2, 1), (1, 2)])
def test_a_request_from_engine_to_engine(new_agent, transport, p_tp, d_tp):
    p = Engine(new_agent, transport, "prefill", p_tp)
    d = Engine(new_agent, transport, "decode", d_tp)
    for cache in p.caches:
        cache[:] = np.random.default_rng(len(p.caches)).integers(0, 256, cache.shape, np.uint8)
    p.scheduler.add("p", TO_PRODUCER, 48)
    p.scheduler.allocated("p", [[4, 5, 9]])
    p.step()
    end = p.scheduler.finished("p", "length", [[4, 5, 9]], 48)
    p.step()
    d.scheduler.add("d", end.params, 48)
    assert d.scheduler.match("d", 48, 0) == 48
    d.scheduler.allocated("d", [[71, 72, 3]], 48)
    for w in d.workers:
        assert not select.select([w], [], [], 0)[0]
    d.step_until("received", "d")
    assert select.select(p.workers, [], [], DEADLINE)[0]
    p.step_until("sent", "p")
    assert (d.heads[:, [71, 72, 3]] == p.heads[:, [4, 5, 9]]).all()
    assert not d.heads[:, :3].any() and not d.heads[:, 4:71].any()
    for w in d.workers:
        stats = w.take_stats()
        assert sum(stats["bytes_transferred"]) == 3 * LAYERS * HEADS // d_tp * TOKENS * 2 * SIZE
        [record] = w.take_records()
        assert (record["request_id"], record["status"], record["engine_id"]) == ("d", "ok", "prefill")
        assert w.take_stats() == {} and w.take_records() == [] and w.poll() == NOTHING
        assert w.state() == WorkerState(0, 0, 0, 1, 0)
    p.close()
    d.close()


def test_a_failure_names_the_blocks(new_agent):
    p = Engine(new_agent, "local", "prefill", 1)
    d = Engine(new_agent, "local", "decode", 1, handshake_timeout=1)
    p.scheduler.add("p", TO_PRODUCER, 20)
    params = p.scheduler.finished("p", "stop", [[4, 5]], 20).params
    p.close()  # nobody answers any more
    d.scheduler.add("d", params, 20)
    d.scheduler.allocated("d", [[71, 72]], d.scheduler.match("d", 20, 0))
    end, results = time.monotonic() + DEADLINE, NOTHING
    while not results.failed:
        assert time.monotonic() < end
        [results] = d.step()
    assert results == WorkerResults([], ["d"], ["d"], [71, 72], True)
    assert d.workers[0].take_stats()["num_failed_handshakes"] == [1]
    d.close()


def test_bad_arguments(new_agent):
    agent = new_agent("local")
    for options, part in [
        ({"mode": "sideways"}, "sideways"), ({"tp_rank": -1}, "tp_rank"), ({"compat_hash": "x"}, "compat_hash"),
        ({"queue": {"capacity": -1}}, "capacity"),
    ]:
        with pytest.raises(InvalidArgumentError, match=part):
            Worker(agent, "e", **options).close()
    with Worker(agent, "e") as w:
        with pytest.raises(InvalidStateError, match="has not been registered"):
            w.payload()
        with pytest.raises(Error):
            w.step(b"nonsense")
        assert w.poll() == NOTHING and not w.wait(0)
    w.close()
    with pytest.raises(InvalidHandleError):
        w.poll()


def test_one_call_for_each_step_and_poll(new_agent, monkeypatch):
    e = Engine(new_agent, "local", "e", 1)
    step, calls = e.scheduler.build_step(), []

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(_ffi.lib, name)

    monkeypatch.setattr(worker, "lib", Counting())
    e.workers[0].step(step)
    e.workers[0].poll()
    assert calls == ["kvf_worker_step", "kvf_worker_poll"]
    monkeypatch.undo()
    e.close()
