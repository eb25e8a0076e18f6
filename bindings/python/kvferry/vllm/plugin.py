"""What vLLM calls in each of its processes when it starts (entry point ``vllm.general_plugins``)."""

from __future__ import annotations


def register() -> None:
    """Puts into vLLM what the environment asks for; may be called any number of times."""
    register_block_pool()


def register_block_pool() -> None:
    """``KVFERRY_BLOCK_POOL=local`` or ``server``: our block pool instead of vLLM's."""
    from . import _backend

    if _backend.wanted():
        from . import block_pool

        block_pool.install()
