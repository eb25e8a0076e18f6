"""``nixl._api`` over kvferry: agents, their configuration, and handles of lists and transfers."""

from __future__ import annotations

import ctypes
import pickle
import sys
from array import array
from ctypes import c_size_t, c_uint64
from enum import Enum
from typing import TYPE_CHECKING, Any

from .. import _convert, _lifetime, errors
from .. import side_channel as _side_channel
from .._ffi import lib
from . import _bindings as nixlBind
from . import _calls
from ._agent import SIDES_DIFFER
from ._errors import failure, from_status
from ._inputs import flat_table, message, strided_table
from .logging import get_logger

if TYPE_CHECKING:
    import numpy as np

logger = get_logger(__name__)

# Names of the hot path: globals are found faster than attributes of modules.
_byref = ctypes.byref
_new_handle = c_uint64.__new__
_make, _post, _state, _release = _calls.make, _calls.post, _calls.state, _calls.release
_notification_count, _indices = _calls.notification_count, _calls.indices
_count_in, _local, _NONE = _calls.count_in, _calls.local, _calls.NONE
# There is one empty bytes object; were there more, they would only take the longer way.
_EMPTY = b""

DEFAULT_COMM_PORT = nixlBind.DEFAULT_COMM_PORT

#: Handles of backends are integers, and stay inside the agent.
nixl_backend_handle = int


def _is_torch_tensor(value: object) -> bool:
    """Whether it is a tensor. It can only be one if torch has been imported by somebody."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class _Handle(c_uint64):
    """A handle of an agent's, released at the latest when it is collected.

    It is the ctypes object that C takes and fills in, which saves making another one per transfer.
    """

    __slots__ = ("_agent", "_released")
    # ctypes takes it away; without it, handles could not be keys.
    __hash__ = object.__hash__

    def __init__(self, agent: nixlBind.nixlAgent, value: int):
        c_uint64.__init__(self, value)
        self._agent = agent
        self._released = False

    @property
    def _handle(self) -> int:
        """The handle as the functions of ``_bindings`` take it."""
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}(0x{self.value:x}, released={self._released})"

    def __del__(self) -> None:
        try:
            if self._released:
                return
        except AttributeError:  # it was never made
            return
        status = _lifetime.end(self._END, self.value, self._agent.made_in)
        if status == errors.BusyError.status:
            # It still moves bytes; the agent keeps it until it does not.
            self._agent.leaked.append(self.value)
        elif status not in _ENDED:
            logger.error("%r could not be released: %s", self, errors.last_message())


#: At interpreter exit the agent goes first, and takes its handles along.
_ENDED = (0, errors.InvalidHandleError.status)


class nixl_prepped_dlist_handle(_Handle):
    """A prepared descriptor list.

    Args:
        agent: The ``nixlAgent`` it belongs to.
        value: Its handle there.
    """

    __slots__ = ()
    _END = lib.kvf_desc_list_release

    def release(self) -> None:
        """Ends the list. Transfers made from it go on. Harmless when repeated."""
        if not self._released:
            self._agent.releasedDlistH(self.value)
            self._released = True


class nixl_xfer_handle(_Handle):
    """A transfer.

    Args:
        agent: The ``nixlAgent`` it belongs to.
        value: Its handle there.
    """

    __slots__ = ()
    _END = lib.kvf_transfer_release

    def release(self) -> None:
        """Ends the transfer. One that is under way is asked to stop.

        Harmless when repeated.

        Raises:
            nixlRepostActiveError: it could not be stopped yet; it is still valid.
        """
        if self._released:
            return
        status = _release(self)
        if status:
            raise from_status(status)
        self._released = True


def _failed(status: int, *handles: _Handle) -> errors.Error:
    """The exception for a call with these handles. Only here, where it costs nothing to the calls that
    succeed, does anybody look whether they are handles, and in use: C has found out that they are not.
    """
    error = from_status(status, SIDES_DIFFER)
    over = [repr(handle) for handle in handles if handle._released]
    if over:
        return failure(nixlBind.nixlInvalidParamError, f"{', '.join(over)} cannot be used any more", status)
    return error


class nixl_thread_sync_t(Enum):
    """How calls from several threads are serialised. Every mode is safe here."""

    NIXL_THREAD_SYNC_NONE = nixlBind.nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
    NIXL_THREAD_SYNC_STRICT = nixlBind.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    NIXL_THREAD_SYNC_RW = nixlBind.nixl_thread_sync_t.NIXL_THREAD_SYNC_RW
    NIXL_THREAD_SYNC_DEFAULT = nixlBind.nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT


class nixl_agent_config:
    """What an agent is made with.

    Args:
        enable_prog_thread: Whether a thread answers peers while the program is busy elsewhere. It
            sleeps until there is something to do; ``KVF_NIXL_PROGRESS=spin`` in the environment
            makes it spin, as NIXL's own does.
        enable_listen_thread: Whether NIXL's metadata listener runs.
        listen_port: Its port.
        capture_telemetry: Whether transfers record telemetry.
        num_threads: Threads of the backends that can have several; 0 is their default.
        backends: Names of the backends to make.
        sync_mode: None is STRICT with the listener and NONE without.
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: list[str] = ["UCX"],  # noqa: B006 - it is part of the signature, and never changed
        sync_mode: nixl_thread_sync_t | None = None,
    ):
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(
                f"sync_mode must be a nixl_thread_sync_t (got {type(sync_mode).__name__!r})"
            )
        self.backends = backends
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.sync_mode = sync_mode

    def _for_bindings(self) -> nixlBind.nixlAgentConfig:
        modes = nixl_thread_sync_t
        default = modes.NIXL_THREAD_SYNC_STRICT if self.enable_listen else modes.NIXL_THREAD_SYNC_NONE
        config = nixlBind.nixlAgentConfig()
        config.useProgThread = self.enable_pthread
        config.useListenThread = self.enable_listen
        config.listenPort = self.port
        config.syncMode = (self.sync_mode or default).value
        config.captureTelemetry = self.capture_telemetry
        return config

    def _backend_params(self, backend: str) -> dict[str, str]:
        """How each backend calls its number of threads."""
        key = _THREADS_PARAMETER.get(backend)
        return {key: str(self.num_threads)} if key and self.num_threads > 0 else {}


