"""``nixl._bindings`` over kvferry: the classes, functions and constants under NIXL's own names.

Handles of backends, prepared lists and transfers are integers, as with NIXL; here they are handles
of kvferry, so that a stale one raises instead of crashing.
"""

from __future__ import annotations

import datetime
import os
import weakref
from collections.abc import Iterable
from ctypes import (
    byref,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    sizeof,
    string_at,
)
from typing import Any

from .. import _convert, errors
from .._ffi import (
    kvf_agent_options,
    kvf_backend,
    kvf_buffer,
    kvf_notification_list,
    kvf_param_list,
    kvf_query_list,
    kvf_string_list,
    kvf_transfer_cost,
    kvf_transfer_options,
    kvf_transfer_telemetry,
    lib,
)
from . import _calls
from ._descs import check_array, nixlRegDList, nixlRemoteDList, nixlXferDList
from ._enums import nixl_cost_t, nixl_mem_t, nixl_status_t, nixl_thread_sync_t, nixl_xfer_op_t
from ._errors import (
    check,
    failure,
    from_status,
    nixlBackendError,
    nixlCancelledError,
    nixlInvalidParamError,
    nixlMismatchError,
    nixlNotAllowedError,
    nixlNotFoundError,
    nixlNotPostedError,
    nixlNotSupportedError,
    nixlNoTelemetryError,
    nixlRemoteDisconnectError,
    nixlRepostActiveError,
    nixlUnknownError,
)

__all__ = [
    "nixlBackendError",
    "nixlCancelledError",
    "nixlNotAllowedError",
    "nixlNotPostedError",
    "nixlNoTelemetryError",
    "nixlRemoteDisconnectError",
    "nixlRepostActiveError",
    "nixlRemoteDList",
    "nixlUnknownError",
]

#: The agent name that stands for "this agent, as the initiator".
NIXL_INIT_AGENT = ""
DEFAULT_COMM_PORT = 8888
#: Memory views for GPU kernels are not offered.
HAVE_UCX_GPU_DEVICE_API = False

for _enum in (nixl_thread_sync_t, nixl_mem_t, nixl_xfer_op_t, nixl_cost_t, nixl_status_t):
    globals().update(_enum.__members__)
    __all__ += _enum.__members__
# For readers and type checkers; the loop above has set them.
DRAM_SEG = nixl_mem_t.DRAM_SEG
NIXL_SUCCESS = nixl_status_t.NIXL_SUCCESS
NIXL_IN_PROG = nixl_status_t.NIXL_IN_PROG
NIXL_ERR_NOT_FOUND = nixl_status_t.NIXL_ERR_NOT_FOUND

#: NIXL says "invalid parameter" where two sides of a transfer do not fit.
_SIDES_DIFFER = {errors.MismatchError.status: nixlInvalidParamError}

#: NIXL says "invalid parameter" when it has no central store to turn to.
_NO_STORE = {errors.NotSupportedError.status: nixlInvalidParamError}

#: NIXL's synchronisation modes as ours.
_SYNC = {
    nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE: 1,
    nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT: 2,
    nixl_thread_sync_t.NIXL_THREAD_SYNC_RW: 3,
}
#: NIXL's kinds of memory have the numbers of ours.
_KIND_NAMES = {kind.value: kind.name for kind in nixl_mem_t}


