"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

from __future__ import annotations


def register() -> None:
    """Puts into vLLM what the environment asks for; may be called any number of times."""
    from . import block_pool

    block_pool.register()
