"""The scheduler's side of vLLM's connector interface: one call of the library for each of vLLM's.

Those to which there is no answer are put off, in their order, until the next one that has an answer: at the
latest that for the bytes of the same step. A call of the library from Python costs as much as all that stock
vLLM's scheduler does in some of its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from ..errors import InvalidArgumentError, InvalidStateError
from ..scheduler import Finish, Finished, Keep, Mode, RequestBlocks, Scheduler, TransferGroup
from .config import (
    Settings,
    backoff_tokens,
    is_hybrid,
    scratch_blocks,
    transfer_groups,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.kvferry")

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
        self._bidirectional = settings.bidirectional
        #: What vLLM has said and the library has not heard: a call and its argument.
        self._put_off: list[tuple[Callable[[Any], object], Any]] = []

    def add(self, request: Request) -> None:
        params = request.kv_transfer_params
        if not params:
            return
        if params.get("do_remote_decode"):
            if self._put_off:
                self._catch_up()
            surplus = self._add(request)
            if surplus:
                _drop_prompt_tokens(request, surplus)
        else:
            self._put_off.append((self._add, request))

    def _add(self, request: Request) -> int:
        try:
            return self._library.add(
                request.request_id,
                request.kv_transfer_params,
                request.num_prompt_tokens,
                reads_prefix_cache=not request.get_skip_reading_prefix_cache(),
            )
        except (InvalidArgumentError, InvalidStateError) as e:
            # One request's id must not cost the engine. From here on it is a local one.
            logger.error("request %r: %s; it is computed here", request.request_id, e)
            request.kv_transfer_params = None
            return 0

    def _catch_up(self) -> None:
        calls, self._put_off = self._put_off, []
        for call, argument in calls:
            call(argument)

    def match(self, request: Request, computed: int) -> int:
        if self._put_off:
            self._catch_up()
        if not request.kv_transfer_params:
            return 0
        return self._library.match(request.request_id, request.num_prompt_tokens, computed)

    def allocated(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        if self._put_off:
            self._catch_up()
        params = request.kv_transfer_params
        if not params:
            return
        groups = ()
        if external:
            # Else nothing is written to them.
            groups = [_uncached(blocks.blocks[group]) for group in self._cache.transfer_group_ids]
        if self._library.allocated(request.request_id, groups, external):
            # The request must not load again when it is scheduled again; vLLM, too, looks at these.
            params["do_remote_prefill"] = False
            params["_remote_blocks_processed"] = True

    def build_step(self) -> bytes:
        if self._put_off:
            self._catch_up()
        return self._library.build_step()

    def reported(self, received: Iterable[str] | None, sent: Iterable[str] | None) -> None:
        if received:
            self._put_off.append((self._library.received, tuple(received)))
        if sent:
            self._put_off.append((self._library.sent, tuple(sent)))

    def finished(
        self, request: Request, block_ids: Sequence[list[int]]
    ) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        if not params:
            return False, None
        if not (
            self._bidirectional or params.get("do_remote_decode") or params.get("do_remote_prefill")
        ):
            # A decode engine's, and scheduled before: nothing is kept for anybody. (vLLM itself keeps the
            # blocks of one that is being received.)
            self._put_off.append((self._end, request))
            return False, None
        if self._put_off:
            self._catch_up()
        groups = [
            _without_leading_nulls(blocks)
            for blocks in self._cache.select_transfer_block_ids(block_ids)
        ]
        keep, answer = self._end(request, groups)
        return keep == Keep.UNTIL_SENT, answer

    def _end(self, request: Request, groups: Sequence[RequestBlocks] = ()) -> Finished:
        if request.kv_transfer_params is None:
            return Finished(Keep.NO, None)
        how = FINISH.get(request.status, Finish.ERROR)
        end = self._library.finished(
            request.request_id, how, groups, request.num_computed_tokens
        )
        # As vLLM's own does: the request is not loaded any more, whatever asks from now on.
        request.kv_transfer_params["do_remote_prefill"] = False
        return end

    def serve(self, payloads: dict[tuple[int, int], bytes]) -> None:
        self._library.serve(payloads)

    def has_pending(self) -> bool:
        if self._put_off:
            self._catch_up()
        return self._library.has_pending()

    def close(self) -> None:
        self._library.close()


def _uncached(blocks: Sequence[Any]) -> RequestBlocks:
    """Ids of the blocks that the prefix cache did not have, and where in the table they begin."""
    ids = [b.block_id for b in blocks if b.block_hash is None and not b.is_null]
    if not ids:
        return RequestBlocks(ids, len(blocks))
    new = (i for i, b in enumerate(blocks) if b.block_hash is None and not b.is_null)
    return RequestBlocks(ids, next(new))


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
