//! Copying between two processes: process_vm_readv(2) and process_vm_writev(2).
//!
//! One call takes up to [`IOV_MAX`] pieces on each side. It may stop anywhere, having moved fewer
//! bytes than it was asked to: at the first piece that cannot be touched. What it returned is where
//! the next call goes on, and the call that moves nothing says why.

use libc::iovec;

use super::ranges::Span;
use super::runs::Run;
use super::tracers::ptrace_scope;
use crate::error::{Error, Status};
use crate::mapped::{Access, Mapped};
use crate::transport::Op;

/// Most pieces on one side of a call: UIO_MAXIOV of the kernel.
pub(super) const IOV_MAX: usize = 1024;

/// Where a copy stopped, and the error of the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stop {
    pub errno: i32,
    /// The run, and how much of it had been copied.
    pub run: Run,
    pub offset: u64,
}

/// Buffers for one thread's calls.
#[derive(Default)]
pub(super) struct Scratch {
    local: Vec<iovec>,
    remote: Vec<iovec>,
}

/// Copies runs with one of the two system calls, from or to the process with this id.
///
/// # Safety
///
/// The local ranges of `runs` must be memory of this process that may be read (for
/// [`Op::Write`]) or overwritten (for [`Op::Read`]) during the call. The kernel checks that they are
/// mapped, but not that they belong to nobody else.
pub(super) unsafe fn copy(
    op: Op,
    pid: u32,
    runs: &[Run],
    scratch: &mut Scratch,
) -> Result<(), Stop> {
    let pid = pid as libc::pid_t;
    drive(runs, scratch, |local, remote| {
        let (l, r) = (local.as_ptr(), remote.as_ptr());
        let (ln, rn) = (local.len() as libc::c_ulong, remote.len() as libc::c_ulong);
        let n = match op {
            // SAFETY: the arrays are live slices of the given lengths; the caller vouches for the
            // local memory that they name. The remote memory is the kernel's to check.
            Op::Read => unsafe { libc::process_vm_readv(pid, l, ln, r, rn, 0) },
            // SAFETY: as above; local memory is only read.
            Op::Write => unsafe { libc::process_vm_writev(pid, l, ln, r, rn, 0) },
        };
        usize::try_from(n).map_err(|_| {
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)
        })
    })
}

/// Calls `call` until all runs are copied, going on exactly where it stopped.
fn drive(
    runs: &[Run],
    scratch: &mut Scratch,
    mut call: impl FnMut(&[iovec], &[iovec]) -> Result<usize, i32>,
) -> Result<(), Stop> {
    let (mut at, mut offset) = (0, 0u64);
    while let Some(&run) = runs.get(at) {
        let asked = gather(&runs[at..], offset, scratch);
        let stop = |errno| Stop { errno, run, offset };
        match call(&scratch.local, &scratch.remote) {
            Ok(moved) if moved > 0 && moved as u64 <= asked => {
                offset += moved as u64;
                while let Some(run) = runs.get(at) {
                    if offset < run.len {
                        break;
                    }
                    offset -= run.len;
                    at += 1;
                }
            }
            Ok(_) => return Err(stop(libc::EIO)),
            Err(libc::EINTR) => {}
            Err(errno) => return Err(stop(errno)),
        }
    }
    Ok(())
}

/// Fills the buffers from `offset` of the first run on, and returns how many bytes that is. Pieces
/// that are contiguous on one side become one there: the kernel pins and maps per piece, so that a
/// contiguous side is cheaper even when the other one is scattered.
fn gather(runs: &[Run], mut offset: u64, scratch: &mut Scratch) -> u64 {
    scratch.local.clear();
    scratch.remote.clear();
    let mut bytes = 0;
    for run in runs {
        let len = run.len - offset;
        let local = joins(&scratch.local, run.local + offset);
        let remote = joins(&scratch.remote, run.remote + offset);
        if (!local && scratch.local.len() == IOV_MAX)
            || (!remote && scratch.remote.len() == IOV_MAX)
        {
            break;
        }
        append(&mut scratch.local, run.local + offset, len, local);
        append(&mut scratch.remote, run.remote + offset, len, remote);
        bytes += len;
        offset = 0;
    }
    bytes
}

fn joins(pieces: &[iovec], addr: u64) -> bool {
    pieces
        .last()
        .is_some_and(|last| last.iov_base as u64 + last.iov_len as u64 == addr)
}

fn append(pieces: &mut Vec<iovec>, addr: u64, len: u64, join: bool) {
    match pieces.last_mut() {
        Some(last) if join => last.iov_len += len as usize,
        _ => pieces.push(iovec {
            iov_base: addr as *mut libc::c_void,
            iov_len: len as usize,
        }),
    }
}

