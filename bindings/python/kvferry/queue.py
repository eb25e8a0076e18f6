"""Transfers in the background: plans and block ids in, completions out."""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Sequence
from ctypes import addressof, c_int, c_size_t, c_uint8, c_uint64, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import kvf_completion, kvf_queue_options, kvf_queue_stats, kvf_submission, lib
from .agent import Agent
from .plan import BlockLists, Plan, _tokens

__all__ = ["Completion", "Queue", "QueueStats"]


class Completion(NamedTuple):
    """What became of a request.

    When it is :attr:`ok`, every byte is in place; otherwise any part of the destination blocks may have
    been written. Either way nothing will be written any more: the blocks are the caller's again. Times
    are in nanoseconds since the request was submitted; 0 is "did not get there".
    """

    ticket: int
    #: ``KVF_OK`` or a negative ``KVF_ERR_...``.
    status: int
    #: What went wrong; empty if nothing did.
    message: str
    #: Number of peers that could not be notified although all bytes are in.
    not_notified: int
    #: When it was submitted, in nanoseconds of the monotonic clock (``time.monotonic_ns()``).
    submitted_ns: int
    planned_ns: int
    posted_ns: int
    finished_ns: int
    #: Bytes that arrived.
    bytes: int
    total_bytes: int
    #: Ranges before and after neighbouring blocks were merged.
    descriptors_before: int
    descriptors: int
    #: Posts.
    slices: int
    #: The backend of the first post; empty if there was none.
    backend: str

    @property
    def ok(self) -> bool:
        """Whether every byte is in place."""
        return self.status == 0

    @property
    def error(self) -> errors.Error | None:
        """How it failed, as an exception to be raised; None if it did not."""
        return None if self.ok else errors.from_status(self.status, self.message)


class QueueStats(NamedTuple):
    """Figures of a queue since it was made."""

    submitted: int
    succeeded: int
    failed: int
    #: Requests that were refused because the queue was full.
    refused: int
    #: Requests that are accepted and not through.
    running: int
    #: Completions that wait to be polled.
    unpolled: int
    bytes: int
    descriptors_before: int
    descriptors: int
    slices: int
    #: CPU time of the queue's thread in nanoseconds.
    thread_cpu_ns: int


# The numbers at the front of kvf_completion; the texts have fields of their own.
_NUMBERS = struct.Struct("=QiI9Q")
# Completions taken by one call.
_BATCH = 64
# Lists of agents whose C form is kept. An engine has as many as it has peer engines.
_MOST_AGENTS = 1024


