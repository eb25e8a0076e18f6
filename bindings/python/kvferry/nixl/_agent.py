"""``nixlAgent``: NIXL's agent class, over kvferry's transport ``nixl``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ctypes import byref, c_char_p, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, sizeof
from typing import Any

from .. import _convert, _lifetime, errors
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
    lib,
)
from . import _calls
from ._config import nixlAgentConfig, nixlXferTelemetry
from ._descs import nixlRegDList, nixlRemoteDList, nixlXferDList
from ._enums import nixl_mem_t, nixl_status_t, nixl_thread_sync_t, nixl_xfer_op_t
from ._errors import (
    check,
    failure,
    from_status,
    nixlBackendError,
    nixlInvalidParamError,
    nixlMismatchError,
    nixlNotFoundError,
    nixlNotSupportedError,
)
from ._inputs import (
    flat_table,
    message,
    messages,
    port_number,
    registration,
    strided_table,
    take_notifications,
    text,
)
from .logging import get_logger

logger = get_logger(__name__)

#: The agent name that stands for "this agent, as the initiator".
NIXL_INIT_AGENT = ""

_SUCCESS = nixl_status_t.NIXL_SUCCESS
_IN_PROG = nixl_status_t.NIXL_IN_PROG
_NOT_FOUND = nixl_status_t.NIXL_ERR_NOT_FOUND

#: NIXL says "invalid parameter" where two sides of a transfer do not fit.
SIDES_DIFFER = {errors.MismatchError.status: nixlInvalidParamError}
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

_OPTIONS_SIZE = sizeof(kvf_transfer_options)
_NO_BYTES = (c_uint8 * 2)()


_NO_VIEWS = (
    "memory views (NIXL's GPU device API) are not offered by kvferry; "
    "HAVE_UCX_GPU_DEVICE_API is False"
)


def _progress(config: nixlAgentConfig) -> int:
    """NIXL's progress thread never sleeps; ours does, unless the environment asks for theirs."""
    if not config.useProgThread:
        return 1  # KVF_PROGRESS_CALLER
    wanted = os.environ.get("KVF_NIXL_PROGRESS", "thread")
    try:
        return {"thread": 0, "spin": 2}[wanted]
    except KeyError:
        raise ValueError(f"KVF_NIXL_PROGRESS is {wanted!r}; it is 'thread' or 'spin'") from None


