//! Log output.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Once, RwLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::guard::{c_string, guard};
use super::status::kvf_status;
use crate::error::{Error, Status};
use crate::sync::{read, write};

/// Nothing is logged.
pub const KVF_LOG_OFF: i32 = 0;
/// Failures that nobody else reports.
pub const KVF_LOG_ERROR: i32 = 1;
/// What an operator should look at.
pub const KVF_LOG_WARN: i32 = 2;
/// What happens once per object: which library was loaded, who connected.
pub const KVF_LOG_INFO: i32 = 3;
/// What happens once per request, and the text of every error that is returned.
pub const KVF_LOG_DEBUG: i32 = 4;
/// Everything.
pub const KVF_LOG_TRACE: i32 = 5;

/// Receives one log record. `level` is one of `KVF_LOG_ERROR` to `KVF_LOG_TRACE`; `target` says
/// which part of the library speaks. Both texts are valid during the call only. It is called from
/// any thread, also several at once. It must return (no exception, no longjmp) and must not call
/// back into the library.
pub type kvf_log_fn = Option<
    unsafe extern "C" fn(
        env: *mut c_void,
        level: i32,
        target: *const c_char,
        message: *const c_char,
    ),
>;

/// Frees what a callback was given.
pub type kvf_free_fn = Option<unsafe extern "C" fn(env: *mut c_void)>;

/// Sets how much is logged. Until it is called the environment variable `KVF_LOG` decides (`off`,
/// `error`, `warn`, `info`, `debug`, `trace`; `warn` if unset). Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_log_set_level(level: i32) -> kvf_status {
    guard(|| {
        init();
        let filter = match level {
            KVF_LOG_OFF => LevelFilter::Off,
            KVF_LOG_ERROR => LevelFilter::Error,
            KVF_LOG_WARN => LevelFilter::Warn,
            KVF_LOG_INFO => LevelFilter::Info,
            KVF_LOG_DEBUG => LevelFilter::Debug,
            KVF_LOG_TRACE => LevelFilter::Trace,
            _ => return Err(Error::invalid(format!("log level {level} is not in 0..=5"))),
        };
        log::set_max_level(filter);
        Ok(())
    })
}

/// Sends the log to a function instead of standard error; NULL goes back to standard error. Any
/// thread.
///
/// @param callback   Called for each record; see `kvf_log_fn`.
/// @param env        Handed to every call of `callback`.
/// @param finalizer  If not NULL, called with `env` once: when the callback has been replaced and
///                   the last call of it has returned. Not called if this function fails.
/// @return `KVF_ERR_NOT_ALLOWED` in a Rust program that has a logger of its own.
///
/// # Safety
/// `callback` may be called from any thread with `env` until `finalizer` has been called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_log_set_callback(
    callback: kvf_log_fn,
    env: *mut c_void,
    finalizer: kvf_free_fn,
) -> kvf_status {
    guard(|| {
        let installed = init();
        if callback.is_none() && finalizer.is_some() {
            return Err(Error::invalid("callback is NULL but finalizer is not"));
        }
        if callback.is_some() && !installed {
            return Err(Error::new(
                Status::NotAllowed,
                "the program that kvferry is linked into has a logger of its own",
            ));
        }
        let sink = callback.map(|call| {
            Arc::new(Sink {
                call,
                env,
                finalizer,
            })
        });
        let old = std::mem::replace(&mut *write(&SINK), sink);
        // Outside the lock: the finalizer is the program's code.
        drop(old);
        Ok(())
    })
}

struct Sink {
    call: unsafe extern "C" fn(*mut c_void, i32, *const c_char, *const c_char),
    env: *mut c_void,
    finalizer: kvf_free_fn,
}

// SAFETY: the program promised that `call` and `finalizer` may be used with `env` from any thread.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(finalizer) = self.finalizer {
            // SAFETY: the last reference is going, so no call is under way or to come.
            unsafe { finalizer(self.env) };
        }
    }
}

static SINK: RwLock<Option<Arc<Sink>>> = RwLock::new(None);

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let sink = read(&SINK).clone();
        match sink {
            Some(sink) => {
                let level = match record.level() {
                    Level::Error => KVF_LOG_ERROR,
                    Level::Warn => KVF_LOG_WARN,
                    Level::Info => KVF_LOG_INFO,
                    Level::Debug => KVF_LOG_DEBUG,
                    Level::Trace => KVF_LOG_TRACE,
                };
                let target = c_string(record.target());
                let message = c_string(record.args().to_string());
                // SAFETY: `sink` keeps `env` alive; the texts outlive the call.
                unsafe { (sink.call)(sink.env, level, target.as_ptr(), message.as_ptr()) };
            }
            None => {
                use std::io::Write;
                // A closed standard error is no reason to fail.
                let _ = writeln!(
                    std::io::stderr(),
                    "kvferry {}: {}",
                    record.level().as_str().to_ascii_lowercase(),
                    record.args()
                );
            }
        }
    }

    fn flush(&self) {}
}

/// Installs the logger with the first call that could log. Not when the library is loaded, and
/// not over one that the program has (a Rust program that uses the crate). Returns whether it is
/// ours.
pub(super) fn init() -> bool {
    static ONCE: Once = Once::new();
    static OURS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    ONCE.call_once(|| {
        if log::set_logger(&Logger).is_ok() {
            log::set_max_level(level_from_env().unwrap_or(LevelFilter::Warn));
            OURS.store(true, std::sync::atomic::Ordering::Release);
        }
    });
    OURS.load(std::sync::atomic::Ordering::Acquire)
}

fn level_from_env() -> Option<LevelFilter> {
    let value = std::env::var("KVF_LOG").ok()?;
    let parsed = value.parse::<LevelFilter>();
    if parsed.is_err() {
        eprintln!("kvferry warn: KVF_LOG=\"{value}\" is not a log level");
    }
    parsed.ok()
}
