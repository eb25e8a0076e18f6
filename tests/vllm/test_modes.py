"""Other ways to run two engines than pull over NIXL: reading back, recomputing what did not arrive, the
built-in transport, and a configuration written for the stock connector."""

from __future__ import annotations

import itertools

import pytest
from harness.engine import wait_for
from harness.installed import entry_points
from harness.prompts import prompt
from harness.router import Pair

pytestmark = pytest.mark.thorough

TOKENS = 16
BLOCK = 128
LENGTHS = (5, 128, 700, 3000)
BYTES = "vllm:nixl_bytes_transferred_sum"
FAILED = "vllm:nixl_num_failed_transfers_total"
_seeds = itertools.count(4000)


def moved(engine, before: float = 0.0) -> float:
    return wait_for(f"bytes moved by {engine.settings.name}", lambda: engine.metric(BYTES) - before, 30)


# --- reading back ---


@pytest.fixture(params=["ours", "stock"])
def both_ways(request, fleet):
    """Ours as the prefill engine that reads back, from a decode engine of either kind."""
    extra = {"bidirectional_kv_xfer": True}
    engines = fleet(
        (f"back-prefill-{request.param}", {"role": "kv_both", "connector": "ours", "extra": extra}),
        (f"back-decode-{request.param}", {"role": "kv_both", "connector": request.param, "extra": extra}),
    )
    yield Pair(*engines)
    for engine in engines:
        engine.stop()


def test_second_turn_reads_back(both_ways):
    """The first turn's answer is in the decode engine's cache only: the prefill engine fetches it."""
    pair = both_ways
    text = prompt(3 * BLOCK + 20, next(_seeds))
    first = pair.decode.complete(text, 2 * BLOCK, params=pair.prefill_leg(text))
    assert first.params, "the decode engine offers nothing to read back"

    longer = text + first.tokens + prompt(50, next(_seeds))
    wanted = {**first.params, "do_remote_decode": True, "do_remote_prefill": False}
    answer = pair.prefill.complete(longer, 1, params=wanted)
    assert moved(pair.prefill) > 0
    second = pair.decode.complete(longer, TOKENS, params=answer.params)
    assert second.tokens == pair.alone(longer, TOKENS).tokens


# --- recomputing ---


@pytest.fixture
def recompute(fleet):
    policy = {"kv_load_failure_policy": "recompute"}
    engines = fleet(
        ("recompute-prefill", {"role": "kv_producer", "connector": "ours", "extra": {"kv_lease_duration": 5}}),
        ("recompute-decode", {"role": "kv_consumer", "connector": "ours", "config": policy}),
    )
    yield Pair(*engines)
    for engine in engines:
        engine.stop()


def test_what_did_not_arrive_is_computed(recompute):
    """The prefill engine is killed between the legs: before the two have met, and when they know each
    other. The tokens are right, and nothing was transferred for them."""
    pair = recompute
    for met in (False, True):
        if met:
            pair.prefill.start().wait_ready()
            text = prompt(300, next(_seeds))
            assert pair.complete(text, TOKENS).tokens == pair.alone(text, TOKENS).tokens
        text = prompt(700, next(_seeds))
        params = pair.prefill_leg(text)
        pair.prefill.kill()
        before = pair.decode.metric(FAILED)
        answer = pair.decode.complete(text, TOKENS, params=params)
        assert answer.tokens == pair.alone(text, TOKENS).tokens, f"met: {met}"
        wait_for("the failure in the metrics", lambda: pair.decode.metric(FAILED) > before, 30)


# --- the built-in transport ---


@pytest.fixture
def local(fleet):
    extra = {"kvferry_transport": "local"}
    engines = fleet(
        ("local-prefill", {"role": "kv_producer", "connector": "ours", "extra": extra}),
        ("local-decode", {"role": "kv_consumer", "connector": "ours", "extra": extra}),
    )
    yield Pair(*engines)
    for engine in engines:
        engine.stop()


def test_local(local):
    for length in LENGTHS:
        text = prompt(length, next(_seeds))
        before = local.decode.metric(BYTES)
        assert local.complete(text, TOKENS).tokens == local.alone(text, TOKENS).tokens, length
        assert moved(local.decode, before) > 0
    texts = [prompt(length, next(_seeds)) for length in (50, 300, 900, 600)]
    together = local.complete_all(texts, TOKENS)
    assert [a.tokens for a in together] == [local.alone(t, TOKENS).tokens for t in texts]


# --- a configuration of the stock connector ---


@pytest.fixture
def replaced(fleet, tmp_path_factory):
    """One engine whose environment puts kvferry in stock's place, and a stock one; the entry point is
    found as pip would have installed it."""
    site = entry_points(tmp_path_factory.mktemp("site"))
    ours = {"env": {"KVFERRY_REPLACE_NIXL": "1"}, "path": (str(site),)}
    engines = fleet(
        ("stock-config", {"role": "kv_producer", "connector": "stock", **ours}),
        ("stock-peer", {"role": "kv_consumer", "connector": "stock"}),
    )
    yield Pair(*engines)
    for engine in engines:
        engine.stop()


def test_takes_the_place_of_stock(replaced):
    text = prompt(700, next(_seeds))
    params = replaced.prefill_leg(text)
    # Only kvferry adds this.
    assert "kvferry_lease" in params
    assert replaced.decode.complete(text, TOKENS, params=params).tokens == replaced.alone(text, TOKENS).tokens
