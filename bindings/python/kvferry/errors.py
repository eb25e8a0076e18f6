"""One exception class for each status of ``kvferry.h``, all derived from :class:`Error`.

Catch :class:`Error` for everything that the library reports, or a class for one cause. ``.status``
is the number (``KVF_ERR_...``), and the text says what was wrong, with the value at fault.
"""

from __future__ import annotations

from ctypes import c_int32

from ._ffi import CONSTANTS, lib

__all__ = ["Error", "check"]


class Error(Exception):
    """What the library reports. ``status`` is one of the negative ``KVF_ERR_...`` numbers."""

    #: The status of this class; an instance has the status that was returned.
    status: int = 0

    def __init__(self, message: str = "", status: int | None = None):
        super().__init__(message)
        if status is not None:
            self.status = status


_BY_STATUS: dict[int, type[Error]] = {}


def _class_for(constant: str, summary: str, *bases: type) -> type[Error]:
    words = constant.removeprefix("KVF_ERR_").split("_")
    name = "".join(word.capitalize() for word in words) + "Error"
    status = CONSTANTS[constant]
    made = type(name, bases or (Error,), {"__doc__": summary, "__module__": __name__, "status": status})
    _BY_STATUS[status] = made
    __all__.append(name)
    return made


InvalidArgumentError = _class_for(
    "KVF_ERR_INVALID_ARGUMENT", "An argument is not acceptable; nothing was done.", Error, ValueError
)
InvalidHandleError = _class_for(
    "KVF_ERR_INVALID_HANDLE", "The object has been closed or released, or is of another kind."
)
InvalidStateError = _class_for(
    "KVF_ERR_INVALID_STATE", "The object is not in a state in which the call makes sense."
)
NotFoundError = _class_for("KVF_ERR_NOT_FOUND", "A remote agent, backend or plugin is not known.")
BackendError = _class_for("KVF_ERR_BACKEND", "The transport or one of its backends failed.")
NoBackendError = _class_for(
    "KVF_ERR_NO_BACKEND", "No transport library was found, or no backend can serve the request."
)
TimeoutError = _class_for(
    "KVF_ERR_TIMEOUT", "The time allowed is over; the call may be repeated.", Error, TimeoutError
)
PeerLostError = _class_for("KVF_ERR_PEER_LOST", "The peer is gone.", Error, ConnectionError)
PeerIncompatibleError = _class_for(
    "KVF_ERR_PEER_INCOMPATIBLE", "The peer, or the bytes it sent, cannot be worked with."
)
NotRegisteredError = _class_for(
    "KVF_ERR_NOT_REGISTERED", "A memory range lies outside what its owner has registered."
)
PermissionDeniedError = _class_for(
    "KVF_ERR_PERMISSION_DENIED", "The operating system refused; the text says what to change."
)
BusyError = _class_for("KVF_ERR_BUSY", "The object is in use; repeat the call later.")
NotSupportedError = _class_for(
    "KVF_ERR_NOT_SUPPORTED", "This transport or backend does not offer the operation."
)
CanceledError = _class_for(
    "KVF_ERR_CANCELED", "The transfer was cancelled and has come to rest."
)
MismatchError = _class_for(
    "KVF_ERR_MISMATCH", "Two things that must agree do not: counts, lengths, memory kinds."
)
NotPostedError = _class_for("KVF_ERR_NOT_POSTED", "The transfer has not been posted yet.")
RepostActiveError = _class_for(
    "KVF_ERR_REPOST_ACTIVE", "The transfer is under way and cannot be posted again."
)
NoTelemetryError = _class_for(
    "KVF_ERR_NO_TELEMETRY", "Telemetry was not enabled when the agent was created."
)
NotAllowedError = _class_for("KVF_ERR_NOT_ALLOWED", "The operation is not allowed on this object.")
IoError = _class_for("KVF_ERR_IO", "An input or output error of the operating system.")
ResourceExhaustedError = _class_for(
    "KVF_ERR_RESOURCE_EXHAUSTED", "Out of memory, descriptors, threads, or another limit."
)
InternalError = _class_for("KVF_ERR_INTERNAL", "A fault inside kvferry; please report it.")
ExpiredError = _class_for(
    "KVF_ERR_EXPIRED", "A lease ended before the bytes were in: they may be another request's."
)

_last_error_message = lib.kvf_last_error_message


def last_message() -> str:
    """The text of the calling thread's last failed call."""
    return _last_error_message().decode("utf-8", "replace")


def from_status(status: int, message: str | None = None) -> Error:
    """The exception for a status of the calling thread's last call, ready to be raised."""
    made = _BY_STATUS.get(status, Error)
    return made(last_message() if message is None else message, status)


def status_name(status: int) -> str:
    """A short name such as ``"peer lost"``."""
    return lib.kvf_status_name(c_int32(status)).decode()


def check(status: int) -> None:
    """Raises for a status other than ``KVF_OK``."""
    if status:
        raise from_status(status)
