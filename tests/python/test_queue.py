"""The queue: two prefill ranks feed a decode rank, by content; what submit costs; errors."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import select
import threading
import time

import numpy as np
import pytest
from conftest import content

import kvferry
from kvferry import Agent, DenseLayers, Group, GroupBlocks, Layout, Parallel, Plan, Queue, Region, _ffi, queue
from kvferry.errors import BusyError, CanceledError, InvalidArgumentError, InvalidHandleError, NotFoundError

HEADS, TOKENS, CELL, LAYERS, BLOCKS = 4, 4, 16, 2, 64
DEADLINE = 30.0


class Rank:
    """A rank with real memory: cache[layer, block, K or V, head, token, byte]."""

    def __init__(self, agent: Agent, tp_rank: int, tp: int):
        self.agent = agent
        self.cache = np.full((LAYERS, BLOCKS, 2, HEADS // tp, TOKENS, CELL), 0xEE, np.uint8)
        address, length, _ = kvferry.range_of(self.cache)
        agent.register([(address, length)])
        layers = [Region(address + i * length // LAYERS, BLOCKS) for i in range(LAYERS)]
        self.layout = Layout(
            Parallel(tp_rank, tp), [Group("full", TOKENS)],
            dense=[DenseLayers(HEADS, CELL, 1, layers, order="hnd", kv="planes")],
        )


class Engines:
    """Two prefill ranks with known content, one decode rank, and the plan between them."""

    def __init__(self, new_agent, transport: str):
        self.prefill = [Rank(new_agent(transport), r, 2) for r in range(2)]
        self.decode = Rank(new_agent(transport), 0, 1)
        for i, source in enumerate(self.prefill):
            source.cache[:] = content(i + 1, source.cache.size).reshape(source.cache.shape)
            self.decode.agent.add_remote(source.agent.metadata())
        self.agents = [r.agent.name for r in self.prefill]
        self.plan = Plan(self.decode.layout, [r.layout for r in self.prefill])

    def expect(self, pairs: dict[int, int]) -> None:
        """Block d of the decode rank holds block p of both prefill ranks; all else is as it was."""
        wanted = np.full_like(self.decode.cache, 0xEE)
        for d, p in pairs.items():
            wanted[:, d] = np.concatenate([r.cache[:, p] for r in self.prefill], axis=2)
        np.testing.assert_array_equal(self.decode.cache, wanted)


@pytest.fixture
def engines(new_agent, transport):
    return Engines(new_agent, transport)


@pytest.fixture
def scripted(new_agent):
    """Over the transport for tests, whose script can be changed."""
    engines = Engines(new_agent, "test")
    engines.script = lambda **script: engines.decode.agent.create_backend(
        "test", {k: str(v) for k, v in script.items()})
    return engines


def completions(queue: Queue, count: int) -> list[kvferry.Completion]:
    found = []
    end = time.monotonic() + DEADLINE
    while len(found) < count:
        assert queue.wait(end - time.monotonic()), f"{len(found)} of {count} completions"
        found += queue.poll()
    return found


def test_a_request_by_content(engines):
    with Queue(engines.decode.agent, slice_descriptors=3) as queue:
        pairs = {9: 20, 3: 21, 4: 22, 63: 0, 0: 63}
        blocks = [(list(pairs), list(pairs.values()))]
        before = time.monotonic_ns()
        ticket = queue.submit(engines.plan, engines.agents, blocks, notification="all in", deadline=DEADLINE)
        [done] = completions(queue, 1)
        assert done.error is None and done.ok and done.ticket == ticket and done.message == ""
        stats = engines.plan.stats(blocks)
        assert done.bytes == done.total_bytes == stats.bytes == 5 * engines.decode.cache[:, 0].nbytes
        assert (done.descriptors_before, done.descriptors) == (stats.ranges_before, stats.ranges)
        assert before <= done.submitted_ns <= time.monotonic_ns()
        assert 0 < done.planned_ns <= done.posted_ns <= done.finished_ns
        assert done.slices >= 2 and done.backend and done.not_notified == 0
        engines.expect(pairs)
        for source in engines.prefill:
            heard = source.agent.wait_notification(timeout=DEADLINE)
            assert heard == (engines.decode.agent.name, b"all in")
        assert queue.stats().succeeded == 1 and queue.stats().bytes == done.bytes


def test_numpy_arrays_and_many_requests(engines):
    with Queue(engines.decode.agent) as queue:
        pairs = {i: (i * 37 + 11) % BLOCKS for i in range(BLOCKS)}
        tickets = {
            queue.submit(engines.plan, engines.agents,
                         [GroupBlocks(np.array([d], np.int32), np.array([p], np.uint32), 0, 0)])
            for d, p in pairs.items()
        }
        done = completions(queue, BLOCKS)
        assert all(c.ok for c in done)
        assert {c.ticket for c in done} == tickets and len(done) == len(tickets) == BLOCKS
        engines.expect(pairs)


def test_event_loops(engines):
    with Queue(engines.decode.agent) as queue:
        assert select.select([queue], [], [], 0)[0] == []

        async def main():
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()
            loop.add_reader(queue, ready.set)
            queue.submit(engines.plan, engines.agents, [([1], [2])])
            await asyncio.wait_for(ready.wait(), DEADLINE)
            loop.remove_reader(queue)
            return queue.poll()

        [done] = asyncio.run(main())
        assert done.ok
        assert select.select([queue], [], [], 0)[0] == []
        assert queue.wait(0) is False and queue.poll() == []


def test_submit_and_poll_are_one_call_each(scripted, monkeypatch):
    calls = []

    class Counting:
        def __getattr__(self, name):
            function = getattr(_ffi.lib, name)
            return lambda *args: calls.append(name) or function(*args)

    with Queue(scripted.decode.agent) as q:
        monkeypatch.setattr(queue, "lib", Counting())
        q.submit(scripted.plan, scripted.agents, [([1, 2], [3, 4])], notification=b"x", tokens=8, deadline=1.5)
        assert calls == ["kvf_queue_submit"]
        assert q.wait(DEADLINE)
        calls.clear()
        assert len(q.poll()) == 1
        assert calls == ["kvf_queue_poll"]
        monkeypatch.undo()


def test_the_submission_is_the_struct(scripted, monkeypatch):
    """queue.py and plan.py make structs of 64-bit integers; ctypes reads them back by field."""
    seen = []

    class Reading:
        def __getattr__(self, name):
            if name != "kvf_queue_submit":
                return getattr(_ffi.lib, name)

            def read(handle, address, ticket):
                s = _ffi.kvf_submission.from_address(address)
                groups = (_ffi.kvf_group_blocks * s.groups_len).from_address(s.groups)
                seen.append({
                    "size": s.struct_size, "has": s.has_notification, "reserved": bytes(s.reserved),
                    "plan": s.plan, "agents": [s.agents[i].decode() for i in range(s.agents_len)],
                    "tokens": s.tokens, "deadline": s.deadline_ms,
                    "guards": [(s.guards[i].peer, s.guards[i].addr, s.guards[i].limit) for i in range(s.guards_len)],
                    "notification": ctypes.string_at(s.notification, s.notification_len),
                    "groups": [(
                        list((ctypes.c_uint32 * g.local_len).from_address(g.local)),
                        list((ctypes.c_uint32 * g.remote_len).from_address(g.remote)),
                        g.local_first, g.remote_first, g.has_local_first, g.has_remote_first, bytes(g.reserved),
                    ) for g in groups],
                })
                return _ffi.lib.kvf_queue_submit(handle, address, ticket)

            return read

    with Queue(scripted.decode.agent) as q:
        monkeypatch.setattr(queue, "lib", Reading())
        q.submit(scripted.plan, scripted.agents, [GroupBlocks([1, 2], [3, 4, 5], 1, None)],
                 notification=b"a\0b", tokens=12, deadline=1.5, guards=[(0, 4096, 7)])
        q.submit(scripted.plan, scripted.agents, [GroupBlocks([7], [8], 5, 5)], notification="")
        monkeypatch.undo()
    assert ctypes.sizeof(_ffi.kvf_group_blocks) == 48 and ctypes.sizeof(_ffi.kvf_submission) == 96
    common = {"size": 96, "reserved": bytes(3), "plan": scripted.plan.handle, "agents": scripted.agents}
    assert seen == [
        common | {"has": 1, "tokens": 12, "deadline": 1500, "guards": [(0, 4096, 7)], "notification": b"a\0b",
                  "groups": [([1, 2], [3, 4, 5], 1, 0, 1, 0, bytes(6))]},
        common | {"has": 1, "tokens": 0, "deadline": 0, "guards": [], "notification": b"",
                  "groups": [([7], [8], 5, 5, 1, 1, bytes(6))]},
    ]


def test_back_pressure_cancel_and_deadline(scripted):
    with Queue(scripted.decode.agent, capacity=2) as queue:
        scripted.script(hold=1)
        a = queue.submit(scripted.plan, scripted.agents, [([1], [1])])
        b = queue.submit(scripted.plan, scripted.agents, [([2], [2])], deadline=0.03)
        with pytest.raises(BusyError, match="2 requests are outstanding"):
            queue.submit(scripted.plan, scripted.agents, [([3], [3])])
        [late] = completions(queue, 1)
        assert late.ticket == b and isinstance(late.error, TimeoutError) and "30 ms" in late.message
        queue.cancel(a)
        [canceled] = completions(queue, 1)
        assert canceled.ticket == a and isinstance(canceled.error, CanceledError)
        with pytest.raises(NotFoundError):
            queue.cancel(99)
        with pytest.raises(InvalidArgumentError, match="ticket is -1"):
            queue.cancel(-1)
        assert queue.stats().refused == 1 and queue.stats().failed == 2
        scripted.script(hold=0)
        scripted.expect({})


def test_failures_show_in_the_completion(scripted):
    with Queue(scripted.decode.agent) as queue:
        queue.submit(scripted.plan, scripted.agents, [([BLOCKS], [0])])
        [done] = completions(queue, 1)
        assert isinstance(done.error, InvalidArgumentError) and str(BLOCKS) in str(done.error)
        scripted.script(lose=scripted.agents[1])
        queue.submit(scripted.plan, scripted.agents, [([1], [1])])
        [done] = completions(queue, 1)
        assert type(done.error).__name__ == "PeerLostError" and scripted.agents[1] in done.message


@pytest.mark.parametrize(("change", "names"), [
    ({"agents": ["one"]}, "1 agents for a plan with 2 peers"),
    ({"agents": ["one", ""]}, "peer 1 is not idle"),
    ({"agents": ["one", "a\0b"]}, "NUL"),
    ({"blocks": []}, "block ids for 0 groups"),
    ({"blocks": [([-1], [1])]}, "block ids of group 0"),
    ({"tokens": 0}, "tokens is 0"),
    ({"deadline": -1}, "deadline"),
])
def test_bad_submissions(scripted, change, names):
    request = {"agents": scripted.agents, "blocks": [([1], [1])]} | change
    with Queue(scripted.decode.agent) as queue:
        with pytest.raises(InvalidArgumentError) as e:
            queue.submit(scripted.plan, **request)
        assert names in str(e.value)
        assert queue.stats().submitted == 0


def test_ends(scripted):
    queue = Queue(scripted.decode.agent)
    queue.submit(scripted.plan, scripted.agents, [([5], [6])])
    queue.close(drain=DEADLINE)
    scripted.expect({5: 6})
    queue.close()
    with pytest.raises(InvalidHandleError):
        queue.poll()
    # Collected, with a transfer under way that does not stop by itself.
    scripted.script(hold=1)
    queue = Queue(scripted.decode.agent)
    handle = queue.handle
    queue.submit(scripted.plan, scripted.agents, [([7], [8])])
    del queue
    gc.collect()
    assert _ffi.lib.kvf_queue_stats_get(handle, _ffi.kvf_queue_stats()) == InvalidHandleError.status
    scripted.script(hold=0)
    scripted.expect({5: 6})


def test_threads(scripted):
    """Many submit and many poll; each completion is seen once."""
    with Queue(scripted.decode.agent) as queue:
        submitted, seen, lock = set(), [], threading.Lock()
        each, threads = 50, 4

        def submit(t):
            for i in range(each):
                ticket = queue.submit(scripted.plan, scripted.agents, [([t], [i])])
                with lock:
                    submitted.add(ticket)

        def poll():
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                queue.wait(0.01)
                found = queue.poll(3)
                with lock:
                    seen.extend(c.ticket for c in found if c.ok)
                    if len(seen) >= each * threads:
                        return

        work = [threading.Thread(target=submit, args=(t,)) for t in range(threads)]
        work += [threading.Thread(target=poll) for _ in range(3)]
        for t in work:
            t.start()
        for t in work:
            t.join()
        assert len(seen) == len(submitted) == each * threads and set(seen) == submitted