/// The error for a copy that stopped. `peer` names agent and process; `lost` is for a process that
/// has ended.
pub(super) fn explain(stop: Stop, op: Op, peer: &str) -> Error {
    let Stop { errno, run, offset } = stop;
    let left = run.len - offset;
    match errno {
        libc::ESRCH => Error::new(Status::PeerLost, format!("{peer} is gone")),
        libc::EFAULT => explain_fault(run, offset, op, peer),
        libc::EPERM | libc::EACCES => Error::new(
            Status::PermissionDenied,
            refusal(peer, ptrace_scope(), super::socket::effective_uid()),
        ),
        libc::ENOSYS => Error::new(
            Status::NotSupported,
            "this kernel has no process_vm_readv/process_vm_writev (CONFIG_CROSS_MEMORY_ATTACH), or \
             a seccomp filter hides them; the local transport cannot cross processes here",
        ),
        libc::ENOMEM | libc::EAGAIN => Error::new(
            Status::ResourceExhausted,
            format!("the kernel had no memory for copying {left} bytes from or to {peer}"),
        ),
        _ => Error::from_io(
            format!(
                "copying {left} bytes between local {:#x} and {:#x} of {peer}",
                run.local + offset,
                run.remote + offset
            ),
            &std::io::Error::from_raw_os_error(errno),
        ),
    }
}

/// Which of the two sides could not be touched: the system call does not say.
fn explain_fault(run: Run, offset: u64, op: Op, peer: &str) -> Error {
    let local = Span {
        start: run.local + offset,
        end: run.local + run.len,
    };
    let access = Mapped::now().access(local.start, local.start + 1);
    let local_at_fault = match (access, op) {
        (Access::ReadWrite, _) | (Access::ReadOnly, Op::Write) => false,
        (Access::ReadOnly, Op::Read) | (Access::Missing(_), _) => true,
    };
    let need = match (op, local_at_fault) {
        (Op::Read, true) | (Op::Write, false) => "writable",
        _ => "readable",
    };
    let (whose, at) = if local_at_fault {
        ("this agent".to_string(), local.start)
    } else {
        (peer.to_string(), run.remote + offset)
    };
    Error::new(
        Status::NotRegistered,
        format!(
            "{} bytes at {at:#x} of {whose} are registered but not (or no longer) mapped and \
             {need}",
            run.len - offset
        ),
    )
}

