"""NIXL's exception classes, and which of them a status of ours becomes.

They are also :class:`kvferry.Error`, with our status in ``.status``. The text begins with NIXL's
name of the status, as its own does, and goes on with what was wrong.
"""

from __future__ import annotations

from .. import errors

#: Name of each class in ``nixl._bindings`` → name of its status in NIXL.
_NIXL_STATUS = {
    "nixlNotPostedError": "NIXL_ERR_NOT_POSTED",
    "nixlInvalidParamError": "NIXL_ERR_INVALID_PARAM",
    "nixlBackendError": "NIXL_ERR_BACKEND",
    "nixlNotFoundError": "NIXL_ERR_NOT_FOUND",
    "nixlMismatchError": "NIXL_ERR_MISMATCH",
    "nixlNotAllowedError": "NIXL_ERR_NOT_ALLOWED",
    "nixlRepostActiveError": "NIXL_ERR_REPOST_ACTIVE",
    "nixlUnknownError": "NIXL_ERR_UNKNOWN",
    "nixlNotSupportedError": "NIXL_ERR_NOT_SUPPORTED",
    "nixlRemoteDisconnectError": "NIXL_ERR_REMOTE_DISCONNECT",
    "nixlCancelledError": "NIXL_ERR_CANCELED",
    "nixlNoTelemetryError": "NIXL_ERR_NO_TELEMETRY",
}


def _made(name: str) -> type[errors.Error]:
    doc = f"NIXL's {_NIXL_STATUS[name]}."
    return type(name, (errors.Error,), {"__module__": "kvferry.nixl._bindings", "__doc__": doc})


nixlNotPostedError = _made("nixlNotPostedError")
nixlInvalidParamError = _made("nixlInvalidParamError")
nixlBackendError = _made("nixlBackendError")
nixlNotFoundError = _made("nixlNotFoundError")
nixlMismatchError = _made("nixlMismatchError")
nixlNotAllowedError = _made("nixlNotAllowedError")
nixlRepostActiveError = _made("nixlRepostActiveError")
nixlUnknownError = _made("nixlUnknownError")
nixlNotSupportedError = _made("nixlNotSupportedError")
nixlRemoteDisconnectError = _made("nixlRemoteDisconnectError")
nixlCancelledError = _made("nixlCancelledError")
nixlNoTelemetryError = _made("nixlNoTelemetryError")

#: Our class → NIXL's class.
_BY_OURS: dict[type[errors.Error], type[errors.Error]] = {
    errors.InvalidArgumentError: nixlInvalidParamError,
    errors.InvalidHandleError: nixlInvalidParamError,
    errors.InvalidStateError: nixlNotAllowedError,
    errors.NotFoundError: nixlNotFoundError,
    errors.BackendError: nixlBackendError,
    # NIXL says "not found" when no backend serves a kind of memory.
    errors.NoBackendError: nixlNotFoundError,
    errors.TimeoutError: nixlUnknownError,
    errors.PeerLostError: nixlRemoteDisconnectError,
    # NIXL says "mismatch" of metadata that it cannot read.
    errors.PeerIncompatibleError: nixlMismatchError,
    errors.NotRegisteredError: nixlNotFoundError,
    errors.PermissionDeniedError: nixlNotAllowedError,
    # NIXL says so when a transfer that is under way cannot be let go.
    errors.BusyError: nixlRepostActiveError,
    errors.NotSupportedError: nixlNotSupportedError,
    errors.CanceledError: nixlCancelledError,
    errors.MismatchError: nixlMismatchError,
    errors.NotPostedError: nixlNotPostedError,
    errors.RepostActiveError: nixlRepostActiveError,
    errors.NoTelemetryError: nixlNoTelemetryError,
    errors.NotAllowedError: nixlNotAllowedError,
    errors.IoError: nixlBackendError,
    errors.ResourceExhaustedError: nixlBackendError,
    errors.InternalError: nixlUnknownError,
}
_BY_STATUS = {ours.status: theirs for ours, theirs in _BY_OURS.items()}


def failure(nixl_class: type[errors.Error], details: str, status: int = 0) -> errors.Error:
    """An exception of NIXL's with our details."""
    return nixl_class(f"{_NIXL_STATUS[nixl_class.__name__]}: {details}", status)


def from_status(
    status: int, instead: dict[int, type[errors.Error]] | None = None, details: str | None = None
) -> errors.Error:
    """The exception for a status of the calling thread's last call, ready to be raised.

    ``instead`` has the statuses for which NIXL raises another class in this call.
    """
    made = (instead or {}).get(status) or _BY_STATUS.get(status, nixlUnknownError)
    return failure(made, errors.last_message() if details is None else details, status)


def check(status: int, instead: dict[int, type[errors.Error]] | None = None) -> None:
    """Raises for a status other than ``KVF_OK``."""
    if status:
        raise from_status(status, instead)
