"""The half of a connector that lives in each rank."""

from __future__ import annotations

import json
from ctypes import c_int, c_uint8, c_uint64, pointer, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    kvf_buffer,
    kvf_queue_options,
    kvf_worker_options,
    kvf_worker_results,
    kvf_worker_state,
    lib,
)
from .agent import Agent, member
from .kv_cache import KvCache
from .queue import _unsigned
from .scheduler import Mode, _time

__all__ = ["Worker", "WorkerResults", "WorkerState"]


class WorkerResults(NamedTuple):
    """What has become of requests. Each is reported once."""

    #: Requests whose kept blocks are free: all readers are through, or the lease has ended.
    sent: list[str]
    #: Requests whose receive is over, well or not. Their blocks are the engine's again.
    received: list[str]
    #: Those of ``received`` that failed: nothing in their blocks may be used.
    failed: list[str]
    #: Local block ids of failed requests, if the model has one group, in which an id says which block.
    failed_blocks: list[int]
    #: Whether :meth:`Worker.take_stats` has something to give.
    has_stats: bool


class WorkerState(NamedTuple):
    """How much there is of everything. All but ``peers`` are 0 when nothing is under way."""

    #: Receives that are not over.
    receives: int
    #: Requests that are kept.
    holds: int
    #: Requests that wait to be written, or are being written.
    pushes: int
    #: Peer engines that are known.
    peers: int
    #: Handshakes under way.
    handshakes: int


_NOTHING = WorkerResults([], [], [], [], False)
_ONLY_STATS = _NOTHING._replace(has_stats=True)


