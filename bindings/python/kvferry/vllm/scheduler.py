"""The scheduler's side of vLLM's connector interface: one call of the library for each of vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from ..scheduler import Finish, Keep, Mode, RequestBlocks, Scheduler, TransferGroup
from .config import (
    Settings,
    backoff_tokens,
    is_hybrid,
    scratch_blocks,
    transfer_groups,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

#: How vLLM says that a request ended. What is not here is an error.
FINISH = {
    RequestStatus.FINISHED_LENGTH_CAPPED: Finish.LENGTH,
    RequestStatus.FINISHED_STOPPED: Finish.STOP,
    RequestStatus.FINISHED_ABORTED: Finish.ABORT,
}

NULL_BLOCK = 0


class SchedulerSide:
    """Lives in the engine core."""

    def __init__(self, config: VllmConfig, cache: KVCacheConfig, settings: Settings, push: bool):
        parallel = config.parallel_config
        self._cache = cache
        self._library = Scheduler(
            mode=Mode.PUSH if push else Mode.PULL,
            engine_id=settings.engine_id,
            host=settings.host,
            port=settings.port,
            tp_size=max(parallel.tensor_parallel_size, parallel.decode_context_parallel_size),
            pp_size=parallel.pipeline_parallel_size,
            dcp_size=parallel.decode_context_parallel_size,
            groups=[
                TransferGroup(group.kind, group.tokens_per_block, group.window, scratch)
                for group, scratch in zip(transfer_groups(cache), scratch_blocks(cache), strict=True)
            ],
            clip=is_hybrid(config, cache),
            lease=settings.lease,
            backoff_tokens=backoff_tokens(config, cache),
            bidirectional=settings.bidirectional,
            recompute_threshold=settings.recompute_threshold,
            pin=settings.pin,
            registration_timeout=settings.registration_timeout,
        )

    def add(self, request: Request) -> None:
        params = request.kv_transfer_params
        if not params:
            return
        surplus = self._library.add(
            request.request_id,
            params,
            request.num_prompt_tokens,
            reads_prefix_cache=not request.get_skip_reading_prefix_cache(),
        )
        if surplus:
            _drop_prompt_tokens(request, surplus)

    def match(self, request: Request, computed: int) -> int:
        if not request.kv_transfer_params:
            return 0
        return self._library.match(request.request_id, request.num_prompt_tokens, computed)

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        params = request.kv_transfer_params
        if not params:
            return
        groups = [_uncached(blocks.blocks[group]) for group in self._cache.transfer_group_ids]
        if self._library.allocated(request.request_id, groups, external):
            # The request must not load again when it is scheduled again; vLLM, too, looks at these.
            params["do_remote_prefill"] = False
            params["_remote_blocks_processed"] = True

    def build_step(self) -> bytes:
        return self._library.build_step()

    def reported(self, received: Iterable[str] | None, sent: Iterable[str] | None) -> None:
        if received:
            self._library.received(received)
        if sent:
            self._library.sent(sent)

    def finished(
        self, request: Request, block_ids: Sequence[list[int]]
    ) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        if not params:
            return False, None
        groups = [
            _without_leading_nulls(blocks)
            for blocks in self._cache.select_transfer_block_ids(block_ids)
        ]
        keep, answer = self._library.finished(
            request.request_id,
            FINISH.get(request.status, Finish.ERROR),
            groups,
            request.num_computed_tokens,
        )
        # As vLLM's own does: the request is not loaded any more, whatever asks from now on.
        params["do_remote_prefill"] = False
        # Blocks that are being received vLLM keeps by itself until the receive is reported.
        return keep == Keep.UNTIL_SENT, answer

    def serve(self, payloads: dict[tuple[int, int], bytes]) -> None:
        self._library.serve(payloads)

    def has_pending(self) -> bool:
        return self._library.has_pending()

    def close(self) -> None:
        self._library.close()


def _uncached(blocks: Sequence[Any]) -> RequestBlocks:
    """Ids of the blocks that the prefix cache did not have, and where in the table they begin."""
    first, ids = 0, []
    for index, block in enumerate(blocks):
        if block.block_hash is None and not block.is_null:
            if not ids:
                first = index
            ids.append(block.block_id)
    return RequestBlocks(ids, first if ids else len(blocks))


def _without_leading_nulls(blocks: list[int]) -> RequestBlocks:
    """Blocks that left the window are null, and come first."""
    first = next((i for i, block in enumerate(blocks) if block != NULL_BLOCK), len(blocks))
    return RequestBlocks(blocks[first:] if first else blocks, first)


def _drop_prompt_tokens(request: Request, count: int) -> None:
    """Shortens the prompt: what the decode engine computes itself is not computed here."""
    if request.prompt_token_ids is not None:
        del request.prompt_token_ids[-count:]
    elif request.prompt_embeds is not None:
        request.prompt_embeds = request.prompt_embeds[:-count]
    else:
        return
    del request._all_token_ids[-count:]
    request.num_prompt_tokens -= count
    request.max_tokens = 1
    request.kv_transfer_params["_p_side_truncated"] = True
