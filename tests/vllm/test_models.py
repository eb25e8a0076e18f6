"""The tiny models are worth comparing: what they say depends on the cache of every layer.

Run with transformers, not vLLM: another implementation of the same models, and a fast one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from harness import models
from harness.prompts import prompt
from transformers import AutoModelForCausalLM

TOKENS = 16
LENGTH = 400


KINDS = [
    "llama",
    *(pytest.param(k, marks=pytest.mark.thorough) for k in models.CONFIGS if k != "llama"),
]


@pytest.fixture(scope="module", params=KINDS)
def model(request, model_folder):
    path = models.make(request.param, model_folder)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    return loaded.eval()


@torch.no_grad()
def continuation(model, first: int, cache) -> list[int]:
    """Greedy tokens after a cached prompt."""
    cache, tokens = copy.deepcopy(cache), [first]
    while len(tokens) < TOKENS:
        logits = model(torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


def caches_of(layer) -> list[torch.Tensor]:
    """Tensors that a layer of transformers' cache keeps."""
    found = [getattr(layer, name, None) for name in ("keys", "values", "conv_states", "recurrent_states")]
    return [t for t in found if isinstance(t, torch.Tensor) and t.numel()]


def test_tokens_depend_on_the_cache_of_every_layer(model):
    with torch.no_grad():
        out = model(torch.tensor([prompt(LENGTH, seed=1)]), use_cache=True)
    first = int(out.logits[0, -1].argmax())
    right = continuation(model, first, out.past_key_values)
    assert right == continuation(model, first, out.past_key_values)

    for number, layer in enumerate(out.past_key_values.layers):
        for which, tensor in enumerate(caches_of(layer)):
            kept = tensor.clone()
            # As if one block had not arrived: 128 tokens of keys or values, or the state, are zero.
            if tensor.dim() == 4 and tensor.shape[2] >= 128 and tensor.shape[2] != tensor.shape[1]:
                tensor[:, :, -128:] = 0
            else:
                tensor.zero_()
            wrong = continuation(model, first, out.past_key_values)
            tensor.copy_(kept)
            assert wrong != right, f"tensor {which} of layer {number} has no influence"


def test_tokens_depend_on_every_part_of_the_prompt(model):
    def answer(text):
        with torch.no_grad():
            out = model(torch.tensor([text]), use_cache=True)
        return continuation(model, int(out.logits[0, -1].argmax()), out.past_key_values)

    text = prompt(LENGTH, seed=2)
    other = [*prompt(LENGTH // 2, seed=3), *text[LENGTH // 2 :]]
    assert answer(text) != answer(other)