class Queue:
    """A background thread that runs transfers of one agent.

    Args:
        agent: Whose transfers they are.
        capacity: Requests that may be outstanding: submitted, and their completions not polled;
            0 is 4,096.
        slice_bytes: Bytes that one post moves at most; 0 is 8 MiB, and up to 64 MiB for a request that
            is alone in the queue, while the transport takes posts quickly.
        slice_descriptors: Descriptors that one post has at most; 0 is 1,024, and up to 8,192 in the
            same case.
        slices_in_flight: Slices of one request that may be under way at the same time; 0 is 4.

    All methods may be called from any thread. :meth:`submit` and :meth:`poll` are one call of the
    library each and never block. A queue is a context manager; it ends at the latest when it is
    collected, and then cancels what is still under way.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        capacity: int = 0,
        slice_bytes: int = 0,
        slice_descriptors: int = 0,
        slices_in_flight: int = 0,
    ):
        options = kvf_queue_options(
            sizeof(kvf_queue_options),
            _unsigned(capacity, 32, "capacity"),
            _unsigned(slice_bytes, 64, "slice_bytes"),
            _unsigned(slice_descriptors, 32, "slice_descriptors"),
            _unsigned(slices_in_flight, 32, "slices_in_flight"),
        )
        handle = c_uint64()
        errors.check(lib.kvf_queue_create(agent.handle, options, handle))
        self._handle = handle.value
        # The agent ends after the queue.
        self._agent = agent
        self._finalizer = _lifetime.ends_with(self, _end, self._handle)
        self._names: dict[tuple[str, ...], tuple[int, int, object]] = {}
        self._room = (kvf_completion * _BATCH)()
        self._polling = threading.Lock()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_queue.id``)."""
        return self._handle

    def submit(
        self,
        plan: Plan,
        agents: Sequence[str],
        blocks: Sequence[Any],
        *,
        tokens: int | None = None,
        notification: bytes | str | None = None,
        deadline: float | None = None,
        guards: Sequence[tuple[int, int, int]] = (),
    ) -> int:
        """Hands a request over, and returns its ticket at once.

        Args:
            plan: What goes where.
            agents: For each of the plan's peers the name of its agent, as
                :meth:`Agent.add_remote` gave it; an empty one will do for peers that are idle.
            blocks: For each group its :class:`GroupBlocks`, or a pair of lists (local, remote).
            tokens: Tokens of the request that the producer holds, from the first one.
            notification: Sent to each peer that is not idle when all bytes are in; may be empty.
            deadline: Seconds after which the request fails.
            guards: Conditions on peers' memory that must hold after all bytes are in: the index of the
                peer, the address of a 64-bit word there, and what it must be below. Without them the
                request fails with :class:`~kvferry.errors.ExpiredError` and nobody is notified.

        Raises:
            BusyError: as many requests as the queue holds are outstanding: poll, then repeat.
        """
        lists = BlockLists(blocks)
        names, names_len, _keep = self._agents(agents)
        message = array("B", _convert.payload(notification or b"", "notification")[0])
        words = array("Q", (n for peer, addr, limit in guards for n in (_unsigned(peer, 32, "guards"), addr, limit)))
        # A kvf_submission, made of 64-bit integers like the block lists: a third of the time that a
        # ctypes struct takes. tests/python/test_queue.py compares the two.
        submission = array("Q", (
            _SUBMISSION | (notification is not None) << 32,
            plan.handle, names, names_len, lists.address or 0, lists.count, _tokens(tokens),
            message.buffer_info()[0] if message else 0, len(message),
            0 if deadline is None else max(_convert.milliseconds(deadline, "deadline"), 1),
            words.buffer_info()[0] if words else 0, len(words) // 3,
        ))
        ticket = c_uint64()
        status = lib.kvf_queue_submit(self._handle, submission.buffer_info()[0], ticket)
        if status:
            raise errors.from_status(status)
        return ticket.value

    def _agents(self, agents: Sequence[str]) -> tuple[int, int, object]:
        """The names as an array of C strings: its address, its length, and what keeps it alive."""
        key = tuple(agents)
        known = self._names.get(key)
        if known is None:
            if len(self._names) >= _MOST_AGENTS:
                self._names = {}
            made, length = _convert.names(key, "agents")
            known = (addressof(made) if length else 0, length, made)
            self._names[key] = known
        return known

    def poll(self, max: int = _BATCH) -> list[Completion]:
        """Takes up to ``max`` completions, oldest first, but no more than 64. Never blocks."""
        taken = c_size_t()
        with self._polling:
            status = lib.kvf_queue_poll(
                self._handle, addressof(self._room), min(max, _BATCH), taken
            )
            if status:
                raise errors.from_status(status)
            return [_completion(self._room[i]) for i in range(taken.value)]

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until there is a completion to poll, or the time is over; whether there is one."""
        ready = c_uint8()
        limit = _convert.milliseconds(timeout, "timeout")
        errors.check(lib.kvf_queue_wait(self._handle, limit, ready))
        return bool(ready.value)

    def cancel(self, ticket: int) -> None:
        """Asks a request to stop. It completes with a :class:`CanceledError` once it has come to rest,
        or as it would have if it was through already. Harmless on one that has completed.

        Raises:
            NotFoundError: this queue has not given out such a ticket.
        """
        errors.check(lib.kvf_queue_cancel(self._handle, _unsigned(ticket, 64, "ticket")))

    def stats(self) -> QueueStats:
        """Figures since the queue was made."""
        figures = kvf_queue_stats()
        errors.check(lib.kvf_queue_stats_get(self._handle, figures))
        return QueueStats(*(getattr(figures, name) for name in QueueStats._fields))

    def fileno(self) -> int:
        """A file descriptor that is readable while there are completions to poll.

        It makes a queue something to wait for with :mod:`select`, :mod:`selectors` or asyncio's
        ``loop.add_reader(queue, ...)``. It belongs to the queue: do not read or close it.
        """
        fd = c_int()
        errors.check(lib.kvf_queue_event_fd(self._handle, fd))
        return fd.value

    def close(self, drain: float = 0) -> None:
        """Ends the queue. Harmless when repeated.

        Requests that it has accepted are carried out for up to ``drain`` seconds; then what is left is
        cancelled and waited for, for as long again but at least 100 ms. Completions that have not been
        polled are lost.

        Raises:
            TimeoutError: something was still moving: its blocks must not be used before the agent
                is closed.
        """
        if self._finalizer.detach():
            limit = _convert.milliseconds(drain, "drain")
            errors.check(lib.kvf_queue_destroy(self._handle, limit))


_SUBMISSION = sizeof(kvf_submission)


def _end(handle: int) -> int:
    return lib.kvf_queue_destroy(handle, 0)


def _completion(c: kvf_completion) -> Completion:
    (
        ticket, status, not_notified, submitted, planned, posted, finished, arrived, total, before,
        after, slices,
    ) = _NUMBERS.unpack_from(c)
    return Completion(
        ticket, status, c.message.decode("utf-8", "replace"), not_notified, submitted, planned, posted,
        finished, arrived, total, before, after, slices, c.backend.decode("utf-8", "replace"),
    )


def _unsigned(value: int, bits: int, what: str) -> int:
    if not 0 <= value < 1 << bits:
        raise errors.InvalidArgumentError(f"{what} is {value}; it must be 0 to 2**{bits}-1")
    return value
