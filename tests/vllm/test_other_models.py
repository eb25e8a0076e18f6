"""Models whose cache is not keys and values of every token: latent attention, windows, recurrent state."""

from __future__ import annotations

import itertools

import pytest
from harness.prompts import prompt
from harness.router import Pair

pytestmark = pytest.mark.thorough

TOKENS = 16
_seeds = itertools.count(3000)


@pytest.fixture(scope="module", params=["mla", "window", "hybrid"])
def pairs(request, fleet) -> dict[str, Pair]:
    """Ours and stock, each with both roles; stopped before the next model's start."""
    kinds = ("ours", "stock")
    engines = fleet(
        *((f"{request.param}-{kind}-{n}", {"kind": request.param, "role": "kv_both", "connector": kind})
          for kind in kinds for n in (1, 2))
    )
    ours, ours_too, stock, stock_too = engines
    yield {
        "ours from ours": Pair(ours, ours_too),
        "ours from stock": Pair(stock, ours),
        "stock from ours": Pair(ours, stock),
        "stock from stock": Pair(stock, stock_too),
    }
    for engine in engines:
        engine.stop()


@pytest.mark.parametrize(
    "which", ["ours from ours", "ours from stock", "stock from ours", "stock from stock"]
)
def test_tokens(pairs, which):
    pair = pairs[which]
    for length in (5, 128, 300, 1000):
        text = prompt(length, next(_seeds))
        assert pair.complete(text, TOKENS).tokens == pair.alone(text, TOKENS).tokens, length
