"""A rank's side of vLLM's connector interface: one call of the library for each of vLLM's."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import (
    compute_nixl_compatibility_hash,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.platforms import current_platform

from ..agent import Agent
from ..scheduler import Mode
from ..worker import Worker
from .cache import attention_backend, describe
from .config import Settings
from .stats import NixlKVConnectorStats, from_library

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.kvferry")

#: Seconds that transfers under way may go on for when the engine ends.
DRAIN = 1.0


@contextlib.contextmanager
def any_core() -> Iterator[None]:
    """Threads that are started here may run on any core.

    On CPUs vLLM ties the calling thread to one core, and a thread starts with its starter's cores: the
    library's threads would share that one with the model, and answer other engines in seconds.
    """
    if current_platform.device_type != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    tied = os.sched_getaffinity(0)
    # The system takes away what the process must not use.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, tied)


class WorkerSide:
    """Lives in each worker process."""

    def __init__(self, config: VllmConfig, cache: KVCacheConfig, settings: Settings, push: bool):
        # UCX keeps what it no longer needs without this; read when NIXL loads it.
        os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")
        self._config, self._cache = config, cache
        self._settings, self._push = settings, push
        # Before the model's memory is laid out: a NIXL that is missing is known at once.
        with any_core():
            self._agent = Agent(
                str(uuid.uuid4()),
                settings.transport,
                telemetry=True,
                nixl_library=settings.nixl_library,
                **_backends(settings),
            )
        self._library: Worker | None = None
        self._failed_blocks: set[int] = set()
        # Failed receives that nobody has been told of.
        self._failed: set[str] = set()
        self._has_stats = False

    def register(self, tensors: dict[str, torch.Tensor]) -> None:
        with any_core():
            self._library = self._worker()
            self._library.register_kv(describe(self._config, self._cache, tensors))

    def _worker(self) -> Worker:
        parallel = self._config.parallel_config
        settings = self._settings
        mode = Mode.PUSH if self._push else Mode.PULL
        return Worker(
            self._agent,
            mode=mode,
            engine_id=settings.engine_id,
            tp_rank=get_tensor_model_parallel_rank(),
            tp_size=max(parallel.tensor_parallel_size, parallel.decode_context_parallel_size),
            dcp_size=parallel.decode_context_parallel_size,
            compat_hash=compute_nixl_compatibility_hash(
                self._config,
                attention_backend(self._config),
                transfer_mode=mode.name.lower(),
            ),
            enforce_compat=settings.enforce_compatibility,
            lease=settings.lease,
            host=settings.host,
            port=settings.port,
            engine_ttl=settings.engine_ttl if settings.engine_ttl > 0 else None,
            registration_timeout=settings.registration_timeout,
        )

    def payload(self) -> bytes | None:
        return None if self._library is None else self._library.payload()

    def step(self, step: bytes) -> None:
        if self._library is not None:
            self._library.step(step)

    def results(self) -> KVConnectorTransferResults:
        if self._library is None:
            return KVConnectorTransferResults()
        results = self._library.poll()
        self._failed_blocks.update(results.failed_blocks)
        self._has_stats = results.has_stats
        failed, self._failed = self._failed.union(results.failed), set()
        return KVConnectorTransferResults(
            finished_sending=set(results.sent),
            finished_recving=failed.union(results.received),
            failed_recving=failed,
        )

    def finished(self) -> tuple[set[str], set[str]]:
        """What has been sent and received, for who cannot be told of failures otherwise than by blocks.

        A failed receive whose blocks cannot be named is not reported here: it would be taken for a good
        one. It waits for :meth:`results`.
        """
        results = self.results()
        if not self._blocks_tell:
            self._failed = results.failed_recving
        return results.finished_sending, results.finished_recving - self._failed

    def failed_blocks(self) -> set[int]:
        """Blocks without their content. Only engines with one block table can be told."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed if self._blocks_tell else set()

    @property
    def _blocks_tell(self) -> bool:
        return len(self._cache.kv_cache_groups) == 1

    def stats(self) -> NixlKVConnectorStats | None:
        if self._library is None or not self._has_stats:
            return None
        self._has_stats = False
        return from_library(self._library.take_stats())

    def close(self) -> None:
        library, self._library = self._library, None
        try:
            if library is not None:
                library.close(DRAIN)
        finally:
            self._agent.close()


def _backends(settings: Settings) -> dict:
    if settings.transport != "nixl":
        return {}
    if settings.backends == ["UCX"]:
        # NIXL opens doorbells for each thread, and NICs have few: the stock connector's limit.
        return {"backends": {"UCX": {"num_threads": str(settings.threads)}}}
    return {"backends": settings.backends}
