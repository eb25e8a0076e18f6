"""What an agent is made with, and the figures of a transfer: NIXL's two plain structs."""

from __future__ import annotations

import datetime

from .._ffi import kvf_transfer_telemetry
from ._enums import nixl_thread_sync_t

DEFAULT_COMM_PORT = 8888


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
