//! What can go wrong, as a caller sees it: a [`Status`] that says what to do about it, and a message
//! that names the value at fault.

use std::fmt;

/// The outcome of a call. The numbers are part of the C ABI and are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Status {
    /// Success.
    Ok = 0,
    /// An argument is not acceptable; the message names it and its value.
    InvalidArgument = -1,
    /// A handle is null, stale, destroyed, or of another kind.
    InvalidHandle = -2,
    /// The object is not in a state in which the call makes sense.
    InvalidState = -3,
    /// A named thing (remote agent, backend, plugin, notification) is not known.
    NotFound = -4,
    /// The transport or one of its backends failed; the message has what it said.
    Backend = -5,
    /// No transport library, or no backend that can serve the request.
    NoBackend = -6,
    /// The time allowed is over. Nothing was changed; the call may be repeated.
    Timeout = -7,
    /// The peer is gone. Its metadata has to be loaded again before it can be used.
    PeerLost = -8,
    /// The peer, or the bytes it sent, cannot be worked with: wrong format, version or content.
    PeerIncompatible = -9,
    /// A memory range lies outside what its owner has registered.
    NotRegistered = -10,
    /// The operating system refused; the message says what to change.
    PermissionDenied = -11,
    /// The object is in use; repeat the call later.
    Busy = -12,
    /// This transport or backend does not offer the operation.
    NotSupported = -13,
    /// The transfer was cancelled and has come to rest.
    Canceled = -14,
    /// Two things that must agree do not: counts, lengths, memory kinds.
    Mismatch = -15,
    /// The transfer has not been posted yet.
    NotPosted = -16,
    /// The transfer is still under way and cannot be posted again.
    RepostActive = -17,
    /// Telemetry was not enabled when the agent was created, or there is none yet.
    NoTelemetry = -18,
    /// The operation is not allowed on this object.
    NotAllowed = -19,
    /// An input or output error of the operating system.
    Io = -20,
    /// Out of memory, descriptors, threads, or another limit.
    ResourceExhausted = -21,
    /// A fault inside kvferry, among them a panic that was caught. The host process is not harmed.
    Internal = -22,
    /// A lease ended before the bytes were in: they may come from blocks that were used again.
    Expired = -23,
}

impl Status {
    /// Every status, for tables and tests.
    pub const ALL: [Status; 24] = [
        Status::Ok,
        Status::InvalidArgument,
        Status::InvalidHandle,
        Status::InvalidState,
        Status::NotFound,
        Status::Backend,
        Status::NoBackend,
        Status::Timeout,
        Status::PeerLost,
        Status::PeerIncompatible,
        Status::NotRegistered,
        Status::PermissionDenied,
        Status::Busy,
        Status::NotSupported,
        Status::Canceled,
        Status::Mismatch,
        Status::NotPosted,
        Status::RepostActive,
        Status::NoTelemetry,
        Status::NotAllowed,
        Status::Io,
        Status::ResourceExhausted,
        Status::Internal,
        Status::Expired,
    ];

    /// The status with this number, if there is one.
    pub fn from_code(code: i32) -> Option<Status> {
        Self::ALL.into_iter().find(|s| *s as i32 == code)
    }

    /// A short lower-case name, such as `peer lost`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::InvalidArgument => "invalid argument",
            Status::InvalidHandle => "invalid handle",
            Status::InvalidState => "invalid state",
            Status::NotFound => "not found",
            Status::Backend => "backend error",
            Status::NoBackend => "no backend",
            Status::Timeout => "timeout",
            Status::PeerLost => "peer lost",
            Status::PeerIncompatible => "peer incompatible",
            Status::NotRegistered => "memory not registered",
            Status::PermissionDenied => "permission denied",
            Status::Busy => "busy",
            Status::NotSupported => "not supported",
            Status::Canceled => "canceled",
            Status::Mismatch => "mismatch",
            Status::NotPosted => "not posted",
            Status::RepostActive => "transfer still active",
            Status::NoTelemetry => "no telemetry",
            Status::NotAllowed => "not allowed",
            Status::Io => "input/output error",
            Status::ResourceExhausted => "resource exhausted",
            Status::Internal => "internal error",
            Status::Expired => "expired",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failed call: what kind of failure, and a message for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

impl Error {
    /// An error with this status and message.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error {
            status,
            message: message.into(),
        }
    }

    /// An [`Status::InvalidArgument`] error.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// The error of the last system call of this thread, with what was being done.
    pub fn os(doing: impl fmt::Display) -> Self {
        Self::from_io(doing, &std::io::Error::last_os_error())
    }

    /// An error of the operating system, with what was being done.
    pub fn from_io(doing: impl fmt::Display, e: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let status = match e.kind() {
            K::PermissionDenied => Status::PermissionDenied,
            K::TimedOut | K::WouldBlock => Status::Timeout,
            K::ConnectionReset
            | K::ConnectionAborted
            | K::BrokenPipe
            | K::ConnectionRefused
            | K::NotConnected
            | K::UnexpectedEof => Status::PeerLost,
            K::OutOfMemory => Status::ResourceExhausted,
            K::NotFound => Status::NotFound,
            _ if matches!(
                e.raw_os_error(),
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC)
            ) =>
            {
                Status::ResourceExhausted
            }
            _ => Status::Io,
        };
        Self::new(status, format!("{doing}: {e}"))
    }

    /// What kind of failure this is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message, without the status.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with what was being done put in front of the message.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for Error {}

/// The result of every fallible function of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// Leaves the function with an error: `bail!(Status::Mismatch, "{n} against {m}")`.
macro_rules! bail {
    ($status:expr, $($arg:tt)*) => {
        return Err($crate::error::Error::new($status, format!($($arg)*)))
    };
}
pub(crate) use bail;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_unique() {
        for (i, s) in Status::ALL.into_iter().enumerate() {
            assert_eq!(s as i32, -(i as i32));
            assert_eq!(Status::from_code(s as i32), Some(s));
        }
        assert_eq!(Status::from_code(1), None);
        assert_eq!(Status::from_code(-1000), None);
    }
}
