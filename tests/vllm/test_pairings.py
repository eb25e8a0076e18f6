"""A request through two engines gives the tokens that one engine gives, whichever connector either has."""

from __future__ import annotations

import itertools

import pytest
from harness.engine import wait_for
from harness.prompts import prompt
from harness.router import Pair

TOKENS = 16
BLOCK = 128  # vLLM's on CPUs
BYTES_PER_BLOCK = BLOCK * 4 * 2 * 2 * 64 * 4  # tokens, layers, keys and values, heads, size, float32

KINDS = ("ours", "stock")
PAIRINGS = [(a, b) for a in KINDS for b in KINDS]

_seeds = itertools.count(1)


@pytest.fixture(scope="module")
def engines(request, fleet):
    """The prefill and decode engines that the selected tests need."""
    chosen = {
        item.callspec.params["pair"]
        for item in request.session.items
        if item.module is request.module and hasattr(item, "callspec")
    }
    wanted = {("kv_producer", prefill) for prefill, _ in chosen}
    wanted |= {("kv_consumer", decode) for _, decode in chosen}
    settings = [(f"{role}-{kind}", {"role": role, "connector": kind}) for role, kind in sorted(wanted)]
    return {e.settings.name: e for e in fleet(*settings)}


@pytest.fixture(params=PAIRINGS, ids=lambda p: f"{p[1]}_decodes_from_{p[0]}")
def pair(request, engines) -> Pair:
    prefill, decode = request.param
    return Pair(engines[f"kv_producer-{prefill}"], engines[f"kv_consumer-{decode}"])


@pytest.mark.parametrize("length", [5, BLOCK - 1, BLOCK, BLOCK + 1, 700, 1500])
def test_one_prompt(pair, length):
    text = prompt(length, next(_seeds))
    before = pair.decode.metric("vllm:nixl_bytes_transferred_sum")
    both = pair.complete(text, TOKENS)
    assert both.tokens == pair.alone(text, TOKENS).tokens
    moved = wait_for(
        "bytes in the decode engine's metrics",
        lambda: pair.decode.metric("vllm:nixl_bytes_transferred_sum") - before,
        30,
    )
    assert moved == -(-length // BLOCK) * BYTES_PER_BLOCK


def test_long_prompt(pair):
    """Longer than one step of the prefill engine."""
    text = prompt(5000, next(_seeds))
    assert pair.complete(text, TOKENS).tokens == pair.alone(text, TOKENS).tokens


def test_shared_prefix(pair):
    """The second prompt finds its first blocks in the decode engine's prefix cache."""
    shared = prompt(4 * BLOCK, next(_seeds))
    pair.complete(shared + prompt(50, next(_seeds)), TOKENS)
    before = pair.decode.metric("vllm:nixl_bytes_transferred_sum")
    text = shared + prompt(200, next(_seeds))
    both = pair.complete(text, TOKENS)
    moved = wait_for(
        "bytes in the decode engine's metrics",
        lambda: pair.decode.metric("vllm:nixl_bytes_transferred_sum") - before,
        30,
    )
    assert moved == 2 * BYTES_PER_BLOCK
    assert both.tokens == pair.alone(text, TOKENS).tokens


def test_same_prompt_again(pair):
    """Everything but the last block is cached on the decode engine."""
    text = prompt(3 * BLOCK, next(_seeds))
    assert pair.complete(text, TOKENS).tokens == pair.complete(text, TOKENS).tokens


def test_many_at_once(pair):
    lengths = [20, 130, 260, 700, 64, 1000, 300, 5]
    texts = [prompt(length, next(_seeds)) for length in lengths]
    together = pair.complete_all(texts, TOKENS)
    assert [a.tokens for a in together] == [pair.alone(t, TOKENS).tokens for t in texts]


def test_nothing_is_kept(pair):
    """After the requests no block is held on either side."""
    pair.complete(prompt(300, next(_seeds)), TOKENS)
    for engine in (pair.prefill, pair.decode):
        wait_for(
            f"{engine.settings.name} without blocks in use",
            lambda e=engine: e.metric("vllm:kv_cache_usage_perc") == 0,
            20,
        )


@pytest.mark.parametrize("layer", range(4))
def test_one_wrong_bit_is_noticed(pair, layer):
    """The comparisons above would fail if one bit of one layer had changed on the way."""
    text = prompt(500, next(_seeds))
    params = pair.prefill_leg(text)
    pair.prefill.flip(layer, params["remote_block_ids"][0][1])
    damaged = pair.decode.complete(text, TOKENS, params=params)
    assert damaged.tokens != pair.alone(text, TOKENS).tokens