/// What to change when the kernel says EPERM.
fn refusal(peer: &str, scope: Option<u32>, uid: u32) -> String {
    let mut text =
        format!("the kernel does not let this process (user {uid}) touch the memory of {peer}. ");
    text.push_str(match scope {
        Some(1) => {
            "kernel.yama.ptrace_scope is 1: the owner permits its peers with PR_SET_PTRACER when \
             they connect, which did not take effect. Set kernel.yama.ptrace_scope=0, or give this \
             process CAP_SYS_PTRACE."
        }
        Some(2) => {
            "kernel.yama.ptrace_scope is 2: only processes with CAP_SYS_PTRACE may. Give it to this \
             process (docker: --cap-add SYS_PTRACE), or set kernel.yama.ptrace_scope to 0 or 1."
        }
        Some(3) => {
            "kernel.yama.ptrace_scope is 3: nobody may, until the next boot. Boot with a lower \
             value."
        }
        _ => {
            "Both processes must run as the same user and group, and the owner must be dumpable (no \
             set-uid program, no PR_SET_DUMPABLE=0)."
        }
    });
    text.push_str(
        " In a container, its seccomp profile must allow process_vm_readv and process_vm_writev: \
         docker run --cap-add SYS_PTRACE, or in Kubernetes securityContext.capabilities.add: \
         [SYS_PTRACE].",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(local: u64, remote: u64, len: u64) -> Run {
        Run { local, remote, len }
    }

    /// A kernel that moves at most `most` bytes a call, interrupts every third call, and stops
    /// before the byte `fault` of the remote side. Returns the copied (local, remote) byte pairs.
    fn fake_kernel(
        runs: &[Run],
        most: usize,
        fault: Option<u64>,
    ) -> (Vec<(u64, u64)>, Result<(), Stop>) {
        let (mut copied, mut calls) = (Vec::new(), 0);
        let flat = |pieces: &[iovec]| -> Vec<u64> {
            pieces
                .iter()
                .flat_map(|p| (0..p.iov_len as u64).map(|i| p.iov_base as u64 + i))
                .collect()
        };
        let result = drive(runs, &mut Scratch::default(), |local, remote| {
            assert!(local.len() <= IOV_MAX && remote.len() <= IOV_MAX);
            calls += 1;
            if calls % 3 == 0 {
                return Err(libc::EINTR);
            }
            let pairs: Vec<_> = flat(local).into_iter().zip(flat(remote)).collect();
            assert_eq!(flat(local).len(), flat(remote).len());
            let good = pairs
                .iter()
                .take(most)
                .take_while(|pair| Some(pair.1) != fault)
                .count();
            copied.extend_from_slice(&pairs[..good]);
            if good == 0 {
                Err(libc::EFAULT)
            } else {
                Ok(good)
            }
        });
        (copied, result)
    }

    #[test]
    fn partial_calls_lose_and_repeat_nothing() {
        let runs = [
            run(0, 1000, 10),
            run(50, 1010, 1),
            run(10, 2000, 30),
            run(40, 2030, 7),
        ];
        let expected: Vec<(u64, u64)> = runs
            .iter()
            .flat_map(|r| (0..r.len).map(|i| (r.local + i, r.remote + i)))
            .collect();
        for most in 1..60 {
            let (copied, result) = fake_kernel(&runs, most, None);
            assert_eq!(result, Ok(()));
            assert_eq!(copied, expected, "{most} bytes a call");
        }
    }

    #[test]
    fn the_stop_is_known_to_the_byte() {
        let runs = [run(0, 1000, 10), run(50, 2000, 30)];
        for most in [1, 7, 100] {
            let (copied, result) = fake_kernel(&runs, most, Some(2013));
            assert_eq!(copied.len(), 23);
            let stop = result.unwrap_err();
            assert_eq!(
                (stop.errno, stop.run, stop.offset),
                (libc::EFAULT, runs[1], 13)
            );
        }
    }

    #[test]
    fn many_small_runs_are_split_into_calls() {
        let runs: Vec<Run> = (0..3000).map(|i| run(i * 10, i * 20, 3)).collect();
        let (copied, result) = fake_kernel(&runs, usize::MAX, None);
        assert_eq!((copied.len(), result), (9000, Ok(())));
    }

    #[test]
    fn a_call_that_claims_nonsense_is_an_error() {
        let runs = [run(0, 0, 4)];
        for answer in [0, 5] {
            let result = drive(&runs, &mut Scratch::default(), |_, _| Ok(answer));
            assert_eq!(result.unwrap_err().errno, libc::EIO);
        }
    }

    #[test]
    fn own_memory_is_copied_through_the_kernel() {
        let from: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let mut to = vec![0u8; 100_000];
        let runs = [run(to.as_mut_ptr() as u64, from.as_ptr() as u64, 100_000)];
        let pid = std::process::id();
        // SAFETY: `to` is a live vector of that length that nothing else uses.
        unsafe { copy(Op::Read, pid, &runs, &mut Scratch::default()) }.unwrap();
        assert_eq!(from, to);
    }

    #[test]
    fn a_hole_names_the_side_and_the_range() {
        let mut to = vec![0u8; 64];
        let runs = [run(to.as_mut_ptr() as u64, 4096, 64)];
        let pid = std::process::id();
        // SAFETY: `to` is a live vector of that length that nothing else uses.
        let stop = unsafe { copy(Op::Read, pid, &runs, &mut Scratch::default()) }.unwrap_err();
        let error = explain(stop, Op::Read, "agent \"p\"");
        assert_eq!(error.status(), Status::NotRegistered);
        assert!(
            error
                .message()
                .contains("64 bytes at 0x1000 of agent \"p\""),
            "{error}"
        );
        let stop = Stop {
            errno: libc::EFAULT,
            run: run(4096, to.as_ptr() as u64, 64),
            offset: 0,
        };
        let error = explain(stop, Op::Read, "agent \"p\"");
        assert!(error.message().contains("0x1000 of this agent"), "{error}");
    }

    #[test]
    fn errors_say_what_to_change() {
        let stop = |errno| Stop {
            errno,
            run: run(0, 0, 1),
            offset: 0,
        };
        let of = |errno| explain(stop(errno), Op::Read, "agent \"p\" (process 7)");
        assert_eq!(of(libc::ESRCH).status(), Status::PeerLost);
        assert_eq!(of(libc::EPERM).status(), Status::PermissionDenied);
        assert_eq!(of(libc::ENOSYS).status(), Status::NotSupported);
        assert_eq!(of(libc::ENOMEM).status(), Status::ResourceExhausted);
        assert!(of(libc::ESRCH).message().contains("process 7"));
        for (scope, part) in [
            (Some(1), "ptrace_scope=0"),
            (Some(2), "CAP_SYS_PTRACE"),
            (Some(3), "until the next boot"),
            (Some(0), "same user"),
            (None, "same user"),
        ] {
            let text = refusal("agent \"p\"", scope, 1000);
            assert!(text.contains(part), "{text}");
            assert!(text.contains("seccomp") && text.contains("user 1000"));
        }
    }
}