class nixlAgent:
    """An agent over kvferry's transport ``nixl``.

    Args:
        name: Its name; not empty.
        config: A :class:`nixlAgentConfig`.
    """

    __slots__ = (
        "_name",
        "_handle",
        "argument",
        "waiting",
        "waiting_ref",
        "_backends",
        "leaked",
        "_finalizer",
        "made_in",
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
        self._name = text(name)
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
        # The handle as the calls of the hot path take it, and where they leave a number of messages.
        # Threads may write there at once: whoever reads another's number looks once too often, or
        # finds the messages the next time.
        self.argument = handle
        self.waiting = c_size_t()
        self.waiting_ref = byref(self.waiting)
        self._backends: dict[int, bytes] = {}
        self.leaked: list[int] = []
        self.made_in = _lifetime.generation()
        self._finalizer = _lifetime.ends_with(self, lib.kvf_agent_destroy, self._handle)

    # ------------------------------------------------------------------ backends

    def getAvailPlugins(self) -> list[str]:
        """Names of the plugins that could become backends."""
        names = kvf_string_list()
        check(lib.kvf_agent_plugins(self._handle, names))
        return _convert.take_strings(names)

    def getPluginParams(self, type: str) -> tuple[dict[str, str], list[str]]:
        """Parameters and kinds of memory of a plugin."""
        return self._info(lib.kvf_agent_plugin_info, text(type))

    def getBackendParams(self, backend: int) -> tuple[dict[str, str], list[str]]:
        """Parameters and kinds of memory of a backend."""
        return self._info(lib.kvf_agent_backend_info, self._backend(backend))

    def createBackend(self, type: str, initParams: dict[str, str]) -> int:
        """Makes a backend and returns its handle."""
        name = text(type)
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
        table, kind = registration(descs)
        if not table.rows:
            raise failure(nixlBackendError, "the list of ranges to register is empty")
        check(lib.kvf_agent_register(self._handle, kind, table.pointer, table.rows, names, count))
        return _SUCCESS

    def deregisterMem(self, descs: nixlRegDList, backends: Iterable[int] = ()) -> nixl_status_t:
        """Takes registered ranges back; an empty list is nothing to do."""
        names, count = self._names(backends)
        table, kind = registration(descs)
        if table.rows:
            check(
                lib.kvf_agent_deregister(
                    self._handle, kind, table.pointer, table.rows, names, count
                )
            )
        return _SUCCESS

    def queryMem(self, descs: nixlRegDList, backend: int) -> list[dict[str, str] | None]:
        """What a backend knows about each range."""
        table, kind = registration(descs)
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
            kind, table = given["type"].value, strided_table(descs)
        else:
            table = flat_table(descs)
            kind = descs._kind.value
        return self.prepare(
            given.get("agent_name", NIXL_INIT_AGENT), kind, table, given.get("backend", ())
        )

    def prepare(self, agent_name: Any, kind: int, table: _convert.Table, backends: Any) -> int:
        """Prepares ranges and returns the handle of the list."""
        names, count = self._names(backends)
        function = (
            lib.kvf_desc_list_prepare_strided if table.columns == 5 else lib.kvf_desc_list_prepare
        )
        if not table.rows:
            raise failure(nixlNotFoundError, "no backend can prepare an empty list")
        handle = c_uint64()
        status = function(
            self._handle, text(agent_name) or None, kind, table.pointer, table.rows, names, count, handle
        )
        # NIXL finds no backend for ranges that cannot be.
        check(status, {errors.InvalidArgumentError.status: nixlNotFoundError})
        return handle.value

    def releasedDlistH(self, handle: int) -> nixl_status_t:
        """Ends a prepared list."""
        check(lib.kvf_desc_list_release(handle))
        return _SUCCESS

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
        left, right = _calls.indices(local_indices), _calls.indices(remote_indices)
        handle = c_uint64()
        status = lib.kvf_transfer_make(
            self._handle, operation.value, local_side, left, len(left) // 4, remote_side, right,
            len(right) // 4, self.options(notif_msg, backend, skip_desc_merg), handle,
        )
        check(status, SIDES_DIFFER)
        return handle.value

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
        return self.create(
            operation.value, local_descs, remote_descs, remote_agent, notif_msg, backend
        )

    def create(
        self, op: int, local: Any, remote: Any, remote_agent: Any, notif_msg: Any, backends: Any
    ) -> int:
        """Makes a transfer of two lists and returns its handle."""
        left, right = flat_table(local), flat_table(remote)
        options = self.options(notif_msg, backends, False)
        if not left.rows and not right.rows:
            raise failure(nixlNotFoundError, "no backend can transfer an empty list")
        handle = c_uint64()
        status = lib.kvf_transfer_create(
            self._handle, op, local._kind.value, left.pointer, left.rows, remote._kind.value,
            right.pointer, right.rows, text(remote_agent), options, handle,
        )
        check(status, SIDES_DIFFER)
        return handle.value

    def options(self, notif_msg: Any, backends: Any, skip_merge: bool) -> Any:
        """What to pass as ``kvf_transfer_options``; None when all is default."""
        names, count = self._names(backends)
        notification = message(notif_msg)
        if not notification and not count and not skip_merge:
            return None
        # The struct keeps the message and the names alive, and byref() the struct.
        return byref(
            kvf_transfer_options(
                _OPTIONS_SIZE, bool(skip_merge), 0, _NO_BYTES, notification or None,
                len(notification), names, count,
            )
        )

    def estimateXferCost(self, req_handle: int) -> tuple[int, int, int]:
        """Duration and error margin in microseconds, and how they were arrived at."""
        cost = kvf_transfer_cost()
        check(lib.kvf_transfer_cost_estimate(req_handle, cost))
        return cost.duration_us, cost.error_margin_us, cost.method

    def postXferReq(self, reqh: int, notif_msg: bytes | str = b"") -> nixl_status_t:
        """Starts a transfer; NIXL_SUCCESS if it is done, NIXL_IN_PROG if under way."""
        notification, state = message(notif_msg), c_int32()
        check(lib.kvf_transfer_post(reqh, notification or None, len(notification), state))
        return _IN_PROG if state.value else _SUCCESS

    def getXferStatus(self, reqh: int) -> nixl_status_t:
        """Where a transfer stands."""
        state = c_int32()
        check(lib.kvf_transfer_state(reqh, state))
        return _IN_PROG if state.value else _SUCCESS

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
        check(lib.kvf_transfer_release(reqh))
        return _SUCCESS

    def release_leaked(self) -> None:
        """Tries once more to end transfers that were under way when they were collected.

        Those that still are end with the agent at the latest.
        """
        waiting, self.leaked = self.leaked, []
        for handle in waiting:
            if lib.kvf_transfer_release(handle) == errors.BusyError.status:
                self.leaked.append(handle)

    # ------------------------------------------------------------------ notifications

    def getNotifs(
        self, notif_map: dict[str, list[bytes]], backends: Iterable[int] = ()
    ) -> dict[str, list[bytes]]:
        """``notif_map`` with the messages that have arrived added to it, as another dictionary."""
        if type(notif_map) is not dict:
            raise TypeError(f"notif_map is a dictionary, not {notif_map!r}")
        names, count = self._names(backends)
        arrived = kvf_notification_list()
        check(lib.kvf_agent_notifications(self._handle, names, count, arrived))
        made = {sender: messages(known) for sender, known in notif_map.items()}
        return take_notifications(made, arrived) if arrived.len else made

    def genNotif(
        self, remote_agent: str, msg: bytes | str, backends: Iterable[int] = ()
    ) -> nixl_status_t:
        """Sends a message to an agent."""
        names, count = self._names(backends)
        payload, remote = message(msg), text(remote_agent)
        if count > 1:
            raise failure(nixlInvalidParamError, f"a message goes by one backend, not by {count}")
        check(
            lib.kvf_agent_notify(
                self._handle, remote, payload, len(payload), names[0] if count else None
            )
        )
        return _SUCCESS

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
        table, kind = registration(descs)
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
        metadata = message(remote_metadata)
        if not metadata:
            raise failure(nixlMismatchError, "the metadata is empty")
        name = kvf_buffer()
        check(lib.kvf_agent_add_remote(self._handle, metadata, len(metadata), name))
        return _convert.take_buffer(name)

    def invalidateRemoteMD(self, remote_agent: str) -> nixl_status_t:
        """Forgets a peer. NIXL returns the status of this one instead of raising."""
        status = lib.kvf_agent_remove_remote(self._handle, text(remote_agent))
        if status in (0, errors.NotFoundError.status):
            return _NOT_FOUND if status else _SUCCESS
        if status == errors.InvalidArgumentError.status:
            return nixl_status_t.NIXL_ERR_INVALID_PARAM
        raise from_status(status)

    def checkRemoteMD(self, remote_agent: str, descs: nixlXferDList) -> nixl_status_t:
        """NIXL_SUCCESS if metadata of a peer is loaded and covers the ranges.

        An agent is not a peer of itself to NIXL.
        """
        table, remote, ready = flat_table(descs), text(remote_agent), c_uint8()
        if remote == self._name:
            return _NOT_FOUND
        check(
            lib.kvf_agent_check_remote(
                self._handle, remote, descs._kind.value, table.pointer, table.rows, ready
            )
        )
        return _SUCCESS if ready.value else _NOT_FOUND

    def makeConnection(self, remote_agent: str, backends: Iterable[int]) -> nixl_status_t:
        """Connects to a peer now."""
        names, count = self._names(backends)
        check(lib.kvf_agent_connect(self._handle, text(remote_agent), names, count))
        return _SUCCESS

    def sendLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """Sends the metadata to a peer's listener or the central store."""
        self._exchange(
            lib.kvf_agent_send_metadata(self._handle, text(ip_addr) or None, port_number(port))
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
        table, kind = registration(descs)
        names, count = self._names(backends)
        self._exchange(
            lib.kvf_agent_send_partial_metadata(
                self._handle, kind, table.pointer, table.rows, bool(inc_conn_info), names, count,
                text(ip_addr) or None, port_number(port), text(label) or None,
            )
        )

    def fetchRemoteMD(
        self, remote_agent: str, ip_addr: str = "", port: int = 0, label: str = ""
    ) -> None:
        """Asks for a peer's metadata."""
        self._exchange(
            lib.kvf_agent_fetch_metadata(
                self._handle, text(remote_agent), text(ip_addr) or None, port_number(port),
                text(label) or None,
            )
        )

    def invalidateLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """Tells a peer's listener or the central store that this agent's metadata is void."""
        self._exchange(
            lib.kvf_agent_invalidate_metadata(self._handle, text(ip_addr) or None, port_number(port))
        )

    def _exchange(self, status: int) -> None:
        """NIXL accepts the exchange of metadata with a peer from an agent that has no listener, and
        never does it. It would be no service to raise where a program that runs on NIXL goes on."""
        if status == errors.InvalidStateError.status:
            logger.error("Nothing is exchanged: %s", errors.last_message())
        else:
            check(status, _NO_STORE)

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