_THREADS_PARAMETER = {
    "UCX": "num_threads",
    "OBJ": "num_threads",
    "LIBFABRIC": "num_threads",
    "GDS_MT": "thread_count",
    "UCCL": "num_cpus",
}

_KINDS = {
    "DRAM": nixlBind.nixl_mem_t.DRAM_SEG,
    "VRAM": nixlBind.nixl_mem_t.VRAM_SEG,
    "FILE": nixlBind.nixl_mem_t.FILE_SEG,
    "BLOCK": nixlBind.nixl_mem_t.BLK_SEG,
    "OBJ": nixlBind.nixl_mem_t.OBJ_SEG,
    "cpu": nixlBind.nixl_mem_t.DRAM_SEG,
    "cuda": nixlBind.nixl_mem_t.VRAM_SEG,
}


class nixl_agent:
    """An endpoint, with its backends, memory, peers, transfers and notifications.

    Args:
        agent_name: Its name, by which peers know it.
        nixl_conf: A :class:`nixl_agent_config`; None is the defaults.
        instantiate_all: Makes a backend of every plugin, if there is no ``nixl_conf``.
    """

    def __init__(
        self,
        agent_name: str,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
    ):
        if nixl_conf and instantiate_all:
            instantiate_all = False
            logger.warning("instantiate_all is ignored: the configuration names the backends")
        config = nixl_conf or nixl_agent_config()
        self.agent = nixlBind.nixlAgent(agent_name, config._for_bindings())
        self.name = agent_name
        self.notifs: dict[str, list[bytes]] = {}
        self.backends: dict[str, nixl_backend_handle] = {}
        self.backend_mems: dict[str, list[str]] = {}
        self.backend_options: dict[str, dict[str, str]] = {}
        self.plugin_b_options: dict[str, dict[str, str]] = {}
        self.plugin_mem_types: dict[str, list[str]] = {}
        self.nixl_mems = dict(_KINDS)
        self.nixl_ops = {
            "WRITE": nixlBind.nixl_xfer_op_t.NIXL_WRITE,
            "READ": nixlBind.nixl_xfer_op_t.NIXL_READ,
        }
        self._op_codes = {name: op.value for name, op in self.nixl_ops.items()}
        # The usual kind of indices, if numpy is there. There is one int32 in it: being that object
        # stands for a dozen checks.
        numpy = sys.modules.get("numpy")
        self._ndarray = numpy.ndarray if numpy else None
        self._int32 = numpy.dtype("int32") if numpy else None
        self._side_channel: _side_channel.SideChannel | None = None
        self.plugin_list = self.agent.getAvailPlugins()
        if not self.plugin_list:
            raise RuntimeError("No plugins available for NIXL, cannot start transfers!")
        for backend in list(self.plugin_list) if instantiate_all else config.backends:
            if backend in self.plugin_list:
                self.create_backend(backend, config._backend_params(backend))
            else:
                logger.warning("Skipping backend %s: there is no such plugin", backend)
        logger.info("Initialized NIXL agent: %s", agent_name)

    # ------------------------------------------------------------------ plugins and backends

    def get_plugin_list(self) -> list[str]:
        """Names of the plugins that could become backends."""
        return self.plugin_list

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Kinds of memory that a plugin serves; none for an unknown one."""
        self._load_plugin(backend)
        return self.plugin_mem_types.get(backend, [])

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Parameters of a plugin with their defaults; none for an unknown one."""
        self._load_plugin(backend)
        return self.plugin_b_options.get(backend, {})

    def _load_plugin(self, plugin: str) -> None:
        if plugin in self.plugin_b_options:
            return
        try:
            params, mems = self.agent.getPluginParams(plugin)
        except errors.Error as e:
            logger.warning("Plugin %s is not available: %s", plugin, e)
            return
        self.plugin_b_options[plugin], self.plugin_mem_types[plugin] = params, mems

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Kinds of memory that a backend serves; none for one that has not been made."""
        if backend not in self.backend_mems:
            logger.warning("Backend %s has not been made", backend)
        return self.backend_mems.get(backend, [])

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """Parameters of a backend; none for one that has not been made."""
        if backend not in self.backend_options:
            logger.warning("Backend %s has not been made", backend)
        return self.backend_options.get(backend, {})

    def create_backend(self, backend: str, initParams: dict[str, str] = {}) -> None:  # noqa: B006
        """Makes a backend of a plugin."""
        handle = self.agent.createBackend(backend, initParams)
        params, mems = self.agent.getBackendParams(handle)
        self.backends[backend] = handle
        self.backend_mems[backend], self.backend_options[backend] = mems, params
        logger.info("Backend %s was instantiated", backend)

    def _handles(self, backends: list[str]) -> list[int]:
        return [self.backends[name] for name in backends]

    # ------------------------------------------------------------------ memory

    def register_memory(
        self, reg_list: Any, mem_type: str | None = None, backends: list[str] = []  # noqa: B006
    ) -> nixlBind.nixlRegDList:
        """Makes memory available for transfers; takes what :meth:`get_reg_descs` takes.

        Returns:
            The list to give to :meth:`deregister_memory`.
        """
        descs = self.get_reg_descs(reg_list, mem_type)
        self.agent.registerMem(descs, self._handles(backends))
        return descs

    def deregister_memory(
        self, dereg_list: nixlBind.nixlRegDList, backends: list[str] = []  # noqa: B006
    ) -> None:
        """Takes back what :meth:`register_memory` registered."""
        self.agent.deregisterMem(dereg_list, self._handles(backends))

    def query_memory(
        self, reg_list: Any, backend: str, mem_type: str | None = None
    ) -> list[dict[str, str] | None]:
        """What a backend knows about each range; None where it knows nothing."""
        descs = self.get_reg_descs(reg_list, mem_type)
        if backend not in self.backends:
            raise ValueError(f"Backend {backend!r} not found; there are {list(self.backends)}")
        return self.agent.queryMem(descs, self.backends[backend])

    # ------------------------------------------------------------------ transfers

    def make_connection(self, remote_agent: str, backends: list[str] = []) -> None:  # noqa: B006
        """Connects to a peer now, so that the first transfer does not have to."""
        self.agent.makeConnection(remote_agent, self._handles(backends))

    def prep_xfer_dlist(
        self,
        agent_name: str,
        xfer_list: Any,
        mem_type: str | None = None,
        backends: list[str] = [],  # noqa: B006
    ) -> nixl_prepped_dlist_handle:
        """Prepares ranges to be picked from by index.

        Args:
            agent_name: Whose: ``"NIXL_INIT_AGENT"`` or ``""`` for the local side of transfers, a
                remote agent's name, or this agent's own name for the remote side of a loopback.
            xfer_list: What :meth:`get_xfer_descs` takes, or an N×5 array of (address, length,
                device, stride, count).
            mem_type: Kind of memory, where the list does not say.
        """
        if agent_name == "NIXL_INIT_AGENT":
            agent_name = nixlBind.NIXL_INIT_AGENT
        handles = self._handles(backends)
        if _convert.is_ndarray(xfer_list) and xfer_list.ndim == 2 and xfer_list.shape[1] == 5:
            if mem_type is None:
                raise ValueError("Please specify a mem type for strided descriptors")
            kind, table = self.nixl_mems[mem_type].value, strided_table(xfer_list)
        else:
            descs = self.get_xfer_descs(xfer_list, mem_type)
            table = flat_table(descs)
            kind = descs._kind.value
        return nixl_prepped_dlist_handle(
            self.agent, self.agent.prepare(agent_name, kind, table, handles)
        )

    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """Duration and error margin in microseconds, and how they were arrived at.

        As with NIXL 1.5, the method is always ``"UNKNOWN"``.
        """
        duration, margin, _method = self.agent.estimateXferCost(req_handle._handle)
        return duration, margin, "UNKNOWN"

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: list[int] | np.ndarray,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: list[int] | np.ndarray,
        notif_msg: bytes = b"",
        backends: list[str] = [],  # noqa: B006
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """Makes a transfer between ranges picked from two prepared lists, pair by pair.

        Args:
            operation: ``"READ"`` or ``"WRITE"``.
            notif_msg: Sent to the remote agent when all bytes have arrived.
        """
        op = self._op_codes[operation]
        agent = self.agent
        # The usual kind of indices here and at once, all others by a call.
        ndarray, int32 = self._ndarray, self._int32
        if (
            type(local_indices) is ndarray
            and type(remote_indices) is ndarray
            and local_indices.dtype is int32
            and remote_indices.dtype is int32
            and local_indices.ndim == 1
            and remote_indices.ndim == 1
        ):
            left, right = local_indices.tobytes(), remote_indices.tobytes()
        else:
            left, right = _indices(local_indices), _indices(remote_indices)
        options = None
        if notif_msg is not _EMPTY or backends or skip_desc_merge:
            options = agent.options(notif_msg, self._handles(backends), skip_desc_merge)
        handle = _new_handle(nixl_xfer_handle)
        status = _make(
            agent.argument, op, local_xfer_side, left, _count_in[len(left)],
            remote_xfer_side, right, _count_in[len(right)], options, _byref(handle),
        )
        if status:
            raise _failed(status, local_xfer_side, remote_xfer_side)
        handle._agent = agent
        handle._released = False
        return handle

    def initialize_xfer(
        self,
        operation: str,
        local_descs: nixlBind.nixlXferDList,
        remote_descs: nixlBind.nixlXferDList,
        remote_agent: str,
        notif_msg: bytes = b"",
        backends: list[str] = [],  # noqa: B006
    ) -> nixl_xfer_handle:
        """Makes a transfer of the i-th range of one list and the i-th of the other."""
        op = self._op_codes[operation]
        made = self.agent.create(
            op, local_descs, remote_descs, remote_agent, notif_msg, self._handles(backends)
        )
        return nixl_xfer_handle(self.agent, made)

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes = b"") -> str:
        """Starts a transfer, or starts it again.

        Returns:
            ``"DONE"`` or ``"PROC"``; failures are raised.
        """
        state, reference = _local.state
        if notif_msg is _EMPTY:
            status = _post(handle, None, _NONE, reference)
        else:
            notification = message(notif_msg)
            status = _post(handle, notification or None, c_size_t(len(notification)), reference)
        if status:
            raise _failed(status, handle)
        return "PROC" if state.value else "DONE"

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """``"DONE"`` or ``"PROC"``; failures are raised."""
        state, reference = _local.state
        status = _state(handle, reference)
        if status:
            raise _failed(status, handle)
        return "PROC" if state.value else "DONE"

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlBind.nixlXferTelemetry:
        """Figures of a transfer's last post."""
        return self.agent.getXferTelemetry(handle._handle)

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """Name of the backend that carries a transfer."""
        chosen = self.agent.queryXferBackend(handle._handle)
        return next(name for name, backend in self.backends.items() if backend == chosen)

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Ends a transfer; see :meth:`nixl_xfer_handle.release`."""
        if not handle._released:
            status = _release(handle)
            if status:
                raise from_status(status)
            handle._released = True

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Ends a prepared list."""
        handle.release()

    def prep_mem_view(
        self,
        dlist: nixlBind.nixlXferDList | nixlBind.nixlRemoteDList,
        *,
        backends: list[str] | None = None,
    ) -> int:
        """Memory views for GPU kernels are not offered: raises nixlNotSupportedError."""
        return self.agent.prepMemView(dlist, self._handles(backends or []))

    def release_mem_view(self, mvh: int) -> None:
        """As :meth:`prep_mem_view`."""
        self.agent.releaseMemView(mvh)

    # ------------------------------------------------------------------ notifications

    def get_new_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:  # noqa: B006
        """Takes the messages that have arrived: agent name → messages."""
        agent = self.agent
        if agent.leaked:
            agent.release_leaked()
        if not backends:
            status = _notification_count(agent.argument, agent.waiting_ref)
            if status:
                raise from_status(status)
            if not agent.waiting.value:
                return {}
        return agent.getNotifs({}, self._handles(backends))

    def update_notifs(self, backends: list[str] = []) -> dict[str, list[bytes]]:  # noqa: B006
        """Adds the messages that have arrived to those kept in ``notifs``, and returns all."""
        self.notifs = self.agent.getNotifs(self.notifs, self._handles(backends))
        return self.notifs

    def check_remote_xfer_done(
        self,
        remote_agent_name: str,
        lookup_tag: bytes,
        backends: list[str] = [],  # noqa: B006
        tag_is_prefix: bool = True,
    ) -> bool:
        """Whether a message of that agent begins with (or contains) the tag; takes that one out."""
        messages = self.update_notifs(backends).get(remote_agent_name, [])
        for i, message in enumerate(messages):
            if message.startswith(lookup_tag) if tag_is_prefix else lookup_tag in message:
                del messages[i]
                return True
        return False

    def send_notif(self, remote_agent_name: str, notif_msg: bytes, backend: str | None = None) -> None:
        """Sends a message to an agent, not bound to a transfer."""
        handles = [] if backend is None else [self.backends[backend]]
        self.agent.genNotif(remote_agent_name, notif_msg, handles)

    # ------------------------------------------------------------------ metadata and peers

    def get_agent_metadata(self) -> bytes:
        """All that a peer needs to reach this agent and the memory registered so far."""
        return self.agent.getLocalMD()

    def get_partial_agent_metadata(
        self,
        descs: nixlBind.nixlRegDList,
        inc_conn_info: bool = False,
        backends: list[str] = [],  # noqa: B006
    ) -> bytes:
        """Metadata of some ranges only; with ``inc_conn_info`` also how to connect."""
        return self.agent.getLocalPartialMD(descs, inc_conn_info, self._handles(backends))

    def add_remote_agent(self, metadata: bytes) -> bytes:
        """Loads a peer's metadata.

        Returns:
            The peer's name, as bytes, which every other method takes too.
        """
        return self.agent.loadRemoteMD(metadata)

    def remove_remote_agent(self, agent: str) -> None:
        """Forgets a peer and disconnects from it. An unknown name is not an error."""
        self.agent.invalidateRemoteMD(agent)

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Sends the metadata to a peer's listener or, without address, the central store."""
        self.agent.sendLocalMD(ip_addr, port)

    def send_partial_agent_metadata(
        self,
        descs: nixlBind.nixlRegDList,
        inc_conn_info: bool = False,
        backends: list[str] = [],  # noqa: B006
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
    ) -> None:
        """Sends metadata of some ranges only; ``label`` names it in a central store."""
        self.agent.sendLocalPartialMD(
            descs, inc_conn_info, self._handles(backends), ip_addr, port, label
        )

    def fetch_remote_metadata(
        self, remote_agent: str, ip_addr: str = "", port: int = DEFAULT_COMM_PORT, label: str = ""
    ) -> None:
        """Asks for a peer's metadata; :meth:`check_remote_metadata` says when it is there."""
        self.agent.fetchRemoteMD(remote_agent, ip_addr, port, label)

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Tells a peer's listener or the central store that this agent's metadata is void."""
        self.agent.invalidateLocalMD(ip_addr, port)

    def check_remote_metadata(self, agent: str, descs: nixlBind.nixlXferDList | None = None) -> bool:
        """Whether metadata of a peer is loaded and covers the ranges."""
        if descs is None:
            descs = nixlBind.nixlXferDList(nixlBind.nixl_mem_t.DRAM_SEG)
        return self.agent.checkRemoteMD(agent, descs) == nixlBind.NIXL_SUCCESS

    # ------------------------------------------------------------------ kvferry's side channel

    def start_side_channel_listener(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Hands this agent's metadata, as it is now, to whoever asks at that address.

        Not part of NIXL. Call it again after registering more memory: a listener that runs then
        stays where it is, whatever ``port`` and ``host`` say, and gives the new metadata.

        Args:
            port: 0 lets the system choose.
            host: Anything that other hosts can reach must be asked for: metadata is not
                authenticated.

        Returns:
            The port.
        """
        metadata = self.get_agent_metadata()
        if self._side_channel is None:
            self._side_channel = _side_channel.SideChannel(metadata, port, host)
        else:
            self._side_channel.set_metadata(metadata)
        return self._side_channel.address.port

    def request_remote_metadata(self, host: str, port: int, timeout: float = 5.0) -> bytes:
        """Asks a peer's side channel for its metadata and loads it.

        Not part of NIXL.

        Returns:
            The peer's name, as :meth:`add_remote_agent` gives it.
        """
        return self.add_remote_agent(_side_channel.request_metadata(host, port, timeout))

    def stop_side_channel_listener(self) -> None:
        """Stops the listener. Harmless when there is none. Not part of NIXL."""
        if self._side_channel is not None:
            self._side_channel.close()
            self._side_channel = None

    # ------------------------------------------------------------------ descriptor lists

    def get_xfer_descs(self, descs: Any, mem_type: str | None = None) -> nixlBind.nixlXferDList | None:
        """Ranges for transfers, from: a list of (address, length, device) or an N×3 array of 64-bit
        integers, both with a ``mem_type``; a tensor or a list of tensors; or such a list, which is
        returned as it is.

        Returns:
            None, and a line in the log, for what makes no list.
        """
        if isinstance(descs, nixlBind.nixlXferDList):
            return descs
        if isinstance(descs, nixlBind.nixlRegDList):
            logger.error("A registration list was given for a transfer; use an nixlXferDList")
            return None
        return self._descs(nixlBind.nixlXferDList, descs, mem_type, 3)

    def get_reg_descs(self, descs: Any, mem_type: str | None = None) -> nixlBind.nixlRegDList | None:
        """Ranges for registration: as :meth:`get_xfer_descs`, but tuples have a fourth element,
        the metadata of the range."""
        if isinstance(descs, nixlBind.nixlRegDList):
            return descs
        if isinstance(descs, nixlBind.nixlXferDList):
            logger.error("A transfer list was given for a registration; use an nixlRegDList")
            return None
        return self._descs(nixlBind.nixlRegDList, descs, mem_type, 4)

    def get_remote_descs(
        self, descs: nixlBind.nixlRemoteDList | list[tuple], mem_type: str | None = None
    ) -> nixlBind.nixlRemoteDList | None:
        """Ranges of several agents, from a list of (address, length, device, agent name)."""
        if isinstance(descs, nixlBind.nixlRemoteDList):
            return descs
        if not isinstance(descs[0], tuple):
            return None
        return self._descs(nixlBind.nixlRemoteDList, descs, mem_type, 4)

    def _descs(self, kind: Any, descs: Any, mem_type: str | None, width: int) -> Any:
        first = descs[0]
        if isinstance(first, tuple) or _convert.is_ndarray(descs):
            if mem_type is None:
                logger.error("Please specify a mem type if not using Tensors")
            elif isinstance(first, tuple) and len(first) != width:
                logger.error("%d-tuples are needed for %s", width, kind.__name__)
            elif not isinstance(first, tuple) and (descs.ndim != 2 or descs.shape[1] != 3):
                logger.error("An N×3 array is needed for %s", kind.__name__)
            else:
                return kind(self.nixl_mems[mem_type], descs)
            return None
        if _is_torch_tensor(descs):
            return _descs_of_tensors(kind, [descs])
        if _is_torch_tensor(first):
            return _descs_of_tensors(kind, descs)
        return None

    def get_serialized_descs(self, descs: Any) -> bytes:
        """A descriptor list as bytes (a pickle)."""
        return pickle.dumps(descs)

    def deserialize_descs(self, serialized_descs: bytes) -> Any:
        """The list from :meth:`get_serialized_descs`. A pickle: only from a peer that is trusted."""
        return pickle.loads(serialized_descs)


def _descs_of_tensors(kind: Any, tensors: Any) -> Any:
    """The memory of tensors, which must be contiguous and on one device."""
    if any(tensor.device != tensors[0].device for tensor in tensors):
        return None
    if not all(tensor.is_contiguous() for tensor in tensors):
        logger.error("Please use a list of contiguous Tensors")
        return None
    device = tensors[0].get_device()  # -1 is host memory
    numbers = array("Q")
    for tensor in tensors:
        numbers.extend((tensor.data_ptr(), tensor.numel() * tensor.element_size(), max(device, 0)))
    made = kind(_KINDS["DRAM" if device == -1 else "VRAM"], len(tensors))
    made._numbers = numbers
    return made
