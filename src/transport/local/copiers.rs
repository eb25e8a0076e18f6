//! Threads that copy.
//!
//! A transfer is copied by the thread that posts it. With `copy_threads` above one, helpers join in:
//! they take batches from the same counter until none are left. They are started with the first
//! transfer that has work for them, sleep otherwise, and end with the agent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::peer::{Link, Peer};
use super::registry::{Claim, Pass};
use super::runs::{Plan, Run};
use super::vm;
use crate::error::{Error, Result, Status};
use crate::sync::lock;
use crate::transport::Op;

/// Most threads that copy for one agent.
pub(super) const MAX_THREADS: usize = 64;

/// One posted transfer.
pub(super) struct Job {
    pub op: Op,
    pub plan: Arc<Plan>,
    /// The claims on the local, and on the remote ranges.
    pub local: Vec<Claim>,
    pub remote: Vec<Claim>,
    pub peer: Arc<Peer>,
    /// The connection to a peer in another process; `None` within this one.
    pub link: Option<Arc<Link>>,
    pub cancel: Arc<AtomicBool>,
    next: AtomicUsize,
    moved: AtomicU64,
    crew: Mutex<Crew>,
    left: Condvar,
}

#[derive(Default)]
struct Crew {
    helpers: usize,
    /// Nobody may join any more.
    over: bool,
    failure: Option<Error>,
}

impl Job {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        op: Op,
        plan: Arc<Plan>,
        local: Vec<Claim>,
        remote: Vec<Claim>,
        peer: Arc<Peer>,
        link: Option<Arc<Link>>,
        cancel: Arc<AtomicBool>,
    ) -> Job {
        Job {
            op,
            plan,
            local,
            remote,
            peer,
            link,
            cancel,
            next: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            crew: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Bytes copied so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Copies batches until none are left or one has failed.
    fn work(&self) {
        let mut scratch = vm::Scratch::default();
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.plan.batches() {
                return;
            }
            if let Err(e) = self.batch(self.plan.batch(i), &mut scratch) {
                // No more batches for anybody.
                self.next.store(self.plan.batches(), Ordering::Relaxed);
                lock(&self.crew).failure.get_or_insert(e);
                return;
            }
        }
    }

    fn batch(&self, runs: &[Run], scratch: &mut vm::Scratch) -> Result<()> {
        if self.cancel.load(Ordering::Acquire) {
            return Err(Error::new(
                Status::Canceled,
                format!(
                    "canceled after {} of {} bytes",
                    self.moved(),
                    self.plan.bytes
                ),
            ));
        }
        self.peer.check()?;
        let _local = enter(&self.local, runs, true)?;
        let _remote = enter(&self.remote, runs, false)?;
        match &self.link {
            None => runs.iter().for_each(|&run| copy_here(self.op, run)),
            Some(link) => self.copy_there(link, runs, scratch)?,
        }
        let bytes: u64 = runs.iter().map(|run| run.len).sum();
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn copy_there(&self, link: &Link, runs: &[Run], scratch: &mut vm::Scratch) -> Result<()> {
        if link.is_dead() {
            return Err(self.peer.lose("its process has ended"));
        }
        // SAFETY: the caller holds passes on the local ranges: they are registered, which is the
        // user's word that transfers may use them, and deregistering waits for the passes.
        unsafe { vm::copy(self.op, link.pid, runs, scratch) }.map_err(|stop| {
            let error = vm::explain(stop, self.op, &self.peer.called(link));
            if error.status() == Status::PeerLost || link.is_dead() {
                return self.peer.lose("its process has ended");
            }
            error
        })
    }

    /// A helper's share.
    fn help(&self) {
        {
            let mut crew = lock(&self.crew);
            if crew.over {
                return;
            }
            crew.helpers += 1;
        }
        let _leaving = Leaving(self);
        self.work();
    }

    /// Waits for the helpers, and says how it went.
    fn finish(&self) -> Result<()> {
        let mut crew = lock(&self.crew);
        crew.over = true;
        while crew.helpers > 0 {
            crew = match self.left.wait(crew) {
                Ok(crew) => crew,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
        crew.failure.take().map_or(Ok(()), Err)
    }
}

/// Takes a helper off the list, also when it panics.
struct Leaving<'a>(&'a Job);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut crew = lock(&self.0.crew);
        crew.helpers -= 1;
        if std::thread::panicking() {
            crew.failure
                .get_or_insert_with(|| Error::new(Status::Internal, "a copying thread panicked"));
        }
        self.0.left.notify_all();
    }
}

