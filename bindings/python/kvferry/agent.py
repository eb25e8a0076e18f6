"""One rank's endpoint: registrations, peers, notifications, and making transfers."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from ctypes import byref, c_size_t, c_uint8, c_uint32, c_uint64, sizeof, string_at
from typing import Any, NamedTuple

from . import _convert, _lifetime, errors
from ._ffi import (
    kvf_agent_options,
    kvf_backend,
    kvf_buffer,
    kvf_notification_list,
    kvf_param_list,
    kvf_query_list,
    kvf_string_list,
    lib,
)
from .transfer import DescList, Op, Transfer, TransferOptions

__all__ = ["Agent", "BackendInfo", "MemKind", "Notification", "Progress", "SyncMode"]

Names = Sequence[str]


class MemKind(enum.IntEnum):
    """Kinds of memory. Functions take a member or its name (``"dram"``)."""

    DRAM = 0  #: Host memory.
    VRAM = 1  #: GPU memory; the device is the CUDA ordinal.
    BLOCK = 2  #: A block device.
    OBJECT = 3  #: An object store; the metadata of the registration is the key.
    FILE = 4  #: A file; the device is the file descriptor.


class Progress(enum.IntEnum):
    """Who answers peers while the program is busy elsewhere."""

    THREAD = 0  #: A thread that sleeps until a peer wants something.
    CALLER = 1  #: Nobody: peers are answered only during calls, above all ``notifications()``.
    SPIN = 2  #: A thread that never sleeps (``nixl``). Lowest latency; costs one core.


class SyncMode(enum.IntEnum):
    """How NIXL serialises calls. In every mode an agent may be used from many threads."""

    DEFAULT = 0
    NONE = 1
    STRICT = 2
    RW = 3


class Notification(NamedTuple):
    """A message from a remote agent."""

    sender: str
    payload: bytes


class BackendInfo(NamedTuple):
    """What a plugin or backend offers."""

    params: dict[str, str]
    mem_kinds: list[MemKind]


def member(kind: type[enum.IntEnum], value: Any) -> int:
    """A member, its number, or its name in any case, as the number."""
    if isinstance(value, str):
        try:
            return kind[value.upper()]
        except KeyError:
            known = ", ".join(m.name.lower() for m in kind)
            raise errors.InvalidArgumentError(
                f"{kind.__name__} {value!r} is not known; there are {known}"
            ) from None
    return int(value)


class Agent:
    """One rank's endpoint.

    Args:
        name: Name by which peers know this agent, unique among them.
        transport: ``"nixl"`` or ``"local"``. Nothing falls back in silence.
        backends: Names of the backends to create, or name → parameters. None is the transport's
            default (``UCX`` for ``nixl``); an empty list is none at all.
        progress: Who answers peers while the program is busy elsewhere.
        progress_delay: How long the progress thread sleeps at most, in seconds; 0 is the default.
        sync_mode: How NIXL locks.
        worker_threads: ``nixl``: worker threads of backends that can have several.
        copy_threads: ``local``: threads that copy, the caller's included.
        drain_timeout: How long :meth:`close` waits for transfers under way, in seconds.
        listen_port: ``nixl``: port of NIXL's own metadata listener; None is no listener.
        telemetry: Whether transfers record telemetry.
        nixl_library: Path of ``libnixl_capi.so``; None searches.
        nixl_plugin_dir: Folder of NIXL's plugins; None is the one beside the library.

    All methods may be called from any thread. Registered memory stays the caller's and must stay
    mapped until it is deregistered or the agent is closed. An agent is a context manager, and is
    closed at the latest when it is collected; it does not survive ``fork()`` into the child.
    """

    def __init__(
        self,
        name: str,
        transport: str,
        *,
        backends: Names | Mapping[str, Mapping[str, str]] | None = None,
        progress: Progress | str = Progress.THREAD,
        progress_delay: float = 0,
        sync_mode: SyncMode | str = SyncMode.DEFAULT,
        worker_threads: int = 0,
        copy_threads: int = 0,
        drain_timeout: float = 5.0,
        listen_port: int | None = None,
        telemetry: bool = False,
        nixl_library: str | None = None,
        nixl_plugin_dir: str | None = None,
    ):
        options = kvf_agent_options(
            sizeof(kvf_agent_options),
            progress=_u32(member(Progress, progress), "progress"),
            name=_convert.text(name, "agent name"),
            transport=_convert.text(transport, "transport"),
            nixl_library=_convert.optional_text(nixl_library, "nixl_library"),
            nixl_plugin_dir=_convert.optional_text(nixl_plugin_dir, "nixl_plugin_dir"),
            progress_delay_us=_convert.milliseconds(progress_delay * 1000, "progress_delay"),
            sync_mode=_u32(member(SyncMode, sync_mode), "sync_mode"),
            worker_threads=_u32(worker_threads, "worker_threads"),
            copy_threads=_u32(copy_threads, "copy_threads"),
            drain_timeout_ms=min(_convert.milliseconds(drain_timeout, "drain_timeout") or 1, 2**32 - 1),
            telemetry=bool(telemetry),
        )
        if listen_port is not None:
            options.listen, options.listen_port = 1, _port(listen_port)
        keep = None
        if backends is not None:
            keep = _backend_array(backends)
            options.backends, options.backends_len = keep, len(keep)
            options.no_default_backend = not keep
        handle = c_uint64()
        errors.check(lib.kvf_agent_create(options, handle))
        del keep
        self._handle = handle.value
        self._name, self._transport = name, transport
        self._going: list[int] = []
        self._finalizer = _lifetime.ends_with(self, lib.kvf_agent_destroy, self._handle)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else ", closed"
        return f"<kvferry.Agent {self._name!r} over {self._transport}{state}>"

    @property
    def name(self) -> str:
        """The name by which peers know this agent."""
        return self._name

    @property
    def transport(self) -> str:
        """``"nixl"`` or ``"local"``."""
        return self._transport

    @property
    def handle(self) -> int:
        """The id of the C handle (``kvf_agent.id``), for calls that this class does not have."""
        return self._handle

    def close(self) -> None:
        """Ends the agent, and with it its lists and transfers. Harmless when repeated.

        Transfers under way are stopped or waited for.

        Raises:
            TimeoutError: some may still touch memory; keep their buffers. The agent is closed.
        """
        if self._finalizer.detach():
            errors.check(lib.kvf_agent_destroy(self._handle))

    def _let_go(self, transfer: int, made_in: int) -> None:
        """Ends a transfer that nobody holds any more, and earlier ones that would not end then.

        What is still under way ends with the agent at the latest.
        """
        waiting, self._going = [*self._going, transfer], []
        for t in waiting:
            if _lifetime.end(lib.kvf_transfer_release, t, made_in) == errors.BusyError.status:
                self._going.append(t)

    # ------------------------------------------------------------------ plugins and backends

    def plugins(self) -> list[str]:
        """Names of the plugins that could become backends."""
        names = kvf_string_list()
        errors.check(lib.kvf_agent_plugins(self._handle, names))
        return _convert.take_strings(names)

    def plugin_info(self, plugin: str) -> BackendInfo:
        """Parameters with their defaults, and memory kinds, of a plugin."""
        return self._info(lib.kvf_agent_plugin_info, plugin)

    def backends(self) -> list[str]:
        """Names of the backends that exist, in the order of their creation."""
        names = kvf_string_list()
        errors.check(lib.kvf_agent_backends(self._handle, names))
        return _convert.take_strings(names)

    def backend_info(self, backend: str) -> BackendInfo:
        """Parameters and memory kinds of a backend, now that it exists."""
        return self._info(lib.kvf_agent_backend_info, backend)

    def create_backend(self, name: str, params: Mapping[str, str] | None = None) -> None:
        """Makes a backend of a plugin."""
        array = _backend_array({name: params or {}})
        errors.check(lib.kvf_agent_create_backend(self._handle, array))

    def _info(self, function: Any, name: str) -> BackendInfo:
        params, kinds = kvf_param_list(), c_uint32()
        errors.check(function(self._handle, _convert.text(name, "backend"), params, kinds))
        return BackendInfo(
            _convert.take_params(params), [MemKind(k) for k in _convert.kinds_of(kinds.value)]
        )

    # ------------------------------------------------------------------ memory

    def register(
        self,
        ranges: Any,
        kind: MemKind | str = MemKind.DRAM,
        *,
        metas: Sequence[bytes | str] | None = None,
        backends: Names = (),
    ) -> None:
        """Makes ranges available for transfers. All or none.

        Args:
            ranges: (address, length[, device]) tuples, or an N×3 array of 64-bit integers;
                :func:`kvferry.range_of` gives the tuple of a buffer.
            kind: Kind of memory of all ranges.
            metas: For each range what the backend wants to know (a path, an object key).
            backends: Backends to register with; none is all that serve the kind.
        """
        self._registration(lib.kvf_agent_register, ranges, kind, metas, backends)

    def deregister(
        self,
        ranges: Any,
        kind: MemKind | str = MemKind.DRAM,
        *,
        metas: Sequence[bytes | str] | None = None,
        backends: Names = (),
    ) -> None:
        """Takes registered ranges back; arguments as they were for :meth:`register`."""
        self._registration(lib.kvf_agent_deregister, ranges, kind, metas, backends)

    def _registration(self, function: Any, ranges: Any, kind: Any, metas: Any, backends: Names) -> None:
        table = _convert.registrations(ranges, "ranges", metas)
        names, count = _convert.names(backends, "backends")
        kind = _u32(member(MemKind, kind), "kind")
        errors.check(function(self._handle, kind, table.pointer, table.rows, names, count))

    def query_memory(
        self, ranges: Any, backend: str, kind: MemKind | str, *, metas: Sequence[bytes | str] | None = None
    ) -> list[dict[str, str] | None]:
        """What a backend knows about each range (the size of a file, say); None where nothing."""
        table = _convert.registrations(ranges, "ranges", metas)
        results = kvf_query_list()
        errors.check(
            lib.kvf_agent_query_memory(
                self._handle, _u32(member(MemKind, kind), "kind"), table.pointer, table.rows,
                _convert.text(backend, "backend"), results,
            )
        )
        try:
            return [
                _convert.params_dict(results.items[i].params) if results.items[i].found else None
                for i in range(results.len)
            ]
        finally:
            lib.kvf_query_list_free(results)

    # ------------------------------------------------------------------ metadata and peers

    def metadata(self) -> bytes:
        """All that a peer needs to reach this agent and the memory registered so far."""
        blob = kvf_buffer()
        errors.check(lib.kvf_agent_metadata(self._handle, blob))
        return _convert.take_buffer(blob)

    def partial_metadata(
        self,
        ranges: Any = (),
        kind: MemKind | str = MemKind.DRAM,
        *,
        connection_info: bool = False,
        backends: Names = (),
    ) -> bytes:
        """Metadata of some registered ranges only; peers add it to what they know."""
        table = _convert.registrations(ranges, "ranges")
        names, count = _convert.names(backends, "backends")
        blob = kvf_buffer()
        errors.check(
            lib.kvf_agent_partial_metadata(
                self._handle, _u32(member(MemKind, kind), "kind"), table.pointer, table.rows,
                bool(connection_info), names, count, blob,
            )
        )
        return _convert.take_buffer(blob)

    def add_remote(self, metadata: bytes) -> str:
        """Loads a peer's metadata and returns the peer's name."""
        name = kvf_buffer()
        errors.check(lib.kvf_agent_add_remote(self._handle, *_convert.payload(metadata, "metadata"), name))
        return _convert.take_buffer(name).decode("utf-8", "replace")

    def remove_remote(self, remote: str) -> None:
        """Forgets a peer and disconnects from it. Transfers with it fail."""
        errors.check(lib.kvf_agent_remove_remote(self._handle, _convert.text(remote, "remote")))

    def check_remote(self, remote: str, ranges: Any = (), kind: MemKind | str = MemKind.DRAM) -> bool:
        """Whether metadata of a peer is loaded and covers the ranges."""
        table = _flat(ranges, "ranges")
        ready = c_uint8()
        errors.check(
            lib.kvf_agent_check_remote(
                self._handle, _convert.text(remote, "remote"),
                _u32(member(MemKind, kind), "kind"), table.pointer, table.rows, ready,
            )
        )
        return bool(ready.value)

    def connect(self, remote: str, backends: Names = ()) -> None:
        """Connects to a peer now, so that the first transfer does not have to."""
        names, count = _convert.names(backends, "backends")
        errors.check(lib.kvf_agent_connect(self._handle, _convert.text(remote, "remote"), names, count))

    def send_metadata(self, host: str | None, port: int = 0) -> None:
        """``nixl``: sends the metadata to a peer's listener or, without host, the central store."""
        errors.check(
            lib.kvf_agent_send_metadata(self._handle, _convert.optional_text(host, "host"), _port(port))
        )

    def send_partial_metadata(
        self,
        host: str | None,
        port: int = 0,
        ranges: Any = (),
        kind: MemKind | str = MemKind.DRAM,
        *,
        connection_info: bool = False,
        backends: Names = (),
        label: str | None = None,
    ) -> None:
        """``nixl``: sends what :meth:`partial_metadata` makes. ``label`` names it in a store."""
        table = _convert.registrations(ranges, "ranges")
        names, count = _convert.names(backends, "backends")
        errors.check(
            lib.kvf_agent_send_partial_metadata(
                self._handle, _u32(member(MemKind, kind), "kind"), table.pointer, table.rows,
                bool(connection_info), names, count, _convert.optional_text(host, "host"),
                _port(port), _convert.optional_text(label, "label"),
            )
        )

    def fetch_metadata(self, remote: str, host: str | None, port: int = 0, label: str | None = None) -> None:
        """``nixl``: asks for a peer's metadata; :meth:`check_remote` says when it is there."""
        errors.check(
            lib.kvf_agent_fetch_metadata(
                self._handle, _convert.text(remote, "remote"), _convert.optional_text(host, "host"),
                _port(port), _convert.optional_text(label, "label"),
            )
        )

    def invalidate_metadata(self, host: str | None, port: int = 0) -> None:
        """``nixl``: tells a peer's listener, or the store, that this agent's metadata is void."""
        errors.check(
            lib.kvf_agent_invalidate_metadata(
                self._handle, _convert.optional_text(host, "host"), _port(port)
            )
        )

    # ------------------------------------------------------------------ notifications

    def notify(self, remote: str, payload: bytes | str, backend: str | None = None) -> None:
        """Sends a message to a peer, not bound to a transfer."""
        errors.check(
            lib.kvf_agent_notify(
                self._handle, _convert.text(remote, "remote"), *_convert.payload(payload, "payload"),
                _convert.optional_text(backend, "backend"),
            )
        )

    def notifications(self, backends: Names = ()) -> list[Notification]:
        """Takes all messages that have arrived, in order per sender. Never blocks."""
        names, count = _convert.names(backends, "backends")
        arrived = kvf_notification_list()
        errors.check(lib.kvf_agent_notifications(self._handle, names, count, arrived))
        return take_notifications(arrived)

    def notification_count(self) -> int:
        """How many messages wait to be taken. Never blocks; cheaper than :meth:`notifications`."""
        count = c_size_t()
        errors.check(lib.kvf_agent_notification_count(self._handle, count))
        return count.value

    def wait_notification(
        self, sender: str | None = None, prefix: bytes | str = b"", timeout: float | None = 5.0
    ) -> Notification:
        """Takes the first message from ``sender`` (None: anybody) that begins with ``prefix``.

        Waits for it for ``timeout`` seconds (None: for ever); all others stay for later calls.

        Raises:
            TimeoutError: there is none in time.
        """
        limit = _convert.milliseconds(timeout, "timeout")
        end = None if timeout is None else time.monotonic() + timeout
        sender_text = _convert.optional_text(sender, "sender")
        prefix_bytes, prefix_len = _convert.payload(prefix, "prefix")
        arrived = kvf_notification_list()
        while True:
            # In slices, so that Ctrl-C is noticed.
            status = lib.kvf_agent_wait_notification(
                self._handle, sender_text, prefix_bytes, prefix_len, min(limit, 100), arrived
            )
            if status == errors.TimeoutError.status:
                limit = 100 if end is None else _convert.milliseconds(max(end - time.monotonic(), 0), "")
                if limit:
                    continue
                raise errors.TimeoutError(
                    f"no notification from {sender or 'anybody'} within {timeout} s", status
                )
            errors.check(status)
            return take_notifications(arrived)[0]

    # ------------------------------------------------------------------ transfers

    def prepare(
        self,
        ranges: Any,
        remote: str | None = None,
        kind: MemKind | str = MemKind.DRAM,
        *,
        backends: Names = (),
    ) -> DescList:
        """Prepares ranges to be picked from by index. Do it once for memory used many times.

        Args:
            ranges: (address, length[, device]) tuples or an N×3 array, or strided:
                (address, length, device, stride, count) tuples or an N×5 array.
            remote: Whose memory: None for this agent's own as the local side; a remote agent's
                name; or this agent's own name for the remote side of transfers within it.
        """
        table = _convert.table(ranges, "ranges")
        function = lib.kvf_desc_list_prepare_strided if table.columns == 5 else lib.kvf_desc_list_prepare
        names, count = _convert.names(backends, "backends")
        handle = c_uint64()
        errors.check(
            function(
                self._handle, _convert.optional_text(remote, "remote"),
                _u32(member(MemKind, kind), "kind"), table.pointer, table.rows, names, count, handle,
            )
        )
        return DescList(self, handle.value)

    def make_transfer(
        self,
        op: Op | str,
        local: DescList,
        local_indices: Any,
        remote: DescList,
        remote_indices: Any,
        *,
        notification: bytes | str = b"",
        backends: Names = (),
        skip_merge: bool = False,
    ) -> Transfer:
        """A transfer of ``local[local_indices[i]]`` and ``remote[remote_indices[i]]`` for every i.

        Indices are int32 numpy arrays (taken where they lie), ``array('i')`` or sequences of int.
        Nothing moves before :meth:`Transfer.post`.
        """
        left, left_count, keep_left = _convert.indices(local_indices, "local_indices")
        right, right_count, keep_right = _convert.indices(remote_indices, "remote_indices")
        options = TransferOptions(notification, backends, skip_merge)
        handle = c_uint64()
        errors.check(
            lib.kvf_transfer_make(
                self._handle, _u32(member(Op, op), "op"), local.handle, left, left_count,
                remote.handle, right, right_count, options.struct, handle,
            )
        )
        del keep_left, keep_right
        return Transfer(self, handle.value)

    def create_transfer(
        self,
        op: Op | str,
        local: Any,
        remote: Any,
        remote_agent: str,
        *,
        local_kind: MemKind | str = MemKind.DRAM,
        remote_kind: MemKind | str = MemKind.DRAM,
        notification: bytes | str = b"",
        backends: Names = (),
        skip_merge: bool = False,
    ) -> Transfer:
        """A transfer of the i-th range of ``local`` and the i-th of ``remote``, in one go.

        For memory that many transfers use, :meth:`prepare` and :meth:`make_transfer` are faster.
        """
        left, right = _flat(local, "local"), _flat(remote, "remote")
        options = TransferOptions(notification, backends, skip_merge)
        handle = c_uint64()
        errors.check(
            lib.kvf_transfer_create(
                self._handle, _u32(member(Op, op), "op"),
                _u32(member(MemKind, local_kind), "local_kind"), left.pointer, left.rows,
                _u32(member(MemKind, remote_kind), "remote_kind"), right.pointer, right.rows,
                _convert.text(remote_agent, "remote_agent"), options.struct, handle,
            )
        )
        return Transfer(self, handle.value)


