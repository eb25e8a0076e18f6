"""The half of a connector that lives with an engine's scheduler."""

from __future__ import annotations

import enum
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    CONSTANTS,
    kvf_buffer,
    kvf_scheduler_options,
    kvf_scheduler_stats,
    kvf_transfer_group,
    lib,
)
from .agent import member
from .layout import GroupKind
from .plan import block_ids
from .queue import _unsigned
from .side_channel import rank_payloads

__all__ = [
    "Finish", "Finished", "Keep", "Mode", "RequestBlocks", "Scheduler", "SchedulerStats", "TransferGroup",
]


class Mode(enum.IntEnum):
    """Which side moves the bytes."""

    #: The consumer reads from the producer.
    PULL = CONSTANTS["KVF_MODE_PULL"]
    #: The producer writes to the consumer.
    PUSH = CONSTANTS["KVF_MODE_PUSH"]


class Finish(enum.IntEnum):
    """How a request ended."""

    #: It has as many tokens as it may have.
    LENGTH = CONSTANTS["KVF_FINISH_LENGTH"]
    #: A stop token or string.
    STOP = CONSTANTS["KVF_FINISH_STOP"]
    #: Its client is gone.
    ABORT = CONSTANTS["KVF_FINISH_ABORT"]
    #: It failed.
    ERROR = CONSTANTS["KVF_FINISH_ERROR"]


class Keep(enum.IntEnum):
    """Until when the blocks of a finished request must not be freed."""

    #: They can be freed now.
    NO = CONSTANTS["KVF_KEEP_NO"]
    #: Until the request is reported as sent.
    UNTIL_SENT = CONSTANTS["KVF_KEEP_UNTIL_SENT"]
    #: Until the request, which was being received, is reported as received (failed, too).
    UNTIL_RECEIVED = CONSTANTS["KVF_KEEP_UNTIL_RECEIVED"]


class TransferGroup(NamedTuple):
    """A group of layers with a block table of its own, whose blocks are exchanged."""

    kind: GroupKind | str = GroupKind.FULL
    #: Tokens of one block; may be 0 for state groups.
    tokens_per_block: int = 0
    #: Sliding window: tokens that it reaches back.
    window: int = 0
    #: State: slots at the end of a request's list that only hold drafts.
    scratch_blocks: int = 0


class RequestBlocks(NamedTuple):
    """Blocks of a request in one group: part of its block table.

    ``ids`` may be a list, an ``array``, or a numpy array of uint32, which is taken where it lies.
    """

    ids: Any
    #: How many blocks of the table come before the first of them.
    first: int = 0


class Finished(NamedTuple):
    """What has to become of a finished request."""

    #: Until when its blocks must not be freed.
    keep: Keep
    #: What the router has to give to the other side; None: nothing.
    params: dict[str, Any] | None


class SchedulerStats(NamedTuple):
    """Sizes of the tables. All 0 when every request has finished and every id has been reported."""

    #: Requests that were added with parameters and have not finished.
    requests: int
    #: Requests whose KV the engine waits for, those that have ended meanwhile too.
    receiving: int
    #: Finished requests whose blocks are kept.
    holds: int
    #: Lease words in use.
    leases: int
    #: Requests whose leases on other engines are being extended.
    heartbeats: int
    #: Those engines.
    peers: int