/// Lets a batch into the registries of one side.
fn enter<'a>(claims: &'a [Claim], runs: &[Run], local: bool) -> Result<Vec<Pass<'a>>> {
    let spans = || runs.iter().map(|run| run.side(local));
    claims.iter().map(|claim| claim.enter(spans())).collect()
}

/// Copies within this process.
fn copy_here(op: Op, run: Run) {
    let (from, to) = match op {
        Op::Read => (run.remote, run.local),
        Op::Write => (run.local, run.remote),
    };
    // SAFETY: both ranges were found mapped with the rights that are needed when they were
    // registered, and the passes that the caller holds keep both registered during the copy. That
    // they stay mapped until they are deregistered is what registering promises. `copy` allows them
    // to overlap. No reference to this memory exists here; that other code may use it at the same
    // time is the nature of a transfer, as with a network card's.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, run.len as usize) };
}

/// The helpers of one agent.
pub(super) struct Copiers {
    helpers: usize,
    hall: Arc<Hall>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Where helpers wait.
#[derive(Default)]
struct Hall {
    board: Mutex<Board>,
    called: Condvar,
}

#[derive(Default)]
struct Board {
    jobs: VecDeque<Arc<Job>>,
    closed: bool,
    /// How many helpers there are, once it was tried to start them.
    helpers: Option<usize>,
}

impl Copiers {
    /// `threads` that copy, the posting one included.
    pub fn new(threads: usize) -> Copiers {
        Copiers {
            helpers: threads.saturating_sub(1),
            hall: Arc::default(),
            threads: Mutex::default(),
        }
    }

    pub fn threads(&self) -> usize {
        self.helpers + 1
    }

    /// Runs a job to its end on this thread and the helpers.
    pub fn run(&self, job: &Arc<Job>) -> Result<()> {
        let wanted = self.helpers.min(job.plan.batches().saturating_sub(1));
        if wanted > 0 {
            self.call(job, wanted);
        }
        // Helpers may be inside, so even a panic has to wait for them.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        let result = job.finish();
        if wanted > 0 {
            let mut board = lock(&self.hall.board);
            board.jobs.retain(|other| !Arc::ptr_eq(other, job));
        }
        match work {
            Ok(()) => result,
            Err(_) => Err(Error::new(Status::Internal, "copying panicked")),
        }
    }

    fn call(&self, job: &Arc<Job>, helpers: usize) {
        let mut board = lock(&self.hall.board);
        if board.closed {
            return;
        }
        let present = *board.helpers.get_or_insert_with(|| self.start());
        for _ in 0..helpers.min(present) {
            board.jobs.push_back(job.clone());
            self.hall.called.notify_one();
        }
    }

    fn start(&self) -> usize {
        let mut threads = lock(&self.threads);
        for i in 0..self.helpers {
            let hall = self.hall.clone();
            match crate::threads::spawn(&format!("kvf-copy-{}", i + 1), move || hall.attend()) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    log::warn!("local transport: copying with fewer threads than asked for: {e}");
                    break;
                }
            }
        }
        threads.len()
    }

    /// Sends the helpers home; with `join`, waits until they are gone.
    pub fn close(&self, join: bool) {
        {
            let mut board = lock(&self.hall.board);
            board.closed = true;
            board.jobs.clear();
        }
        self.hall.called.notify_all();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if join {
                // A panic has been reported as the job's failure.
                let _ = thread.join();
            }
        }
    }

    /// Forgets the helpers in a child process, which does not have them.
    pub fn abandon(&mut self) {
        let threads = self.threads.get_mut();
        let threads = threads.unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(threads)
            .into_iter()
            .for_each(std::mem::forget);
    }
}

impl Hall {
    fn attend(&self) {
        let mut board = lock(&self.board);
        loop {
            if board.closed {
                return;
            }
            if let Some(job) = board.jobs.pop_front() {
                drop(board);
                let job = job;
                // A panic ends the job, not the helper.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.help()));
                drop(job);
                board = lock(&self.board);
                continue;
            }
            board = match self.called.wait(board) {
                Ok(board) => board,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
    }
}