def take_notifications(arrived: kvf_notification_list) -> list[Notification]:
    """Copies and frees."""
    if not arrived.len:
        return []
    try:
        items = (arrived.items[i] for i in range(arrived.len))
        return [
            Notification(
                getattr(n, "from").decode("utf-8", "replace"),
                string_at(n.payload, n.payload_len) if n.payload_len else b"",
            )
            for n in items
        ]
    finally:
        lib.kvf_notification_list_free(byref(arrived))


def _flat(ranges: Any, what: str) -> _convert.Table:
    table = _convert.table(ranges, what)
    if table.columns != 3:
        raise errors.InvalidArgumentError(f"{what} has {table.columns} columns; it must have 3")
    return table


def _backend_array(backends: Any) -> Any:
    if isinstance(backends, str):
        raise TypeError("backends must be a sequence of names, not one name")
    entries = backends if isinstance(backends, Mapping) else {name: {} for name in backends}
    array = (kvf_backend * len(entries))()
    for slot, (name, params) in zip(array, entries.items()):
        slot.name = _convert.text(name, "backend")
        made, slot.params_len = _convert.params_array(dict(params))
        if made is not None:
            slot.params = made
    return array


def _u32(value: int, what: str) -> int:
    if not 0 <= value < 2**32:
        raise errors.InvalidArgumentError(f"{what} is {value}; it must be 0 to 2**32-1")
    return value


def _port(value: int) -> int:
    if not 0 <= value < 2**16:
        raise errors.InvalidArgumentError(f"port {value} is not one of 0 to 65535")
    return value
