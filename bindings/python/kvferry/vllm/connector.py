"""The class that vLLM loads. It passes calls on to the side that its process has."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from ..log import set_log_callback
from .config import Settings, check
from .stats import NixlKVConnectorStats, NixlPromMetrics

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from .scheduler import SchedulerSide
    from .worker import WorkerSide


logger = init_logger("vllm.kvferry")


def _log(level: int, target: str, message: str) -> None:
    logger.log(level, "%s: %s", target, message)


@dataclasses.dataclass
class StepMetadata(KVConnectorMetadata):
    """What the scheduler's side tells the workers in one engine step."""

    step: bytes

    def __reduce__(self) -> tuple[type[StepMetadata], tuple[bytes]]:
        """It is pickled in each step: without a dict of one entry that is a fifth quicker."""
        return StepMetadata, (self.step,)


@dataclasses.dataclass
class RankPayload(KVConnectorHandshakeMetadata):
    """What one rank answers when another engine shakes hands with it."""

    payload: bytes


class KvFerryConnector(KVConnectorBase_V1, SupportsHMA):
    """Hands requests from prefill to decode engines; see :mod:`kvferry.vllm`."""

    #: Whether the prefill engine writes, or the decode engine reads.
    PUSH = False

    _cache_hit_source = CacheHitSource.P2P

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ):
        super().__init__(vllm_config, role, kv_cache_config)
        check(vllm_config, kv_cache_config, self.PUSH)
        set_log_callback(_log)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        settings = Settings.of(vllm_config)
        if role == KVConnectorRole.SCHEDULER:
            from .scheduler import SchedulerSide

            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, settings, self.PUSH)
        else:
            from .worker import WorkerSide

            self._worker = WorkerSide(vllm_config, kv_cache_config, settings, self.PUSH)

    # --- what vLLM asks the class ---

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """Heads outermost in a block, so that a rank's share of them is one piece of memory."""
        model = vllm_config.model_config
        return None if model is None or model.use_mla else "LBHNC"

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> NixlKVConnectorStats:
        return NixlKVConnectorStats() if data is None else NixlKVConnectorStats(data=data)

    @classmethod
    def build_prom_metrics(
        cls, vllm_config, metric_types, labelnames, per_engine_labelvalues
    ) -> NixlPromMetrics:
        return NixlPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @classmethod
    def supports_sleep_mode(cls, *_config: Any) -> bool:
        """vLLM 0.33: memory that is given up and taken back would have to be registered anew."""
        return False

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        return True

    # --- in the scheduler's process ---

    def on_new_request(self, request: Request) -> None:
        self._scheduler.add(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        tokens = self._scheduler.match(request, num_computed_tokens)
        return tokens, tokens > 0

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        return self._kv_cache_config.transfer_group_ids

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        return StepMetadata(self._scheduler.build_step())

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self._scheduler.reported(
            connector_output.finished_recving, connector_output.finished_sending
        )

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler.finished(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler.finished(request, block_ids)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        self._scheduler.serve({rank: answer.payload for rank, answer in metadata.items()})

    def has_pending_push_work(self) -> bool:
        return self.PUSH and self._scheduler is not None and self._scheduler.has_pending()

    # --- in each worker's process ---

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> RankPayload | None:
        payload = self._worker.payload()
        return None if payload is None else RankPayload(payload)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        self._worker.step(metadata.step)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        return self._worker.results()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        """As vLLM called it before 0.32, which takes failures from the blocks."""
        return self._worker.finished()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.failed_blocks()

    def get_kv_connector_stats(self) -> NixlKVConnectorStats | None:
        return None if self._worker is None else self._worker.stats()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request runs when all of its cache is there."""

    def save_kv_layer(self, layer_name: str, kv_layer, attn_metadata, **kwargs: Any) -> None:
        """Nothing: caches are read where they are."""

    def wait_for_save(self) -> None:
        """Nothing: caches are read where they are."""

    # --- in both ---

    def shutdown(self) -> None:
        for side in (self._worker, self._scheduler):
            if side is not None:
                side.close()


class KvFerryPushConnector(KvFerryConnector):
    """As :class:`KvFerryConnector`, and the prefill engine writes."""

    PUSH = True


# vLLM ties some behaviour to the stock connector's names, and MultiConnector files statistics under the
# name of the class: so these are classes, and not other names of the ones above.


class NixlConnector(KvFerryConnector):
    """By the name of the stock connector."""


class NixlPullConnector(KvFerryConnector):
    """By the name of the stock connector."""


class NixlPushConnector(KvFerryPushConnector):
    """By the name of the stock connector."""
