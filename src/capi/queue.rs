//! The queue: transfers in the background.

use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::Lazy;

use super::agent::{AGENTS, kvf_agent};
use super::guard::guard;
use super::handle::Table;
use super::input::{Plain, bounded, flag, nonzero, options, out, slice, texts};
use super::plan::{PLANS, group_blocks, kvf_group_blocks, kvf_plan};
use super::status::kvf_status;
use crate::error::{Error, Result, Status};
use crate::plan::Request;
use crate::queue::{Completion, Guard, MAX_GUARDS, Queue, QueueOptions, Submission};

/// A background thread that runs transfers of one agent. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_queue {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// How a queue works. Start from `kvf_queue_options_default()`; zero is the default of every
/// field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_queue_options {
    /// `sizeof(kvf_queue_options)`.
    pub struct_size: u32,
    /// Requests that may be outstanding: submitted, and their completions not yet polled. 0 is
    /// 4,096.
    pub capacity: u32,
    /// Bytes that one post moves at most. Smaller slices let requests take turns more often,
    /// larger ones cost fewer posts. 0 is 8 MiB, and up to 64 MiB for a request that is alone in
    /// the queue, while the transport takes posts quickly.
    pub slice_bytes: u64,
    /// Descriptors that one post has at most. 0 is 1,024, and up to 8,192 in the same case.
    pub slice_descriptors: u32,
    /// Slices of one request that may be under way at the same time. 0 is 4.
    pub slices_in_flight: u32,
}

// SAFETY: integers only.
unsafe impl Plain for kvf_queue_options {
    const FIRST_SIZE: usize = 24;
}

/// A condition on a peer's memory: the 64-bit word at `addr` is below `limit`, in that machine's
/// byte order. It is read after all bytes of a request are in. A producer that raises its word
/// before it uses blocks again lets its readers know by this that they have not read too late.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_guard {
    /// Index of the peer in the plan.
    pub peer: u32,
    /// Zero.
    pub reserved: u32,
    /// Address in that peer's registered host memory.
    pub addr: u64,
    /// What the word must be below.
    pub limit: u64,
}

/// A request to hand over. Start from `kvf_submission_default()`. All of it is copied by the
/// call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_submission {
    /// `sizeof(kvf_submission)`.
    pub struct_size: u32,
    /// 1 sends a notification even if `notification_len` is 0.
    pub has_notification: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// What goes where.
    pub plan: kvf_plan,
    /// For each peer of the plan the name of its agent, as `kvf_agent_add_remote()` gave it; an
    /// empty string will do for peers that are idle.
    pub agents: *const *const c_char,
    /// Their number: that of the plan's peers.
    pub agents_len: usize,
    /// Block ids, one entry for each group of the plan.
    pub groups: *const kvf_group_blocks,
    /// Their number.
    pub groups_len: usize,
    /// Tokens of the request that the producer holds, from the first one; 0 is "not stated".
    pub tokens: u64,
    /// Sent to each peer that is not idle when all bytes are in. Any bytes, at most 16 MiB.
    pub notification: *const u8,
    /// Its length; 0 sends none, unless `has_notification` is 1.
    pub notification_len: usize,
    /// The request fails with `KVF_ERR_TIMEOUT` if it is not through after so many milliseconds;
    /// 0 is no limit.
    pub deadline_ms: u64,
    /// Conditions that must hold after all bytes are in; without them the request fails with
    /// `KVF_ERR_EXPIRED` and nobody is notified.
    pub guards: *const kvf_guard,
    /// Their number, at most 1,024.
    pub guards_len: usize,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_submission {
    const FIRST_SIZE: usize = 80;
}

/// Length of the text fields of `kvf_completion`, the terminating NUL included.
pub const KVF_COMPLETION_TEXT: usize = 256;

/// What became of a request.
///
/// With status `KVF_OK` every byte is in place; with an error any part of the destination blocks
/// may have been written. Either way nothing will be written any more: the blocks are the
/// caller's again. Times are in nanoseconds since the request was submitted; 0 is "did not get
/// there".
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_completion {
    /// The ticket that `kvf_queue_submit()` gave.
    pub ticket: u64,
    /// How it ended.
    pub status: kvf_status,
    /// Number of peers that could not be notified although all bytes are in; `message` names one.
    pub not_notified: u32,
    /// When it was submitted, in nanoseconds of the monotonic clock.
    pub submitted_ns: u64,
    /// When its ranges were known.
    pub planned_ns: u64,
    /// When its first slice was posted.
    pub posted_ns: u64,
    /// When its last transfer had come to rest and its peers were notified.
    pub finished_ns: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes that were asked for.
    pub total_bytes: u64,
    /// Ranges before neighbouring blocks were merged.
    pub descriptors_before: u64,
    /// Ranges after merging.
    pub descriptors: u64,
    /// Posts.
    pub slices: u64,
    /// Zero.
    pub reserved: [u64; 4],
    /// What went wrong, NUL-terminated UTF-8, cut to fit; empty if nothing did.
    pub message: [c_char; KVF_COMPLETION_TEXT],
    /// The backend of the first post, NUL-terminated UTF-8; empty if there was none.
    pub backend: [c_char; 32],
}

