"""Models whose cache is not keys and values of every token: latent attention, windows, recurrent state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from harness.prompts import prompt
from harness.router import Pair

pytestmark = pytest.mark.thorough

TOKENS = 16
_seeds = itertools.count(3000)


REFERENCE = "stock from stock"
# vLLM computes latent attention in another way for a prompt as a whole than for a token behind a cache, and
# a tiny model's tokens show that: also between stock engines they are not those of one engine alone. So may
# those of a recurrent state in bfloat16.
DIFFERENTIAL = ("mla", "hybrid")
PAIRINGS = ("ours from ours", "ours from stock", "stock from ours", "stock from stock")


@pytest.fixture(scope="module", params=["mla", "window", "hybrid"])
def pairs(request, fleet) -> Iterator[dict[str, Pair]]:
    """Ours and stock, each with both roles, as far as the selected tests need them; stopped before the next
    model's start."""
    items = [item for item in request.session.items if item.module is request.module]
    wanted = [which for which in PAIRINGS if any(item.callspec.params["which"] == which for item in items)]
    if request.param in DIFFERENTIAL:
        wanted = sorted({*wanted, REFERENCE})
    names: set[str] = set()
    for which in wanted:
        names |= set(_names(which))
    model = request.param
    settings = [
        (
            f"{model}-{name}",
            # Latent attention has blocks of 16 tokens: more of them for as many tokens.
            {
                "kind": model,
                "role": "kv_both",
                "connector": name.split("-")[0],
                "blocks": 1024 if model == "mla" else 256,
                # vLLM's gated delta net on the CPU has no other.
                "dtype": "bfloat16" if model == "hybrid" else "float32",
            },
        )
        for name in sorted(names)
    ]
    engines = dict(zip(sorted(names), fleet(*settings)))
    yield {which: Pair(*(engines[name] for name in _names(which))) for which in wanted}
    for engine in engines.values():
        engine.stop()


def _names(which: str) -> tuple[str, str]:
    """The prefill and the decode engine of a pairing; a second one of a kind where both are of it."""
    decode, prefill = which.split(" from ")
    return f"{prefill}-1", f"{decode}-{2 if decode == prefill else 1}"


@pytest.mark.parametrize("which", PAIRINGS)
def test_tokens(request, pairs, which):
    pair, reference = pairs[which], None
    if request.node.callspec.params["pairs"] in DIFFERENTIAL:
        if which == REFERENCE:
            pytest.skip("this is what the others are compared with")
        reference = pairs[REFERENCE]
    for length in (5, 128, 300, 1000):
        text = prompt(length, next(_seeds))
        expected = reference.complete(text, TOKENS) if reference else pair.alone(text, TOKENS)
        # Another salt: what the reference has left in the prefix caches is not found.
        assert pair.complete(text, TOKENS, salt="compared").tokens == expected.tokens, length
