"""Routes a request through a prefill and a decode engine, as the proxy of a fleet does."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from typing import Any

from .engine import Answer, Engine

_numbers = itertools.count(1)


@dataclasses.dataclass
class Pair:
    """A prefill and a decode engine."""

    prefill: Engine
    decode: Engine

    def prefill_leg(self, prompt: list[int], salt: str | None = None) -> dict[str, Any]:
        """Runs the prompt on the prefill engine; what the decode engine is to be told."""
        wanted = {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
        answer = self.prefill.complete(prompt, 1, params=wanted, salt=salt)
        assert answer.params, f"{self.prefill.settings.name} returned no kv_transfer_params"
        return answer.params

    def complete(self, prompt: list[int], tokens: int, salt: str | None = None) -> Answer:
        """Both legs."""
        params = self.prefill_leg(prompt, salt)
        return self.decode.complete(prompt, tokens, params=params, salt=salt)

    def complete_all(self, prompts: list[list[int]], tokens: int, salt: str | None = None) -> list[Answer]:
        """All prompts at once, each through both legs."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(lambda p: self.complete(p, tokens, salt), prompts))

    def alone(self, prompt: list[int], tokens: int) -> Answer:
        """The decode engine does both: what every pairing must agree with. A salt of its own keeps
        the prefix caches of the two ways apart."""
        return self.decode.complete(prompt, tokens, salt=f"alone-{next(_numbers)}")