/// Figures of a queue since it was created.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kvf_queue_stats {
    /// Requests accepted.
    pub submitted: u64,
    /// Requests that ended well.
    pub succeeded: u64,
    /// Requests that ended with an error, cancelled ones included.
    pub failed: u64,
    /// Requests that were refused because the queue was full.
    pub refused: u64,
    /// Requests that are accepted and not through.
    pub running: u64,
    /// Completions that wait to be polled.
    pub unpolled: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Ranges before merging.
    pub descriptors_before: u64,
    /// Ranges after merging.
    pub descriptors: u64,
    /// Posts.
    pub slices: u64,
    /// CPU time of the queue's thread in nanoseconds.
    pub thread_cpu_ns: u64,
    /// Zero.
    pub reserved: [u64; 5],
}

static QUEUES: Lazy<Table<Queue>> = Lazy::new(|| Table::new(7, "queue"));

/// Starts a queue on an agent. It has one thread, which sleeps while there is nothing to do.
///
/// The queue keeps the agent's memory alive, but requests fail once the agent has been destroyed:
/// destroy the queue first.
///
/// @param options  May be NULL.
/// @param queue    Receives the handle; end it with `kvf_queue_destroy()`. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_create(
    agent: kvf_agent,
    options: *const kvf_queue_options,
    queue: *mut kvf_queue,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract, here and in every block below of this file.
        let (options, queue) = unsafe { (queue_options(options)?, out(queue, "queue")?) };
        let created = Queue::create(AGENTS.get(agent.id)?, options)?;
        queue.write(kvf_queue {
            id: QUEUES.insert(Arc::new(created))?,
        });
        Ok(())
    })
}

/// Hands a request over and returns at once; the work is done on the queue's thread. What is
/// wrong with the block ids shows in the completion, and only what can be seen at a glance is
/// refused here.
///
/// @param ticket  Receives the request's name: never 0, never used twice by one queue.
/// @return `KVF_ERR_BUSY` if as many requests as the queue holds are outstanding: poll, then
///         repeat. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_submit(
    queue: kvf_queue,
    submission: *const kvf_submission,
    ticket: *mut u64,
) -> kvf_status {
    guard(|| {
        if submission.is_null() {
            return Err(Error::invalid("submission is NULL"));
        }
        // SAFETY: the caller's contract.
        let (s, ticket) = unsafe { (options(submission, "submission")?, out(ticket, "ticket")?) };
        if s.reserved != [0; 3] {
            return Err(Error::invalid("submission.reserved is not zero"));
        }
        // SAFETY: the caller's contract.
        let (agents, groups, notification) = unsafe {
            (
                texts(s.agents, s.agents_len, "submission.agents")?,
                group_blocks(s.groups, s.groups_len, "submission.groups")?,
                slice(
                    s.notification,
                    s.notification_len,
                    "submission.notification",
                )?,
            )
        };
        let forced = flag(s.has_notification, "submission.has_notification")?;
        let queue = QUEUES.get(queue.id)?;
        let plan = PLANS.get(s.plan.id)?;
        // SAFETY: the caller's contract.
        let guards = unsafe { guards(&s) }?;
        let accepted = queue.submit(&Submission {
            plan: &plan,
            agents: &agents,
            request: Request {
                groups: &groups,
                tokens: nonzero(s.tokens),
            },
            guards: &guards,
            notification: (forced || !notification.is_empty()).then_some(notification),
            deadline: nonzero(s.deadline_ms).map(Duration::from_millis),
        })?;
        ticket.write(accepted);
        Ok(())
    })
}

/// Takes completions, oldest first. Never blocks.
///
/// @param completions  Room for `max` of them.
/// @param len          Receives how many were written. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_poll(
    queue: kvf_queue,
    completions: *mut kvf_completion,
    max: usize,
    len: *mut usize,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let len = unsafe { out(len, "len") }?;
        if max > 0 {
            // SAFETY: the caller's contract; checks for NULL and alignment.
            unsafe { out(completions, "completions") }?;
        }
        let taken = QUEUES.get(queue.id)?.poll(max);
        for (i, c) in taken.iter().enumerate() {
            // SAFETY: room for `max` by the caller's contract, and `i` is below it.
            unsafe { completions.add(i).write(completion(c)) };
        }
        len.write(taken.len());
        Ok(())
    })
}

/// Blocks until there is a completion to poll, the queue has ended, or the time is over.
///
/// @param ready  Receives 1 if there is one, 0 if not. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_wait(
    queue: kvf_queue,
    timeout_ms: u64,
    ready: *mut u8,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let ready = unsafe { out(ready, "ready") }?;
        let there = QUEUES
            .get(queue.id)?
            .wait(Duration::from_millis(timeout_ms));
        ready.write(there.into());
        Ok(())
    })
}

