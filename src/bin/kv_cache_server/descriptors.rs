//! How many connections there can be: the limit of open files.
//!
//! The limit is raised as far as it goes. No more sessions are allowed than fit, and no more connections
//! are taken than leave some descriptors for the server itself.

use kvferry::error::{Error, Result, Status};
use kvferry::pool_server::Limits;

/// Descriptors that are the server's own: listeners, metrics, `/proc`.
const OWN: u64 = 64;
/// A client's requests, and what it subscribes to.
const PER_SESSION: usize = 2;

/// Raises the limit of open files, and fits the sessions to it: the default number is lowered, one
/// that was asked for is refused. Gives how many connections there can be.
///
/// # Errors
/// [`Status::ResourceExhausted`] for more sessions than there can be descriptors for.
pub fn fit(limits: &mut Limits) -> Result<usize> {
    let files = raise()?;
    let connections = usize::try_from(files.saturating_sub(OWN)).unwrap_or(usize::MAX);
    let most = connections / PER_SESSION;
    if limits.sessions <= most {
        return Ok(connections);
    }
    if limits.sessions != Limits::default().sessions {
        return Err(Error::new(
            Status::ResourceExhausted,
            format!(
                "--max-sessions {}: with at most {files} open files (ulimit -Hn) it can be {most}",
                limits.sessions
            ),
        ));
    }
    log::warn!("at most {most} sessions: there can be only {files} open files (ulimit -Hn)");
    limits.sessions = most;
    Ok(connections)
}

/// Raises the soft limit to the hard one, and gives what it is then.
fn raise() -> Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct lives for the call and is written to only.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(Error::os("cannot get the limit of open files"));
    }
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: the struct lives for the call and is read only.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } {
        0 => Ok(raised.rlim_cur),
        // What there is, is enough or refused.
        _ => Ok(limit.rlim_cur),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_fit_into_the_open_files() {
        let mut limits = Limits {
            sessions: usize::MAX,
            ..Limits::default()
        };
        let e = fit(&mut limits).unwrap_err();
        assert_eq!(e.status(), Status::ResourceExhausted);
        limits.sessions = 1;
        assert!(fit(&mut limits).unwrap() >= 2);
        assert_eq!(limits.sessions, 1);
    }
}
