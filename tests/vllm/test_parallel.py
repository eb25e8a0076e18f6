"""Engines of unequal tensor-parallel size. Each engine takes either role, so that few are needed."""

from __future__ import annotations

import itertools

import pytest
from harness.prompts import prompt
from harness.router import Pair

TOKENS = 16
NICE = {"KVF_TEST_NICE": "1"}  # see tests/vllm/hooks
_seeds = itertools.count(2000)


@pytest.fixture(scope="module")
def engines(fleet):
    return {
        e.settings.name: e
        for e in fleet(
            ("ours-1", {"role": "kv_both", "connector": "ours"}),
            ("ours-2", {"role": "kv_both", "connector": "ours", "tp": 2}),
        )
    }


@pytest.fixture(scope="module")
def stock(fleet):
    return {
        e.settings.name: e
        for e in fleet(
            ("stock-1", {"role": "kv_both", "connector": "stock", "env": NICE}),
            ("stock-2", {"role": "kv_both", "connector": "stock", "tp": 2, "env": NICE}),
        )
    }


def compare(pair: Pair) -> None:
    texts = [prompt(length, next(_seeds)) for length in (5, 128, 700, 3000)]
    for text in texts:
        assert pair.complete(text, TOKENS).tokens == pair.alone(text, TOKENS).tokens
    texts = [prompt(length, next(_seeds)) for length in (50, 300, 900, 600)]
    together = pair.complete_all(texts, TOKENS)
    assert [a.tokens for a in together] == [pair.alone(t, TOKENS).tokens for t in texts]


@pytest.mark.parametrize(("prefill", "decode"), [(2, 1), (1, 2)])
def test_ours_from_ours(engines, prefill, decode):
    compare(Pair(engines[f"ours-{prefill}"], engines[f"ours-{decode}"]))


@pytest.mark.thorough
@pytest.mark.parametrize(("prefill", "decode"), [(2, 1), (1, 2)])
def test_ours_from_stock(engines, stock, prefill, decode):
    compare(Pair(stock[f"stock-{prefill}"], engines[f"ours-{decode}"]))


@pytest.mark.thorough
@pytest.mark.parametrize(("prefill", "decode"), [(2, 1), (1, 2)])
def test_stock_from_ours(engines, stock, prefill, decode):
    compare(Pair(engines[f"ours-{prefill}"], stock[f"stock-{decode}"]))
