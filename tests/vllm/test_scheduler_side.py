"""The scheduler's side of the package without an engine: what vLLM says to it, and what the library hears."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kvferry.vllm.config import Settings
from kvferry.vllm.scheduler import SchedulerSide
from test_package import BLOCK, blocks, configuration, full
from vllm.v1.request import RequestStatus

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import step_bytes  # noqa: E402

NOTHING = (0,) * 6


@pytest.fixture
def side():
    config = configuration()
    made = SchedulerSide(config, blocks(full()), Settings.of(config), push=False)
    yield made
    made.close()


def request(name: str, **params):
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params={
            "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]],
            "remote_engine_id": "prefill", "remote_request_id": f"there-{name}", "remote_host": "h",
            "remote_port": 5, "tp_size": 1, **params,
        },
        num_prompt_tokens=3 * BLOCK,
        num_computed_tokens=3 * BLOCK,
        status=RequestStatus.FINISHED_STOPPED,
        get_skip_reading_prefix_cache=lambda: False,
    )


def table(*ids: int, cached: int = 0):
    """A request's blocks, the first so many of them from the prefix cache."""
    made = [
        SimpleNamespace(block_id=n, block_hash=b"h" if i < cached else None, is_null=False)
        for i, n in enumerate(ids)
    ]
    return SimpleNamespace(blocks=(made,))


def step(side: SchedulerSide):
    return step_bytes.read(side.build_step())


def counts(side: SchedulerSide):
    return side._library.stats()


def test_what_was_said_is_heard_with_the_same_step(side):
    one, two = request("one"), request("two")
    side.add(one)
    side.add(two)
    beats = step(side).heartbeats
    assert [(b.peer.engine_id, b.ids) for b in beats] == [("prefill", ["there-one", "there-two"])]
    assert side.match(one, BLOCK) == 2 * BLOCK
    side.allocated(one, table(7, 8, 9, cached=1), 2 * BLOCK)
    [receive] = step(side).receives
    assert (receive.local, receive.local_first) == ([[8, 9]], [1])
    side.reported({"one"}, None)
    step(side)
    assert counts(side)[:2] == (2, 0)
    assert side.finished(one, ([7, 8, 9],)) == (False, None)
    two.status = RequestStatus.FINISHED_ABORTED
    assert side.finished(two, ([],)) == (False, None)
    [told] = step(side).receives
    assert (told.request_id, told.local, told.awaited) == ("two", [], False)
    assert counts(side) == NOTHING


def test_a_request_that_ends_as_soon_as_it_has_come(side):
    gone = request("gone")
    gone.status = RequestStatus.FINISHED_ABORTED
    side.add(gone)
    assert side.finished(gone, ([],)) == (False, None)
    said = step(side)
    assert [r.remote_request_id for r in said.receives] == ["there-gone"] and not said.heartbeats
    assert counts(side) == NOTHING


def test_an_id_is_reported_before_it_is_used_again(side):
    first = request("same")
    side.add(first)
    side.match(first, 0)
    side.allocated(first, table(7, 8, 9), 3 * BLOCK)
    step(side)
    first.status = RequestStatus.FINISHED_ABORTED
    side.finished(first, ([7, 8, 9],))
    side.reported({"same"}, None)
    second = request("same")
    side.add(second)
    assert side.match(second, 0) == 3 * BLOCK
    assert step(side).cancel == []


def test_one_request_costs_nobody_the_engine(side):
    busy = request("busy")
    side.add(busy)
    side.match(busy, 0)
    side.allocated(busy, table(7, 8, 9), 3 * BLOCK)
    for name in ("busy", "a\0b"):
        bad = request(name)
        side.add(bad)
        assert side.match(bad, 0) == 0
        side.allocated(bad, table(4), 0)
        assert side.finished(bad, ([4],)) == (False, None)
    assert counts(side)[:2] == (1, 1)
    assert [r.request_id for r in step(side).receives] == ["busy"]


@pytest.mark.parametrize("odd", [
    {"remote_block_ids": [np.arange(1, 4)]}, {"added": object()}, {"added": 2**70}, {"added": float("nan")},
    {"added": {1: (2, 3)}}, {"added": "\ud800"},
])
def test_parameters_that_vllms_encoder_does_not_take(side, odd):
    strange = request("strange", **odd)
    side.add(strange)
    assert side.match(strange, 0) == 3 * BLOCK
    side.allocated(strange, table(7, 8, 9), 3 * BLOCK)
    assert step(side).receives[0].remote == [[1, 2, 3]]


def test_a_producer_is_answered_at_once(side):
    producer = request("p", do_remote_prefill=False, do_remote_decode=True)
    side.add(producer)
    assert counts(side)[0] == 1
    side.allocated(producer, table(4, 5, 6), 0)
    keep, answer = side.finished(producer, ([4, 5, 6],))
    assert keep and answer["remote_block_ids"] == [[4, 5, 6]]
    side.reported(None, {"p"})
    step(side)
    assert counts(side) == NOTHING