class nixlAgentConfig:
    """What an agent is made with. ``lthrDelay`` and ``etcdWatchTimeout`` are kept and not used."""

    __slots__ = (
        "useProgThread",
        "useListenThread",
        "_listenPort",
        "_syncMode",
        "captureTelemetry",
        "pthrDelay",
        "lthrDelay",
        "etcdWatchTimeout",
    )

    def __init__(
        self,
        use_prog_thread: bool = False,
        use_listen_thread: bool = False,
        port: int = DEFAULT_COMM_PORT,
        sync_mode: nixl_thread_sync_t = nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT,
        num_workers: int = 1,
        pthr_delay_us: int = 0,
        lthr_delay_us: int = 100000,
        capture_telemetry: bool = False,
    ):
        self.useProgThread = use_prog_thread
        self.useListenThread = use_listen_thread
        self.listenPort = port
        self.syncMode = sync_mode
        self.pthrDelay = pthr_delay_us
        self.lthrDelay = lthr_delay_us
        self.captureTelemetry = capture_telemetry
        self.etcdWatchTimeout = datetime.timedelta(seconds=5)

    @property
    def listenPort(self) -> int:
        """Port of the metadata listener."""
        return self._listenPort

    @listenPort.setter
    def listenPort(self, value: int) -> None:
        if not isinstance(value, int):
            raise TypeError(f"listenPort is an integer, not {value!r}")
        self._listenPort = value

    @property
    def syncMode(self) -> nixl_thread_sync_t:
        """How calls from several threads are serialised."""
        return self._syncMode

    @syncMode.setter
    def syncMode(self, value: nixl_thread_sync_t) -> None:
        if not isinstance(value, nixl_thread_sync_t):
            raise TypeError(f"syncMode is a nixl_thread_sync_t, not {value!r}")
        self._syncMode = value


class nixlXferTelemetry:
    """Figures of a transfer; times in microseconds."""

    __slots__ = ("_figures",)

    def __init__(self) -> None:
        self._figures = kvf_transfer_telemetry()

    @property
    def startTime(self) -> int:
        """When it was posted."""
        return self._figures.start_time_us

    @property
    def postDuration(self) -> int:
        """Time spent inside post."""
        return self._figures.post_duration_us

    @property
    def xferDuration(self) -> int:
        """From post to completion."""
        return self._figures.transfer_duration_us

    @property
    def totalBytes(self) -> int:
        """Bytes moved."""
        return self._figures.total_bytes

    @property
    def descCount(self) -> int:
        """Descriptors, after merging."""
        return self._figures.descriptors


def _progress(config: nixlAgentConfig) -> int:
    """NIXL's progress thread never sleeps; ours does, unless the environment asks for theirs."""
    if not config.useProgThread:
        return 1  # KVF_PROGRESS_CALLER
    wanted = os.environ.get("KVF_NIXL_PROGRESS", "thread")
    try:
        return {"thread": 0, "spin": 2}[wanted]
    except KeyError:
        raise ValueError(f"KVF_NIXL_PROGRESS is {wanted!r}; it is 'thread' or 'spin'") from None


def _destroy(handle: int, pid: int) -> None:
    # A child of fork() has a copy of the Python object, but none of the threads.
    if os.getpid() == pid:
        lib.kvf_agent_destroy(handle)