/// Asks a request to stop. It completes with `KVF_ERR_CANCELED` once it has come to rest, or as
/// it would have if it was through already. Harmless on one that has completed.
///
/// @return `KVF_ERR_NOT_FOUND` for a ticket that this queue has not given out. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_queue_cancel(queue: kvf_queue, ticket: u64) -> kvf_status {
    guard(|| QUEUES.get(queue.id)?.cancel(ticket))
}

/// Figures since the queue was created. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_stats_get(
    queue: kvf_queue,
    stats: *mut kvf_queue_stats,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let stats = unsafe { out(stats, "stats") }?;
        let s = QUEUES.get(queue.id)?.stats();
        stats.write(kvf_queue_stats {
            submitted: s.submitted,
            succeeded: s.succeeded,
            failed: s.failed,
            refused: s.refused,
            running: s.running,
            unpolled: s.unpolled,
            bytes: s.bytes,
            descriptors_before: s.descriptors_before,
            descriptors: s.descriptors,
            slices: s.slices,
            thread_cpu_ns: s.thread_cpu_ns,
            reserved: [0; 5],
        });
        Ok(())
    })
}

/// A file descriptor that is readable while there are completions to poll, for event loops. It
/// belongs to the queue and is closed with it: wait on it, do not read or close it. Any thread.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_queue_event_fd(queue: kvf_queue, fd: *mut c_int) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let fd = unsafe { out(fd, "fd") }?;
        fd.write(QUEUES.get(queue.id)?.event_fd());
        Ok(())
    })
}

/// Ends a queue. Requests that it has accepted are carried out for up to `drain_ms`; then what is
/// left is cancelled and waited for, for as long again but at least 100 ms. Completions that have
/// not been polled are lost.
///
/// @return `KVF_ERR_TIMEOUT` if something was still moving at the end of that: its blocks must
///         not be used before `kvf_agent_destroy()` has returned `KVF_OK`. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_queue_destroy(queue: kvf_queue, drain_ms: u64) -> kvf_status {
    guard(|| {
        QUEUES
            .remove(queue.id)?
            .close(Duration::from_millis(drain_ms))
    })
}

/// # Safety
/// `ptr` is null or valid.
pub(super) unsafe fn queue_options(ptr: *const kvf_queue_options) -> Result<QueueOptions> {
    // SAFETY: by contract.
    let o = unsafe { options(ptr, "options") }?;
    Ok(QueueOptions {
        capacity: o.capacity as usize,
        slice_bytes: o.slice_bytes,
        slice_descriptors: o.slice_descriptors as usize,
        slices_in_flight: o.slices_in_flight as usize,
    })
}

/// # Safety
/// The submission's guards are as many as it says.
unsafe fn guards(s: &kvf_submission) -> Result<Vec<Guard>> {
    // SAFETY: by contract.
    let given = unsafe { bounded(s.guards, s.guards_len, MAX_GUARDS, "submission.guards") }?;
    let one = |(i, g): (usize, &kvf_guard)| match g.reserved {
        0 => Ok(Guard {
            peer: g.peer,
            addr: g.addr,
            limit: g.limit,
        }),
        set => Err(Error::invalid(format!(
            "submission.guards[{i}].reserved is {set}; it must be zero"
        ))),
    };
    given.iter().enumerate().map(one).collect()
}

fn completion(c: &Completion) -> kvf_completion {
    let (status, message) = match &c.result {
        Ok(()) => (Status::Ok, String::new()),
        Err(e) => (e.status(), e.message().to_owned()),
    };
    let message = match c.not_notified.first() {
        Some((name, e)) => format!("\"{name}\" could not be notified: {e}"),
        None => message,
    };
    let r = &c.record;
    kvf_completion {
        ticket: c.ticket,
        status: status as kvf_status,
        not_notified: u32::try_from(c.not_notified.len()).unwrap_or(u32::MAX),
        submitted_ns: r.submitted_ns,
        planned_ns: r.planned_ns,
        posted_ns: r.posted_ns,
        finished_ns: r.finished_ns,
        bytes: r.bytes,
        total_bytes: r.total_bytes,
        descriptors_before: r.descriptors_before,
        descriptors: r.descriptors,
        slices: r.slices,
        reserved: [0; 4],
        message: fixed(&message),
        backend: fixed(&r.backend),
    }
}

/// Text in an array: cut at a character, NUL-terminated.
fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    let mut end = text.len().min(N - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text[..end].bytes().take_while(|&b| b != 0);
    for (to, from) in array.iter_mut().zip(text) {
        *to = from as c_char;
    }
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_characters() {
        let text = |a: &[c_char]| {
            let bytes: Vec<u8> = a.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(text(&fixed::<8>("")), "");
        assert_eq!(text(&fixed::<8>("1234567")), "1234567");
        assert_eq!(text(&fixed::<8>("12345678")), "1234567");
        assert_eq!(text(&fixed::<8>("123456é")), "123456");
        assert_eq!(text(&fixed::<8>("ab\0cd")), "ab");
    }
}
