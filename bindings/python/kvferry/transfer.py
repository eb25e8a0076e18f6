"""Prepared lists of ranges, and transfers between them. An :class:`~kvferry.Agent` makes both."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Sequence
from ctypes import byref, c_int32, c_size_t, c_uint64, sizeof
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import kvf_buffer, kvf_transfer_cost, kvf_transfer_options, kvf_transfer_telemetry, lib

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Cost", "DescList", "Op", "State", "Telemetry", "Transfer", "states"]


class Op(enum.IntEnum):
    """Direction of a transfer, seen from the agent that posts it."""

    READ = 0  #: Remote to local.
    WRITE = 1  #: Local to remote.


class State(enum.IntEnum):
    """Where a transfer stands. Failure is an exception, not a state."""

    DONE = 0  #: All bytes are where they belong.
    IN_PROGRESS = 1  #: Posted and under way.


class Telemetry(NamedTuple):
    """Figures of one post; times in microseconds of the monotonic clock."""

    start_time_us: int
    post_duration_us: int
    transfer_duration_us: int
    total_bytes: int
    descriptors: int


class Cost(NamedTuple):
    """An estimate. Method 0 is the backend's analytical model."""

    duration_us: int
    error_margin_us: int
    method: int


class TransferOptions:
    """``kvf_transfer_options``, and what it points to. ``struct`` is None when all is default."""

    __slots__ = ("struct", "_keep")

    def __init__(self, notification: Any, backends: Iterable[str], skip_merge: bool):
        self.struct = None
        if not notification and not backends and not skip_merge:
            return
        message, length = _convert.payload(notification, "notification")
        names, count = _convert.names(backends, "backends")
        options = kvf_transfer_options(sizeof(kvf_transfer_options), bool(skip_merge))
        options.notification, options.notification_len = message or None, length
        if names is not None:
            options.backends, options.backends_len = names, count
        self.struct, self._keep = byref(options), names


class DescList:
    """Ranges prepared for picking by index. A context manager; released at the latest when collected."""

    __slots__ = ("_agent", "_handle", "_made_in", "_released")

    def __init__(self, agent: Agent, handle: int):
        self._agent, self._handle = agent, handle
        self._made_in, self._released = _lifetime.generation(), False

    def __enter__(self) -> DescList:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if not self._released:
            _lifetime.end(lib.kvf_desc_list_release, self._handle, self._made_in)

    def __len__(self) -> int:
        length = c_size_t()
        errors.check(lib.kvf_desc_list_len(self._handle, length))
        return length.value

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_desc_list.id``)."""
        return self._handle

    def release(self) -> None:
        """Ends the list. Transfers made from it go on. Harmless when repeated."""
        if self._released:
            return
        status = lib.kvf_desc_list_release(self._handle)
        if status != errors.InvalidHandleError.status:  # ended with its agent
            errors.check(status)
        self._released = True


class Transfer:
    """One transfer. A context manager that stops it, if need be, and releases it.

    A transfer that is collected while it is under way is stopped; its memory must stay mapped until
    the agent is closed.
    """

    __slots__ = ("_agent", "_handle", "_made_in", "_released")

    def __init__(self, agent: Agent, handle: int):
        self._agent, self._handle = agent, handle
        self._made_in, self._released = _lifetime.generation(), False

    def __del__(self) -> None:
        if not self._released:
            self._agent._let_go(self._handle, self._made_in)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self.release(timeout=5.0)

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_transfer.id``)."""
        return self._handle

    def post(self, notification: bytes | str = b"") -> State:
        """Starts it, or starts it again after it has finished.

        Args:
            notification: Replaces, from this post on, the one given when the transfer was made.
        """
        state = c_int32()
        message, length = _convert.payload(notification, "notification")
        errors.check(lib.kvf_transfer_post(self._handle, message or None, length, state))
        return State(state.value)

    def state(self) -> State:
        """Where it stands. Never blocks. An error is how the transfer ended."""
        state = c_int32()
        errors.check(lib.kvf_transfer_state(self._handle, state))
        return State(state.value)

    @property
    def done(self) -> bool:
        """Whether all bytes are where they belong."""
        return self.state() is State.DONE

    def wait(self, timeout: float | None = None) -> None:
        """Waits until it is done; ``timeout`` in seconds, None is for ever.

        Polls, with pauses that grow to 1 ms, and drives progress by looking at the state.

        Raises:
            TimeoutError: it is still under way.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.0
        while self.state() is not State.DONE:
            if end is not None and time.monotonic() >= end:
                raise errors.TimeoutError(
                    f"the transfer is not done after {timeout} s", errors.TimeoutError.status
                )
            time.sleep(pause)
            pause = min(pause + 20e-6, 1e-3)

    def cancel(self) -> None:
        """Asks it to stop; it has, when :meth:`state` no longer answers ``IN_PROGRESS``."""
        errors.check(lib.kvf_transfer_cancel(self._handle))

    def release(self, timeout: float = 0) -> None:
        """Ends the transfer; one that is under way is stopped. Harmless when repeated.

        Raises:
            BusyError: bytes may still move after ``timeout`` seconds; it is still valid.
        """
        if self._released:
            return
        end = time.monotonic() + timeout
        while True:
            status = lib.kvf_transfer_release(self._handle)
            if status != errors.BusyError.status or time.monotonic() >= end:
                break
            time.sleep(0.001)
        if status != errors.InvalidHandleError.status:  # ended with its agent
            errors.check(status)
        self._released = True

    def telemetry(self) -> Telemetry:
        """Figures of the last post; the agent must have been made with ``telemetry=True``."""
        figures = kvf_transfer_telemetry()
        errors.check(lib.kvf_transfer_telemetry_get(self._handle, figures))
        return Telemetry(*(getattr(figures, name) for name in Telemetry._fields))

    def cost(self) -> Cost:
        """How long it will probably take."""
        cost = kvf_transfer_cost()
        errors.check(lib.kvf_transfer_cost_estimate(self._handle, cost))
        return Cost(cost.duration_us, cost.error_margin_us, cost.method)

    @property
    def backend(self) -> str:
        """Name of the backend that carries it."""
        name = kvf_buffer()
        errors.check(lib.kvf_transfer_backend(self._handle, name))
        return _convert.take_buffer(name).decode("utf-8", "replace")


def states(transfers: Sequence[Transfer]) -> list[int]:
    """The states of many transfers by one call: a :class:`State`, or the negative status of one
    that has failed."""
    handles = (c_uint64 * len(transfers))(*(t.handle for t in transfers))
    found = (c_int32 * len(transfers))()
    errors.check(lib.kvf_transfer_states(handles, len(transfers), found))
    return [State(s) if s >= 0 else s for s in found]