class Scheduler:
    """The books of one engine: what is fetched from whom, and kept for whom.

    Args:
        engine_id: Names this engine to others; best another one after a restart.
        host: Under which other engines reach this one's listener, and on which it listens.
        groups: The groups whose blocks are exchanged, in the order in which block lists are given.
        port: Of the listener; 0: the system chooses, and :attr:`address` tells.
        mode: ``"pull"`` or ``"push"``.
        tp_size: Transfer ranks: the larger of the tensor-parallel and the decode-context-parallel size.
        pp_size: Pipeline stages.
        dcp_size: Decode-context-parallel size.
        clip: Of sliding-window and state groups exchange only what a decoder needs. vLLM does so when
            its hybrid cache manager is on.
        backoff_tokens: Trailing prompt tokens that a producer leaves out and the consumer computes.
        lease: Seconds that blocks are kept for a consumer that sends no heartbeat.
        heartbeat: Seconds between heartbeats; a sixth of ``lease`` unless given.
        bidirectional: Consumers keep finished requests' blocks for the next turn's producer.
        recompute_threshold: The least number of tokens that a next turn fetches; 0: any.
        pin: Seconds that a consumer keeps blocks for that.
        registration_timeout: Push: seconds after which a request that nobody writes fails; ``pin``
            unless given.
        state_registrations: State in parameters how often handshake payloads were published (vLLM 0.33).

    No method waits for another engine; each is one call of the library. Ids that were not added with
    parameters are not the connector's business: there is nothing to do for them. All methods may be
    called from any thread. A scheduler is a context manager; it ends at the latest when it is collected.
    """

    def __init__(
        self,
        engine_id: str,
        host: str,
        groups: Iterable[TransferGroup],
        *,
        port: int = 0,
        mode: Mode | str = Mode.PULL,
        tp_size: int = 1,
        pp_size: int = 1,
        dcp_size: int = 1,
        clip: bool = False,
        backoff_tokens: int = 0,
        lease: float = 30.0,
        heartbeat: float | None = None,
        bidirectional: bool = False,
        recompute_threshold: int = 64,
        pin: float = 480.0,
        registration_timeout: float | None = None,
        state_registrations: bool = False,
    ):
        made = [
            kvf_transfer_group(
                member(GroupKind, g.kind), *(_unsigned(n, 32, "a number of a group") for n in g[1:])
            )
            for g in groups
        ]
        options = kvf_scheduler_options(
            struct_size=sizeof(kvf_scheduler_options),
            mode=member(Mode, mode),
            engine_id=_convert.text(engine_id, "engine_id"),
            host=_convert.text(host, "host"),
            groups=(kvf_transfer_group * len(made))(*made),
            groups_len=len(made),
            port=_unsigned(port, 16, "port"),
            tp_size=_unsigned(tp_size, 32, "tp_size"),
            pp_size=_unsigned(pp_size, 32, "pp_size"),
            dcp_size=_unsigned(dcp_size, 32, "dcp_size"),
            clip=clip,
            backoff_tokens=_unsigned(backoff_tokens, 32, "backoff_tokens"),
            lease_ms=_time(lease, "lease"),
            heartbeat_ms=0 if heartbeat is None else _time(heartbeat, "heartbeat"),
            bidirectional=bidirectional,
            # To C, 0 is the default and 1 is any.
            recompute_threshold=max(_unsigned(recompute_threshold, 64, "recompute_threshold"), 1),
            pin_ms=_time(pin, "pin"),
            registration_timeout_ms=(
                0
                if registration_timeout is None
                else _time(registration_timeout, "registration_timeout")
            ),
            state_registrations=state_registrations,
        )
        handle = c_uint64()
        errors.check(lib.kvf_scheduler_create(options, handle))
        self._handle = handle.value
        self._finalizer = _lifetime.ends_with(self, lib.kvf_scheduler_destroy, self._handle)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_scheduler.id``)."""
        return self._handle

    def add(
        self,
        request_id: str,
        params: Mapping[str, Any] | str | bytes | None,
        prompt_tokens: int,
        *,
        reads_prefix_cache: bool = True,
    ) -> int:
        """A request has entered the engine.

        Args:
            params: Its ``kv_transfer_params``. If they cannot be used, that is logged and the request is
                a local one.
            reads_prefix_cache: False for one that asks for prompt log-probabilities.

        Returns:
            How many trailing prompt tokens the engine has to take off the request.

        Raises:
            InvalidStateError: the id is still to be reported as received or sent.
        """
        if not params:
            return 0
        if isinstance(params, str):
            params = params.encode()
        elif not isinstance(params, bytes):
            params = _json(params)
        drop = c_uint64()
        status = lib.kvf_scheduler_add(
            self._handle, _convert.text(request_id, "request_id"), params, len(params), prompt_tokens,
            0 if reads_prefix_cache else _NO_PREFIX_CACHE, drop,
        )
        if status:
            raise errors.from_status(status)
        return drop.value

    def match(self, request_id: str, prompt_tokens: int, computed_tokens: int) -> int:
        """How many tokens after the first ``computed_tokens``, which the prefix cache has, can be loaded
        from another engine. If there are any, the engine allocates blocks, calls :meth:`allocated`, and
        sets the request aside until it is reported as received or failed. Changes nothing."""
        tokens = c_uint64()
        status = lib.kvf_scheduler_match(
            self._handle, _convert.text(request_id, "request_id"), prompt_tokens, computed_tokens, tokens
        )
        if status:
            raise errors.from_status(status)
        return tokens.value

    def allocated(
        self, request_id: str, blocks: Sequence[Any] = (), external_tokens: int = 0
    ) -> bool:
        """A request has been given blocks.

        Args:
            blocks: For each group the blocks that the prefix cache did not have, without null blocks:
                :class:`RequestBlocks`, or plain ids, which begin the request's block table. May be left
                out if ``external_tokens`` is 0.
            external_tokens: What :meth:`match` said if the engine sets the request aside, else 0.

        Returns:
            Whether the engine has to note in its copy of the parameters that the transfer is arranged:
            ``do_remote_prefill`` is false, ``_remote_blocks_processed`` is true.
        """
        where, count, _keep = _blocks(blocks) if blocks else _NO_BLOCKS
        staged = c_uint8()
        status = lib.kvf_scheduler_allocated(
            self._handle, _convert.text(request_id, "request_id"), where, count, external_tokens, staged
        )
        if status:
            raise errors.from_status(status)
        return bool(staged.value)

    def build_step(self) -> bytes:
        """What the workers have to do since the last call: to be given to each rank's worker, in this
        order. To be called in every engine step."""
        step = kvf_buffer()
        status = lib.kvf_scheduler_build_step(self._handle, step)
        if status:
            raise errors.from_status(status)
        return _convert.take_buffer(step)

    def received(self, request_ids: Iterable[str]) -> None:
        """Every rank has reported these as received (or one as failed and all as at rest)."""
        self._report(lib.kvf_scheduler_received, request_ids)

    def sent(self, request_ids: Iterable[str]) -> None:
        """Every rank has reported these as sent, or their leases as over."""
        self._report(lib.kvf_scheduler_sent, request_ids)

    def _report(self, function: Any, request_ids: Iterable[str]) -> None:
        ids, count = _convert.names(request_ids, "request_ids")
        if count:
            errors.check(function(self._handle, ids, count))

    def finished(
        self,
        request_id: str,
        how: Finish | str,
        blocks: Sequence[Any] = (),
        computed_tokens: int = 0,
    ) -> Finished:
        """A request has ended. To be called once for each, before its blocks are freed.

        Args:
            blocks: For each group all of its blocks that hold the first ``computed_tokens`` tokens.
        """
        where, count, _keep = _blocks(blocks) if blocks else _NO_BLOCKS
        if type(how) is not Finish:
            how = member(Finish, how)
        keep, params = c_uint32(), kvf_buffer()
        status = lib.kvf_scheduler_finished(
            self._handle, _convert.text(request_id, "request_id"), how, where, count,
            computed_tokens, keep, params,
        )
        if status:
            raise errors.from_status(status)
        # Keep(...) would take as long as all the rest.
        if not params.len:
            return Finished(_KEEP[keep.value], None)
        return Finished(_KEEP[keep.value], json.loads(_convert.take_buffer(params)))

    def has_pending(self) -> bool:
        """Push: whether the engine has to go on stepping although it has nothing to run."""
        pending = c_uint8()
        errors.check(lib.kvf_scheduler_has_pending(self._handle, pending))
        return bool(pending.value)

    def serve(self, payloads: Mapping[tuple[int, int], bytes]) -> None:
        """Starts the listener that gives handshake payloads to other engines, or replaces what it
        gives away.

        Args:
            payloads: Of each rank, by (pipeline stage, transfer rank).

        Raises:
            BusyError: the port is taken.
        """
        ranks, count, _keep = rank_payloads(payloads)
        errors.check(lib.kvf_scheduler_serve(self._handle, ranks, count))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that other engines are told."""
        host, port = kvf_buffer(), c_uint16()
        errors.check(lib.kvf_scheduler_address(self._handle, host, port))
        return _convert.take_buffer(host).decode(), port.value

    def stats(self) -> SchedulerStats:
        """Sizes of the tables."""
        sizes = kvf_scheduler_stats()
        errors.check(lib.kvf_scheduler_stats_get(self._handle, sizes))
        return SchedulerStats(*(getattr(sizes, name) for name in SchedulerStats._fields))

    def close(self) -> None:
        """Ends it and its listener. Harmless when repeated."""
        if self._finalizer.detach():
            errors.check(lib.kvf_scheduler_destroy(self._handle))