class Worker:
    """One rank's part: handshakes, transfers, leases.

    Args:
        agent: The rank's agent. The worker takes all its messages, and registers memory with it.
        engine_id: The engine's id, the same on all its ranks and in its scheduler half.
        mode: ``"pull"`` or ``"push"``.
        tp_rank: Transfer rank in its pipeline stage.
        tp_size: Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size.
        pp_rank: Pipeline stage.
        pp_size: Pipeline stages.
        dcp_size: Decode-context-parallel size.
        dcp_interleave: Tokens that go to one rank before the next rank's turn; 0 is a block.
        compat_hash: By which two engines tell that they are of a kind. None: made of what the KV cache
            says about the model, for engines that are not vLLM.
        enforce_compat: Whether peers with another hash are refused.
        host: Push: host of this engine's side channel, for producers to find it.
        port: Its port.
        lease: Seconds that producers keep a request for; both sides of a transfer should have the same.
        handshake_timeout: Seconds that one question of a handshake may take.
        engine_ttl: Seconds after which a peer that nobody has wanted is forgotten; None: never.
        registration_timeout: Push: seconds that a consumer waits for its producer.
        transfer_timeout: Seconds that one transfer may take.
        queue: Options of the transfers by their names in :class:`~kvferry.Queue`.

    :meth:`step` and :meth:`poll` are one call of the library each and never block. All methods may be
    called from any thread. A worker is a context manager; it ends at the latest when it is collected.
    """

    def __init__(
        self,
        agent: Agent,
        engine_id: str,
        *,
        mode: Mode | str = Mode.PULL,
        tp_rank: int = 0,
        tp_size: int = 1,
        pp_rank: int = 0,
        pp_size: int = 1,
        dcp_size: int = 1,
        dcp_interleave: int = 0,
        compat_hash: str | None = None,
        enforce_compat: bool = True,
        host: str | None = None,
        port: int = 0,
        lease: float = 30.0,
        handshake_timeout: float = 5.0,
        engine_ttl: float | None = 3600.0,
        registration_timeout: float = 480.0,
        transfer_timeout: float = 480.0,
        queue: dict[str, int] | None = None,
    ):
        numbers = {
            name: _unsigned(value, 32, name)
            for name, value in (
                ("tp_rank", tp_rank), ("tp_size", tp_size), ("pp_rank", pp_rank), ("pp_size", pp_size),
                ("dcp_size", dcp_size), ("dcp_interleave", dcp_interleave),
            )
        }
        transfers = _transfers(**(queue or {}))
        options = kvf_worker_options(
            struct_size=sizeof(kvf_worker_options),
            mode=member(Mode, mode),
            agent=agent.handle,
            engine_id=_convert.text(engine_id, "engine_id"),
            compat_hash=None if compat_hash is None else _convert.text(compat_hash, "compat_hash"),
            host=None if host is None else _convert.text(host, "host"),
            queue=pointer(transfers),
            lease_ms=_time(lease, "lease"),
            handshake_timeout_ms=_time(handshake_timeout, "handshake_timeout"),
            engine_ttl_ms=_NEVER if engine_ttl is None else _time(engine_ttl, "engine_ttl"),
            registration_timeout_ms=_time(registration_timeout, "registration_timeout"),
            transfer_timeout_ms=_time(transfer_timeout, "transfer_timeout"),
            port=_unsigned(port, 16, "port"),
            ignore_compat=not enforce_compat,
            **numbers,
        )
        handle = c_uint64()
        errors.check(lib.kvf_worker_create(options, handle))
        self._handle = handle.value
        # The agent ends after the worker.
        self._agent = agent
        self._finalizer = _lifetime.ends_with(self, _end, self._handle)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_worker.id``)."""
        return self._handle

    def register_kv(self, cache: KvCache) -> None:
        """Registers the rank's KV cache. Once, before anything else."""
        made, _keep = cache._c()
        errors.check(lib.kvf_worker_register_kv(self._handle, made))

    def payload(self) -> bytes:
        """What this rank answers to handshakes, for :meth:`Scheduler.serve`."""
        return self._take(lib.kvf_worker_payload)

    def step(self, step: bytes) -> None:
        """Takes the bytes of an engine step, and returns at once."""
        status = lib.kvf_worker_step(self._handle, step, len(step))
        if status:
            raise errors.from_status(status)

    def poll(self) -> WorkerResults:
        """What has become of requests since the last call."""
        results = kvf_worker_results()
        status = lib.kvf_worker_poll(self._handle, results)
        if status:
            raise errors.from_status(status)
        if not results.storage:
            return _ONLY_STATS if results.has_stats else _NOTHING
        try:
            return WorkerResults(
                _texts(results.sent, results.sent_len),
                _texts(results.received, results.received_len),
                _texts(results.failed, results.failed_len),
                results.failed_blocks[: results.failed_blocks_len] if results.failed_blocks_len else [],
                bool(results.has_stats),
            )
        finally:
            lib.kvf_worker_results_free(results)

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until there is something to poll, or the time is over; whether there is something."""
        ready = c_uint8()
        limit = _convert.milliseconds(timeout, "timeout")
        errors.check(lib.kvf_worker_wait(self._handle, limit, ready))
        return bool(ready.value)

    def fileno(self) -> int:
        """A file descriptor that is readable while there is something to poll.

        It makes a worker something to wait for with :mod:`select`, :mod:`selectors` or asyncio's
        ``loop.add_reader(worker, ...)``. It belongs to the worker: do not read or close it.
        """
        fd = c_int()
        errors.check(lib.kvf_worker_event_fd(self._handle, fd))
        return fd.value

    def take_stats(self) -> dict[str, list[float]]:
        """Figures since the last call: lists by the names of vLLM's statistics; empty if there are none."""
        return json.loads(self._take(lib.kvf_worker_take_stats))

    def take_records(self) -> list[dict[str, Any]]:
        """Records of the requests that are over since the last call, the last few thousand at most."""
        return [json.loads(line) for line in self._take(lib.kvf_worker_take_records).splitlines()]

    def state(self) -> WorkerState:
        """How much there is of everything."""
        state = kvf_worker_state()
        errors.check(lib.kvf_worker_state_get(self._handle, state))
        return WorkerState(*(getattr(state, name) for name in WorkerState._fields))

    def close(self, drain: float = 0) -> None:
        """Ends the worker. Harmless when repeated.

        Transfers are carried out for up to ``drain`` seconds, then cancelled and waited for, for as long
        again but at least 100 ms. All leases end.

        Raises:
            TimeoutError: something was still moving: its blocks must not be used before the agent is
                closed.
        """
        if self._finalizer.detach():
            limit = _convert.milliseconds(drain, "drain")
            errors.check(lib.kvf_worker_destroy(self._handle, limit))

    def _take(self, function: Any) -> bytes:
        taken = kvf_buffer()
        errors.check(function(self._handle, taken))
        return _convert.take_buffer(taken)


_NEVER = 2**64 - 1


def _transfers(
    *, capacity: int = 0, slice_bytes: int = 0, slice_descriptors: int = 0, slices_in_flight: int = 0
) -> kvf_queue_options:
    return kvf_queue_options(
        sizeof(kvf_queue_options),
        _unsigned(capacity, 32, "capacity"),
        _unsigned(slice_bytes, 64, "slice_bytes"),
        _unsigned(slice_descriptors, 32, "slice_descriptors"),
        _unsigned(slices_in_flight, 32, "slices_in_flight"),
    )


def _end(handle: int) -> int:
    return lib.kvf_worker_destroy(handle, 0)


def _texts(items: Any, length: int) -> list[str]:
    return [items[i].decode() for i in range(length)]