class nixlAgent:
    """An agent over kvferry's transport ``nixl``.

    Args:
        name: Its name; not empty.
        config: A :class:`nixlAgentConfig`.
    """

    __slots__ = (
        "_name",
        "_handle",
        "_argument",
        "_backends",
        "_leaked",
        "_finalizer",
        "__weakref__",
    )

    def __init__(self, name: str, config: nixlAgentConfig):
        if not isinstance(config, nixlAgentConfig):
            raise TypeError(f"config is a nixlAgentConfig, not {config!r}")
        if not name:
            raise ValueError("the agent name is empty")
        listen = bool(config.useListenThread)
        if listen and not 0 <= config.listenPort < 65536:
            raise ValueError(f"listenPort {config.listenPort} is not one of 0 to 65535")
        self._name = _text(name)
        options = kvf_agent_options(
            sizeof(kvf_agent_options),
            progress=_progress(config),
            name=self._name,
            transport=b"nixl",
            progress_delay_us=config.pthrDelay,
            sync_mode=_SYNC[config.syncMode],
            listen_port=config.listenPort if listen else 0,
            listen=listen,
            telemetry=bool(config.captureTelemetry),
            no_default_backend=1,
        )
        handle = c_uint64()
        check(lib.kvf_agent_create(options, handle))
        self._handle = handle.value
        self._argument = handle
        self._backends: dict[int, bytes] = {}
        self._leaked: list[int] = []
        self._finalizer = weakref.finalize(self, _destroy, self._handle, os.getpid())

    # ------------------------------------------------------------------ backends

    def getAvailPlugins(self) -> list[str]:
        """Names of the plugins that could become backends."""
        names = kvf_string_list()
        check(lib.kvf_agent_plugins(self._handle, names))
        return _convert.take_strings(names)

    def getPluginParams(self, type: str) -> tuple[dict[str, str], list[str]]:
        """Parameters and kinds of memory of a plugin."""
        return self._info(lib.kvf_agent_plugin_info, _text(type))

    def getBackendParams(self, backend: int) -> tuple[dict[str, str], list[str]]:
        """Parameters and kinds of memory of a backend."""
        return self._info(lib.kvf_agent_backend_info, self._backend(backend))

    def createBackend(self, type: str, initParams: dict[str, str]) -> int:
        """Makes a backend and returns its handle."""
        name = _text(type)
        slot = kvf_backend(name)
        params, slot.params_len = _convert.params_array(initParams)
        if params is not None:
            slot.params = params
        # NIXL has one code for a second backend of a name and for parameters that make no sense.
        check(
            lib.kvf_agent_create_backend(self._handle, slot),
            {errors.NotAllowedError.status: nixlInvalidParamError},
        )
        handle = len(self._backends) + 1
        self._backends[handle] = name
        return handle

    def _info(self, function: Any, name: bytes) -> tuple[dict[str, str], list[str]]:
        params, kinds = kvf_param_list(), c_uint32()
        check(function(self._handle, name, params, kinds))
        names = [_KIND_NAMES[kind] for kind in _convert.kinds_of(kinds.value) if kind in _KIND_NAMES]
        return _convert.take_params(params), names

    def _backend(self, handle: int) -> bytes:
        try:
            return self._backends[handle]
        except KeyError:
            raise failure(nixlInvalidParamError, f"there is no backend {handle!r}") from None

    def _names(self, handles: Iterable[int]) -> tuple[Any, int]:
        if not handles:
            if handles is None or isinstance(handles, int):
                raise TypeError(f"backends is a list of handles, not {handles!r}")
            return None, 0
        if isinstance(handles, (str, bytes, int)) or not all(isinstance(h, int) for h in handles):
            raise TypeError(f"backends is a list of handles, not {handles!r}")
        names = [self._backend(handle) for handle in handles]
        return (c_char_p * len(names))(*names), len(names)

    # ------------------------------------------------------------------ memory

    def registerMem(self, descs: nixlRegDList, backends: Iterable[int] = ()) -> nixl_status_t:
        """Registers ranges. NIXL answers an empty list with a backend error, and so does this."""
        names, count = self._names(backends)
        table, kind = _registration(descs)
        if not table.rows:
            raise failure(nixlBackendError, "the list of ranges to register is empty")
        check(lib.kvf_agent_register(self._handle, kind, table.pointer, table.rows, names, count))
        return NIXL_SUCCESS

    def deregisterMem(self, descs: nixlRegDList, backends: Iterable[int] = ()) -> nixl_status_t:
        """Takes registered ranges back; an empty list is nothing to do."""
        names, count = self._names(backends)
        table, kind = _registration(descs)
        if table.rows:
            check(
                lib.kvf_agent_deregister(
                    self._handle, kind, table.pointer, table.rows, names, count
                )
            )
        return NIXL_SUCCESS

    def queryMem(self, descs: nixlRegDList, backend: int) -> list[dict[str, str] | None]:
        """What a backend knows about each range."""
        table, kind = _registration(descs)
        name = self._backend(backend)
        if not table.rows:
            return []
        results = kvf_query_list()
        check(
            lib.kvf_agent_query_memory(
                self._handle, kind, table.pointer, table.rows, name, results
            )
        )
        try:
            return [
                _convert.params_dict(results.items[i].params) if results.items[i].found else None
                for i in range(results.len)
            ]
        finally:
            lib.kvf_query_list_free(results)

    # ------------------------------------------------------------------ transfers

    def prepXferDlist(self, *args: Any, **kwargs: Any) -> int:
        """Prepares ranges: ``(agent_name, descs, backend=[])``, ``(descs, backend=[])`` for this
        agent's own, or ``(agent_name, type, N×5 array, backend=[])``."""
        if "type" in kwargs or (len(args) > 1 and isinstance(args[1], nixl_mem_t)):
            form = "agent_name", "type", "descs", "backend"
        elif "agent_name" in kwargs or (args and isinstance(args[0], (str, bytes))):
            form = "agent_name", "descs", "backend"
        else:
            form = "descs", "backend"
        given = dict(zip(form, args), **kwargs)
        if len(args) > len(form) or not given.keys() <= set(form) or "descs" not in given:
            raise TypeError(f"prepXferDlist takes {', '.join(form)}")
        descs = given["descs"]
        if "type" in given:
            kind, table = given["type"].value, _strided(descs)
        else:
            table = _flat(descs)
            kind = descs._kind.value
        return self._prepare(
            given.get("agent_name", NIXL_INIT_AGENT), kind, table, given.get("backend", ())
        ).value

    def _prepare(self, agent_name: Any, kind: int, table: _convert.Table, backends: Any) -> c_uint64:
        names, count = self._names(backends)
        function = (
            lib.kvf_desc_list_prepare_strided if table.columns == 5 else lib.kvf_desc_list_prepare
        )
        if not table.rows:
            raise failure(nixlNotFoundError, "no backend can prepare an empty list")
        handle = c_uint64()
        status = function(
            self._handle, _text(agent_name) or None, kind, table.pointer, table.rows, names, count, handle
        )
        # NIXL finds no backend for ranges that cannot be.
        check(status, {errors.InvalidArgumentError.status: nixlNotFoundError})
        return handle

    def releasedDlistH(self, handle: int) -> nixl_status_t:
        """Ends a prepared list."""
        check(lib.kvf_desc_list_release(handle))
        return NIXL_SUCCESS

    def makeXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_side: int,
        local_indices: Any,
        remote_side: int,
        remote_indices: Any,
        notif_msg: bytes | str = b"",
        backend: Iterable[int] = (),
        skip_desc_merg: bool = False,
    ) -> int:
        """Makes a transfer between ranges picked from two prepared lists."""
        if not isinstance(operation, nixl_xfer_op_t):
            raise TypeError(f"operation is a nixl_xfer_op_t, not {operation!r}")
        return self._make(
            operation.value, c_uint64(local_side), local_indices, c_uint64(remote_side),
            remote_indices, notif_msg, backend, skip_desc_merg,
        ).value

    def _make(
        self, op: int, local: c_uint64, local_indices: Any, remote: c_uint64, remote_indices: Any,
        notif_msg: Any, backends: Any, skip_merge: bool,
    ) -> c_uint64:
        left, left_count, keep_left = _calls.indices(local_indices)
        right, right_count, keep_right = _calls.indices(remote_indices)
        options = None
        if notif_msg or backends or skip_merge or type(notif_msg) is not bytes:
            options = self._options(notif_msg, backends, skip_merge)
        handle = c_uint64()
        status = _calls.make(
            self._argument, op, local, left, left_count, remote, right, right_count, options,
            byref(handle),
        )
        if status:
            raise from_status(status, _SIDES_DIFFER)
        return handle

    def createXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: str,
        notif_msg: bytes | str = b"",
        backend: Iterable[int] = (),
    ) -> int:
        """Makes a transfer of the i-th range of one list and the i-th of the other."""
        if not isinstance(operation, nixl_xfer_op_t):
            raise TypeError(f"operation is a nixl_xfer_op_t, not {operation!r}")
        return self._create(
            operation.value, local_descs, remote_descs, remote_agent, notif_msg, backend
        ).value

    def _create(
        self, op: int, local: Any, remote: Any, remote_agent: Any, notif_msg: Any, backends: Any
    ) -> c_uint64:
        left, right = _xfer_numbers(local), _xfer_numbers(remote)
        options = self._options(notif_msg, backends, False)
        if not left and not right:
            raise failure(nixlNotFoundError, "no backend can transfer an empty list")
        handle = c_uint64()
        status = lib.kvf_transfer_create(
            self._handle, op,
            local._kind.value, left.buffer_info()[0], len(left) // 3,
            remote._kind.value, right.buffer_info()[0], len(right) // 3,
            _text(remote_agent), options, handle,
        )
        if status:
            raise from_status(status, _SIDES_DIFFER)
        return handle

    def _options(self, notif_msg: Any, backends: Any, skip_merge: bool) -> Any:
        names, count = self._names(backends)
        message = _message(notif_msg)
        if not message and not count and not skip_merge:
            return None
        # The struct keeps the message and the names alive, and byref() the struct.
        return byref(
            kvf_transfer_options(
                _OPTIONS_SIZE, bool(skip_merge), 0, _NO_BYTES, message or None, len(message), names, count
            )
        )

    def estimateXferCost(self, req_handle: int) -> tuple[int, int, int]:
        """Duration and error margin in microseconds, and how they were arrived at."""
        cost = kvf_transfer_cost()
        check(lib.kvf_transfer_cost_estimate(req_handle, cost))
        return cost.duration_us, cost.error_margin_us, cost.method

    def postXferReq(self, reqh: int, notif_msg: bytes | str = b"") -> nixl_status_t:
        """Starts a transfer; NIXL_SUCCESS if it is done, NIXL_IN_PROG if under way."""
        state = self._post(c_uint64(reqh), notif_msg)
        return NIXL_IN_PROG if state else NIXL_SUCCESS

    def _post(self, transfer: c_uint64, notif_msg: Any) -> int:
        state = c_int32()
        if notif_msg or type(notif_msg) is not bytes:
            message = _message(notif_msg)
            status = _calls.post(transfer, message or None, c_size_t(len(message)), byref(state))
        else:
            status = _calls.post(transfer, None, _ZERO, byref(state))
        if status:
            raise from_status(status)
        return state.value

    def getXferStatus(self, reqh: int) -> nixl_status_t:
        """Where a transfer stands."""
        return NIXL_IN_PROG if self._state(c_uint64(reqh)) else NIXL_SUCCESS

    def _state(self, transfer: c_uint64) -> int:
        state = c_int32()
        status = _calls.state(transfer, byref(state))
        if status:
            raise from_status(status)
        return state.value

    def getXferTelemetry(self, reqh: int) -> nixlXferTelemetry:
        """Figures of a transfer's last post."""
        telemetry = nixlXferTelemetry()
        check(lib.kvf_transfer_telemetry_get(reqh, telemetry._figures))
        return telemetry

    def queryXferBackend(self, reqh: int) -> int:
        """Handle of the backend that carries a transfer."""
        found = kvf_buffer()
        check(lib.kvf_transfer_backend(reqh, found))
        name = _convert.take_buffer(found)
        for handle, known in self._backends.items():
            if known == name:
                return handle
        raise failure(nixlNotFoundError, f"backend {name.decode()} was not created by this agent")

    def releaseXferReq(self, reqh: int) -> nixl_status_t:
        """Ends a transfer; one that is under way is stopped, if that can be done at once."""
        self._release(c_uint64(reqh))
        return NIXL_SUCCESS

    def _release(self, transfer: c_uint64) -> None:
        if self._leaked:
            self._release_leaked()
        status = _calls.release(transfer)
        if status:
            raise from_status(status)

    def _release_leaked(self) -> None:
        """Tries once more to end transfers that were under way when they were collected."""
        waiting, self._leaked = self._leaked, []
        for handle in waiting:
            if lib.kvf_transfer_release(handle) == errors.BusyError.status:
                self._leaked.append(handle)

    # ------------------------------------------------------------------ notifications

    def getNotifs(
        self, notif_map: dict[str, list[bytes]], backends: Iterable[int] = ()
    ) -> dict[str, list[bytes]]:
        """``notif_map`` with the messages that have arrived added to it, as another dictionary."""
        if type(notif_map) is not dict:
            raise TypeError(f"notif_map is a dictionary, not {notif_map!r}")
        names, count = self._names(backends) if backends else (None, 0)
        arrived = kvf_notification_list()
        status = _calls.notifications(self._argument, names, c_size_t(count) if count else _ZERO, byref(arrived))
        if status:
            raise from_status(status)
        if notif_map:
            notif_map = {sender: list(_check_messages(known)) for sender, known in notif_map.items()}
        if arrived.len:
            _add_notifications(notif_map, arrived)
        return notif_map

    def genNotif(
        self, remote_agent: str, msg: bytes | str, backends: Iterable[int] = ()
    ) -> nixl_status_t:
        """Sends a message to an agent."""
        names, count = self._names(backends)
        message, remote = _message(msg), _text(remote_agent)
        if count > 1:
            raise failure(nixlInvalidParamError, f"a message goes by one backend, not by {count}")
        check(
            lib.kvf_agent_notify(
                self._handle, remote, message, len(message), names[0] if count else None
            )
        )
        return NIXL_SUCCESS

    # ------------------------------------------------------------------ metadata and peers

    def getLocalMD(self) -> bytes:
        """All that a peer needs to reach this agent."""
        blob = kvf_buffer()
        check(lib.kvf_agent_metadata(self._handle, blob))
        return _convert.take_buffer(blob)

    def getLocalPartialMD(
        self, descs: nixlRegDList, inc_conn_info: bool = False, backends: Iterable[int] = ()
    ) -> bytes:
        """Metadata of some ranges only."""
        table, kind = _registration(descs)
        names, count = self._names(backends)
        blob = kvf_buffer()
        check(
            lib.kvf_agent_partial_metadata(
                self._handle, kind, table.pointer, table.rows, bool(inc_conn_info), names, count, blob
            )
        )
        return _convert.take_buffer(blob)

    def loadRemoteMD(self, remote_metadata: bytes) -> bytes:
        """Loads a peer's metadata and returns its name, as bytes."""
        metadata = _message(remote_metadata)
        if not metadata:
            raise failure(nixlMismatchError, "the metadata is empty")
        name = kvf_buffer()
        check(lib.kvf_agent_add_remote(self._handle, metadata, len(metadata), name))
        return _convert.take_buffer(name)

    def invalidateRemoteMD(self, remote_agent: str) -> nixl_status_t:
        """Forgets a peer. NIXL returns the status of this one instead of raising."""
        status = lib.kvf_agent_remove_remote(self._handle, _text(remote_agent))
        if status in (0, errors.NotFoundError.status):
            return NIXL_ERR_NOT_FOUND if status else NIXL_SUCCESS
        if status == errors.InvalidArgumentError.status:
            return nixl_status_t.NIXL_ERR_INVALID_PARAM
        raise from_status(status)

    def checkRemoteMD(self, remote_agent: str, descs: nixlXferDList) -> nixl_status_t:
        """NIXL_SUCCESS if metadata of a peer is loaded and covers the ranges.

        An agent is not a peer of itself to NIXL.
        """
        table, remote, ready = _flat(descs), _text(remote_agent), c_uint8()
        if remote == self._name:
            return NIXL_ERR_NOT_FOUND
        check(
            lib.kvf_agent_check_remote(
                self._handle, remote, descs._kind.value, table.pointer, table.rows, ready
            )
        )
        return NIXL_SUCCESS if ready.value else NIXL_ERR_NOT_FOUND

    def makeConnection(self, remote_agent: str, backends: Iterable[int]) -> nixl_status_t:
        """Connects to a peer now."""
        names, count = self._names(backends)
        check(lib.kvf_agent_connect(self._handle, _text(remote_agent), names, count))
        return NIXL_SUCCESS

    def sendLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """Sends the metadata to a peer's listener or the central store."""
        check(
            lib.kvf_agent_send_metadata(self._handle, _text(ip_addr) or None, _port(port)), _NO_STORE
        )

    def sendLocalPartialMD(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Iterable[int] = (),
        ip_addr: str = "",
        port: int = 0,
        label: str = "",
    ) -> None:
        """Sends metadata of some ranges only."""
        table, kind = _registration(descs)
        names, count = self._names(backends)
        check(
            lib.kvf_agent_send_partial_metadata(
                self._handle, kind, table.pointer, table.rows, bool(inc_conn_info), names, count,
                _text(ip_addr) or None, _port(port), _text(label) or None,
            ),
            _NO_STORE,
        )

    def fetchRemoteMD(
        self, remote_agent: str, ip_addr: str = "", port: int = 0, label: str = ""
    ) -> None:
        """Asks for a peer's metadata."""
        check(
            lib.kvf_agent_fetch_metadata(
                self._handle, _text(remote_agent), _text(ip_addr) or None, _port(port),
                _text(label) or None,
            ),
            _NO_STORE,
        )

    def invalidateLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """Tells a peer's listener or the central store that this agent's metadata is void."""
        check(
            lib.kvf_agent_invalidate_metadata(self._handle, _text(ip_addr) or None, _port(port)),
            _NO_STORE,
        )

    # ------------------------------------------------------------------ not offered

    def prepMemView(self, dlist: nixlXferDList | nixlRemoteDList, backends: Iterable[int] = ()) -> int:
        """Memory views for GPU kernels are not offered.

        Raises:
            nixlNotSupportedError: always.
        """
        raise failure(nixlNotSupportedError, _NO_VIEWS, errors.NotSupportedError.status)

    def releaseMemView(self, mvh: int) -> None:
        """As :meth:`prepMemView`."""
        raise failure(nixlNotSupportedError, _NO_VIEWS, errors.NotSupportedError.status)