_NO_PREFIX_CACHE = CONSTANTS["KVF_ADD_NO_PREFIX_CACHE"]
_NO_BLOCKS = (None, 0, None)
_KEEP = {int(k): k for k in Keep}


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays as lists, anything else as nothing."""
    return value.tolist() if hasattr(value, "tolist") else None


_encode = json.JSONEncoder(default=_plain, separators=(",", ":")).encode


def _json(params: Mapping[str, Any]) -> bytes:
    # Where vLLM is there is msgspec, which is ten times as quick as the standard library and has less
    # patience. It can only be of use here if somebody has imported it.
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None:
        try:
            return msgspec.json.encode(params)
        except (TypeError, ValueError, OverflowError, AttributeError):
            pass
    return _encode(params).encode()


def _blocks(groups: Sequence[Any]) -> tuple[int | None, int, object]:
    """An array of ``kvf_request_blocks``, made of 64-bit integers like the queue's block lists."""
    words, keep = array("Q"), []
    for i, group in enumerate(groups):
        ids, first = group if type(group) is RequestBlocks else (group, 0)
        where, length, kept = block_ids(ids, i)
        if not 0 <= first < 2**32:
            raise errors.InvalidArgumentError(
                f"group {i}: first block {first} is not 0 to 2**32-1"
            )
        keep.append(kept)
        words.extend((where, length, first))
    if not words:
        return _NO_BLOCKS
    keep.append(words)
    return words.buffer_info()[0], len(words) // 3, keep


def _time(seconds: float, what: str) -> int:
    # To C, 0 is the default; nobody who says 0 here means half a minute.
    return max(_convert.milliseconds(seconds, what), 1)
