"""The longest cached prefix of a prompt, in one call.

vLLM asks the pool for one hash after the other, and a call from Python costs several times what our
pool needs for a look-up. Where nothing but full blocks from the start is asked for, which is what
full attention without a finer grain comes to, the whole chain is looked up at once.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from vllm.v1.core import single_type_kv_cache_manager as managers

from .block_pool import BlockPool

_ask = managers.FullAttentionManager.find_longest_cache_hit.__func__


def _find(
    cls: type,
    block_hashes: Any,
    max_length: int,
    kv_cache_group_ids: list[int],
    block_pool: Any,
    kv_cache_spec: Any,
    drop_eagle_block: bool,
    alignment_tokens: int,
    dcp_world_size: int = 1,
    pcp_world_size: int = 1,
) -> tuple[tuple[list[Any], ...], int]:
    size = kv_cache_spec.block_size
    at_once = (
        isinstance(block_pool, BlockPool)
        and size == block_pool.hash_block_size
        and dcp_world_size == 1
        and alignment_tokens % size == 0
        and not block_pool.cached_block_hash_to_block.strangers._cache
    )
    if not at_once:
        return _ask(
            cls, block_hashes, max_length, kv_cache_group_ids, block_pool, kv_cache_spec,
            drop_eagle_block, alignment_tokens, dcp_world_size, pcp_world_size,
        )  # fmt: skip
    n = max_length // size
    chain = block_hashes[:n] if type(block_hashes) is list else list(islice(block_hashes, n))
    found = block_pool.get_cached_chain(chain, kv_cache_group_ids)
    if not found[0]:
        return found, 0
    # A speculative drafter needs the last block computed anew. Then whole units of the alignment.
    blocks = max(len(found[0]) - bool(drop_eagle_block), 0)
    length = blocks * size // alignment_tokens * alignment_tokens
    for group in found:
        del group[length // size :]
    return found, length


def install() -> None:
    """Puts this into vLLM's manager of full attention."""
    managers.FullAttentionManager.find_longest_cache_hit = classmethod(_find)