_NO_VIEWS = (
    "memory views (NIXL's GPU device API) are not offered by kvferry; "
    "HAVE_UCX_GPU_DEVICE_API is False"
)
_OPTIONS_SIZE = sizeof(kvf_transfer_options)
_NO_BYTES = (c_uint8 * 2)()
_ZERO = c_size_t(0)


def _text(value: Any) -> bytes:
    """A name, as what C++ would take as a string."""
    if not isinstance(value, (str, bytes, bytearray)):
        raise TypeError(f"a name is str or bytes, not {value!r}")
    encoded = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    if b"\0" in encoded:
        raise failure(nixlInvalidParamError, f"the name {value!r} contains a NUL")
    return encoded


def _message(value: Any) -> bytes:
    """Bytes to send; text as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytearray):
        return bytes(value)
    raise TypeError(f"a message is bytes or str, not {value!r}")


def _port(value: int) -> int:
    if not 0 <= value < 65536:
        raise failure(nixlInvalidParamError, f"port {value} is not one of 0 to 65535")
    return value


def _registration(descs: Any) -> tuple[_convert.Table, int]:
    if not isinstance(descs, nixlRegDList):
        raise TypeError(f"descs is a nixlRegDList, not {descs!r}")
    return _convert.reg_descs(descs._numbers, descs._extras), descs._kind.value


def _xfer_numbers(descs: Any) -> Any:
    if not isinstance(descs, nixlXferDList):
        raise TypeError(f"descs is a nixlXferDList, not {descs!r}")
    return descs._numbers


def _flat(descs: Any) -> _convert.Table:
    numbers = _xfer_numbers(descs)
    return _convert.Table(numbers.buffer_info()[0], len(numbers) // 3, 3, numbers)


def _strided(descs: Any) -> _convert.Table:
    if not _convert.is_ndarray(descs):
        raise TypeError(f"strided descs are an N×5 numpy array, not {descs!r}")
    if descs.ndim != 2 or descs.shape[1] != 5:
        raise ValueError("strided descs must be a Nx5 numpy array")
    check_array(descs)
    return _convert.Table(_convert.address(descs) if len(descs) else None, len(descs), 5, descs)


def _check_messages(messages: Any) -> list[bytes]:
    if not isinstance(messages, list) or not all(isinstance(m, bytes) for m in messages):
        raise TypeError(f"the messages of a sender are a list of bytes, not {messages!r}")
    return messages


def _add_notifications(notif_map: dict[str, list[bytes]], arrived: kvf_notification_list) -> None:
    try:
        for i in range(arrived.len):
            n = arrived.items[i]
            sender = getattr(n, "from").decode("utf-8", "surrogateescape")
            message = string_at(n.payload, n.payload_len) if n.payload_len else b""
            notif_map.setdefault(sender, []).append(message)
    finally:
        lib.kvf_notification_list_free(arrived)
