"""How metadata gets from one process to another: a listener that hands it out, and a request."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_char_p, c_uint8, c_uint16, c_uint64, c_void_p, cast, sizeof
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    kvf_buffer,
    kvf_clock_sample,
    kvf_rank_payload,
    kvf_side_channel_options,
    lib,
)
from .agent import _port, _u32

__all__ = [
    "Address",
    "ClockSample",
    "RankAnswer",
    "SideChannel",
    "request_metadata",
    "request_rank",
]


class Address(NamedTuple):
    """Where a listener is."""

    host: str
    port: int


class ClockSample(NamedTuple):
    """How the monotonic clock (``time.monotonic``) of a listener stands to ours."""

    #: Theirs less ours, in seconds.
    offset: float
    #: From the question to the answer, in seconds. Of several samples the one with the least is best.
    rtt: float


class RankAnswer(NamedTuple):
    """What a listener says about one rank."""

    metadata: bytes
    #: None where the protocol tells no clock.
    clock: ClockSample | None


class SideChannel:
    """A listener that gives metadata to whoever asks, from a thread of its own.

    Args:
        metadata: Any bytes; copied. With ``zmq`` that of rank (0, 0); none is no metadata.
        port: 0 lets the system choose; :attr:`address` tells.
        host: Address or name to listen on. Anything that other hosts can reach must be asked for:
            metadata is not authenticated.
        timeout: How long one client may take, in seconds.
        max_connections: Clients served at once; 0 is the default, 256.
        max_message_bytes: Longest metadata; 0 is the default, 64 MiB.
        kind: ``tcp``, or ``zmq``: the handshake of vLLM's NIXL connector, with metadata for each rank
            and a clock.

    A context manager; closed at the latest when collected.
    """

    def __init__(
        self,
        metadata: bytes,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        timeout: float = 5.0,
        max_connections: int = 0,
        max_message_bytes: int = 0,
        kind: str = "tcp",
    ):
        options = kvf_side_channel_options(
            sizeof(kvf_side_channel_options),
            max_connections=_u32(max_connections, "max_connections"),
            kind=_convert.text(kind, "kind"),
            host=_convert.text(host, "host"),
            max_message_bytes=_u64(max_message_bytes, "max_message_bytes"),
            timeout_ms=_timeout(timeout),
            port=_port(port),
        )
        handle = c_uint64()
        errors.check(
            lib.kvf_side_channel_listen(options, *_convert.payload(metadata, "metadata"), handle)
        )
        self._handle = handle.value
        self._finalizer = _lifetime.ends_with(self, lib.kvf_side_channel_shutdown, self._handle)

    def __enter__(self) -> SideChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = kvf_buffer(), c_uint16()
        errors.check(lib.kvf_side_channel_address(self._handle, host, port))
        return Address(_convert.take_buffer(host).decode(), port.value)

    @property
    def running(self) -> bool:
        """Whether clients are being served."""
        if not self._finalizer.alive:
            return False
        running = c_uint8()
        errors.check(lib.kvf_side_channel_is_running(self._handle, running))
        return bool(running.value)

    def set_metadata(self, metadata: bytes) -> None:
        """Replaces the metadata for clients that connect from now on; none gets a mixture."""
        errors.check(
            lib.kvf_side_channel_set_metadata(self._handle, *_convert.payload(metadata, "metadata"))
        )

    def set_rank_metadata(self, pp_rank: int, tp_rank: int, metadata: bytes) -> None:
        """Replaces the metadata of one rank, which with ``tcp`` can only be (0, 0)."""
        errors.check(
            lib.kvf_side_channel_set_rank_metadata(
                self._handle, _u32(pp_rank, "pp_rank"), _u32(tp_rank, "tp_rank"),
                *_convert.payload(metadata, "metadata"),
            )
        )

    def replace_ranks(self, ranks: Mapping[tuple[int, int], bytes]) -> None:
        """Replaces the metadata of all ranks at once; those that are not among them have none."""
        array, count, _keep = rank_payloads(ranks)
        errors.check(lib.kvf_side_channel_replace_ranks(self._handle, array, count))

    def close(self) -> None:
        """Stops the listener and frees the port. Harmless when repeated."""
        if self._finalizer.detach():
            errors.check(lib.kvf_side_channel_shutdown(self._handle))


def rank_payloads(ranks: Mapping[tuple[int, int], bytes]) -> tuple[Any, int, object]:
    """An array of ``kvf_rank_payload``, its length, and what keeps its bytes alive."""
    array = (kvf_rank_payload * len(ranks))()
    keep = []
    for entry, ((pp_rank, tp_rank), metadata) in zip(array, ranks.items()):
        data, entry.len = _convert.payload(metadata, f"metadata of {(pp_rank, tp_rank)}")
        keep.append(c_char_p(data))
        entry.data = cast(keep[-1], c_void_p)
        entry.pp_rank, entry.tp_rank = _u32(pp_rank, "pp_rank"), _u32(tp_rank, "tp_rank")
    return array, len(ranks), keep


def request_metadata(
    host: str, port: int, timeout: float = 5.0, *, max_bytes: int = 0, kind: str = "tcp"
) -> bytes:
    """Asks a listener for its metadata. It tries once.

    Args:
        timeout: For everything: look-up, connection, every byte; in seconds.
        max_bytes: Longest answer that is accepted; 0 is the default, 64 MiB.

    Raises:
        TimeoutError: it takes longer.
        PeerLostError: nobody listens, or the answer breaks off.
    """
    blob = kvf_buffer()
    errors.check(
        lib.kvf_side_channel_request(
            _convert.text(kind, "kind"), _convert.text(host, "host"), _port(port),
            _timeout(timeout), _u64(max_bytes, "max_bytes"), blob,
        )
    )
    return _convert.take_buffer(blob)


def request_rank(
    host: str,
    port: int,
    pp_rank: int = 0,
    tp_rank: int = 0,
    timeout: float = 5.0,
    *,
    max_bytes: int = 0,
    kind: str = "zmq",
) -> RankAnswer:
    """Asks a listener for the metadata of one rank, and for its clock. It tries once.

    Args:
        timeout: For everything: look-up, connection, every byte; in seconds.
        max_bytes: Longest metadata that is accepted; 0 is the default, 64 MiB.

    Raises:
        NotFoundError: the listener has nothing for this rank.
        TimeoutError: it takes longer.
        PeerLostError: nobody listens, or the answer breaks off.
    """
    blob, clock = kvf_buffer(), kvf_clock_sample()
    errors.check(
        lib.kvf_side_channel_request_rank(
            _convert.text(kind, "kind"), _convert.text(host, "host"), _port(port),
            _u32(pp_rank, "pp_rank"), _u32(tp_rank, "tp_rank"), _timeout(timeout),
            _u64(max_bytes, "max_bytes"), blob, clock,
        )
    )
    sample = ClockSample(clock.offset_s, clock.rtt_s) if clock.rtt_s >= 0 else None
    return RankAnswer(_convert.take_buffer(blob), sample)


def _timeout(seconds: float) -> int:
    # To C, 0 is the default; nobody who says 0 here means five seconds.
    return max(_convert.milliseconds(seconds, "timeout"), 1)


def _u64(value: int, what: str) -> int:
    if not 0 <= value < 2**64:
        raise errors.InvalidArgumentError(f"{what} is {value}; it must be 0 to 2**64-1")
    return value
