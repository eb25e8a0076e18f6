"""Prompts of token ids, reproducible, and different from one another from the first token on."""

from __future__ import annotations

import random

from .models import VOCABULARY


def prompt(length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(3, VOCABULARY) for _ in range(length)]
