//! Prepared lists and transfers.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::copiers::Job;
use super::endpoint::Core;
use super::peer::Peer;
use super::ranges::Span;
use super::registry::{Claim, Touch};
use super::runs::{Merger, Plan};
use crate::clock::monotonic_ns;
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, StridedDesc};
use crate::sync::lock;
use crate::transport::{
    Cost, Descs, Op, PreparedList, Telemetry, Transfer, TransferOptions, TransferState,
};

/// Ranges that were checked once and are picked from by index.
pub(super) struct List {
    core: Arc<Core>,
    /// `None` for the local side.
    peer: Option<Arc<Peer>>,
    ranges: Ranges,
    claims: Vec<Claim>,
}

/// Ranges as the caller described them: rows are not written out.
enum Ranges {
    Flat(Vec<MemDesc>),
    Strided {
        rows: Vec<StridedDesc>,
        /// The number of ranges in all rows before, and in the row itself.
        ends: Vec<usize>,
    },
}

impl Ranges {
    /// Copies the caller's description and refuses what cannot be ranges at all.
    fn of(descs: Descs<'_>) -> Result<Ranges> {
        match descs {
            Descs::Flat(flat) => {
                if flat.len() > i32::MAX as usize {
                    bail!(
                        Status::InvalidArgument,
                        "{} ranges; a list holds {}",
                        flat.len(),
                        i32::MAX
                    );
                }
                for range in flat {
                    Span::of(range)?;
                }
                Ok(Ranges::Flat(flat.to_vec()))
            }
            Descs::Strided(rows) => {
                let mut total = 0u64;
                let mut ends = Vec::with_capacity(rows.len());
                for (i, row) in rows.iter().enumerate() {
                    extent(row).map_err(|e| e.context(format!("row {i}")))?;
                    total = total.saturating_add(row.count);
                    if total > i32::MAX as u64 {
                        bail!(
                            Status::InvalidArgument,
                            "rows 0 to {i} make {total} ranges; a list holds {}",
                            i32::MAX
                        );
                    }
                    ends.push(total as usize);
                }
                let rows = rows.to_vec();
                Ok(Ranges::Strided { rows, ends })
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Ranges::Flat(flat) => flat.len(),
            Ranges::Strided { ends, .. } => ends.last().copied().unwrap_or(0),
        }
    }

    #[inline]
    fn get(&self, i: usize) -> Option<MemDesc> {
        match self {
            Ranges::Flat(flat) => flat.get(i).copied(),
            Ranges::Strided { rows, ends } => {
                let row = ends.partition_point(|&end| end <= i);
                let first = row.checked_sub(1).map_or(0, |before| ends[before]);
                rows.get(row).map(|row| in_row(row, (i - first) as u64))
            }
        }
    }

    fn spans(&self) -> Box<dyn Iterator<Item = Span> + '_> {
        match self {
            Ranges::Flat(flat) => Box::new(flat.iter().map(span)),
            Ranges::Strided { rows, .. } => Box::new(
                rows.iter()
                    .flat_map(|row| (0..row.count).map(|i| span(&in_row(row, i)))),
            ),
        }
    }

    /// Rows as single pieces, gaps included: if these are registered, so are all ranges, and a row
    /// of a million pages is checked in one step.
    fn extents(&self) -> Option<Vec<Span>> {
        match self {
            Ranges::Flat(_) => None,
            Ranges::Strided { rows, .. } => rows
                .iter()
                .filter_map(|row| extent(row).transpose().map(Result::ok))
                .collect(),
        }
    }
}

/// The addresses of a range that has been checked by [`Span::of`].
fn span(range: &MemDesc) -> Span {
    Span {
        start: range.addr,
        end: range.addr.saturating_add(range.len),
    }
}

/// Range `i` of a row whose extent has been checked.
fn in_row(row: &StridedDesc, i: u64) -> MemDesc {
    MemDesc {
        addr: row.addr.wrapping_add(row.stride.wrapping_mul(i)),
        len: row.len,
        device: row.device,
    }
}

/// From the first byte of a row to its last; `None` for an empty row.
fn extent(row: &StridedDesc) -> Result<Option<Span>> {
    let Some(last) = row.count.checked_sub(1) else {
        return Ok(None);
    };
    let len = row
        .stride
        .checked_mul(last)
        .and_then(|distance| distance.checked_add(row.len));
    let Some(len) = len else {
        bail!(
            Status::InvalidArgument,
            "{} ranges of {} bytes, {} apart, wrap around",
            row.count,
            row.len,
            row.stride
        );
    };
    Span::of(&MemDesc {
        addr: row.addr,
        len: row.len,
        device: row.device,
    })?;
    Span::of(&MemDesc {
        addr: row.addr,
        len,
        device: row.device,
    })
    .map(Some)
}

impl List {
    /// Checks ranges of this agent (`peer` is `None`) or of a peer, and keeps them.
    pub fn new(core: Arc<Core>, peer: Option<Arc<Peer>>, descs: Descs<'_>) -> Result<List> {
        let ranges = Ranges::of(descs)?;
        let claims = match ranges.extents() {
            Some(extents) => claim(&core, peer.as_deref(), || extents.iter().copied())
                .or_else(|_| claim(&core, peer.as_deref(), || ranges.spans()))?,
            None => claim(&core, peer.as_deref(), || ranges.spans())?,
        };
        Ok(List {
            core,
            peer,
            ranges,
            claims,
        })
    }

    #[inline]
    fn pick(&self, index: i32, position: usize) -> Result<MemDesc> {
        // A negative index becomes one that no list has.
        match self.ranges.get(index as u32 as usize) {
            Some(range) => Ok(range),
            None => Err(self.no_such_index(index, position)),
        }
    }

    #[cold]
    fn no_such_index(&self, index: i32, position: usize) -> Error {
        let side = if self.peer.is_some() {
            "remote"
        } else {
            "local"
        };
        Error::invalid(format!(
            "{side} index {index} at position {position}: the list has {} ranges",
            self.ranges.len()
        ))
    }
}

fn claim<I: Iterator<Item = Span>>(
    core: &Core,
    peer: Option<&Peer>,
    spans: impl Fn() -> I,
) -> Result<Vec<Claim>> {
    match peer {
        None => Ok(vec![core.registry().claim(Touch::Reads, spans())?]),
        Some(peer) => peer.claim(Touch::Reads, spans),
    }
}

impl PreparedList for List {
    fn len(&self) -> usize {
        self.ranges.len()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How far the last post has come.
enum Stage {
    New,
    Running(Running),
    Ended(Result<()>),
}

/// A post under way.
struct Running {
    since: Instant,
    job: Option<Arc<Job>>,
}

/// One transfer.
pub(super) struct Copy {
    core: Arc<Core>,
    op: Op,
    peer: Arc<Peer>,
    plan: Arc<Plan>,
    local: Vec<Claim>,
    remote: Vec<Claim>,
    notification: Option<Vec<u8>>,
    stage: Mutex<Stage>,
    /// Set by [`Transfer::cancel`] for the post under way.
    cancel: Arc<AtomicBool>,
    figures: Mutex<Option<Telemetry>>,
}

/// What a transfer does to its local and to its remote ranges.
fn touches(op: Op) -> (Touch, Touch) {
    match op {
        Op::Read => (Touch::Writes, Touch::Reads),
        Op::Write => (Touch::Reads, Touch::Writes),
    }
}

impl Copy {
    /// From two prepared lists and the indices of the pairs.
    pub fn picked(
        core: &Arc<Core>,
        op: Op,
        local: (&dyn PreparedList, &[i32]),
        remote: (&dyn PreparedList, &[i32]),
        options: TransferOptions<'_>,
    ) -> Result<Copy> {
        let (local, local_indices) = (own_list(core, local.0, "local")?, local.1);
        let (remote, remote_indices) = (own_list(core, remote.0, "remote")?, remote.1);
        if local.peer.is_some() {
            bail!(
                Status::InvalidArgument,
                "the list given as the local side was prepared for a remote agent"
            );
        }
        let Some(peer) = remote.peer.clone() else {
            bail!(
                Status::InvalidArgument,
                "the list given as the remote side was prepared as a local one"
            );
        };
        same_count(local_indices.len(), remote_indices.len())?;
        peer.check()?;
        let mut merger = Merger::with_capacity(local_indices.len());
        for (i, (&l, &r)) in local_indices.iter().zip(remote_indices).enumerate() {
            merger.push(local.pick(l, i)?, remote.pick(r, i)?)?;
        }
        let plan = merger.finish(core.copiers.threads());
        let (on_local, on_remote) = touches(op);
        let narrow = |claims: &[Claim], touch, local| {
            let claims = claims.iter();
            claims
                .map(|c| c.narrowed(touch, plan.spans(local)))
                .collect::<Result<Vec<_>>>()
        };
        let local = narrow(&local.claims, on_local, true)?;
        let remote = narrow(&remote.claims, on_remote, false)?;
        Copy::new(core, op, peer, plan, (local, remote), options)
    }

    /// From two arrays of ranges.
    pub fn direct(
        core: &Arc<Core>,
        op: Op,
        local: &[MemDesc],
        remote: &[MemDesc],
        peer: Arc<Peer>,
        options: TransferOptions<'_>,
    ) -> Result<Copy> {
        same_count(local.len(), remote.len())?;
        peer.check()?;
        // All are looked at before any is merged, so that a message names the range as it was given.
        let spans = |ranges: &[MemDesc]| ranges.iter().map(Span::of).collect::<Result<Vec<_>>>();
        let (local_spans, remote_spans) = (spans(local)?, spans(remote)?);
        let (on_local, on_remote) = touches(op);
        let local_claim = core
            .registry()
            .claim(on_local, local_spans.iter().copied())?;
        let remote_claims = peer.claim(on_remote, || remote_spans.iter().copied())?;
        let mut merger = Merger::with_capacity(local.len());
        for (&l, &r) in local.iter().zip(remote) {
            merger.push(l, r)?;
        }
        let plan = merger.finish(core.copiers.threads());
        Copy::new(
            core,
            op,
            peer,
            plan,
            (vec![local_claim], remote_claims),
            options,
        )
    }

    fn new(
        core: &Arc<Core>,
        op: Op,
        peer: Arc<Peer>,
        plan: Plan,
        claims: (Vec<Claim>, Vec<Claim>),
        options: TransferOptions<'_>,
    ) -> Result<Copy> {
        super::endpoint::check_backends(options.backends)?;
        if let Some(payload) = options.notification {
            super::endpoint::check_payload(payload)?;
        }
        Ok(Copy {
            core: core.clone(),
            op,
            peer,
            plan: Arc::new(plan),
            local: claims.0,
            remote: claims.1,
            notification: options.notification.map(<[u8]>::to_vec),
            stage: Mutex::new(Stage::New),
            cancel: Arc::default(),
            figures: Mutex::default(),
        })
    }

    /// Takes the transfer into the running stage, which only one thread can do.
    fn begin(&self) -> Result<Instant> {
        let since = Instant::now();
        let mut stage = lock(&self.stage);
        if let Stage::Running(_) = *stage {
            bail!(
                Status::RepostActive,
                "the transfer is being copied by another thread; wait until its state is final"
            );
        }
        self.cancel.store(false, Ordering::Release);
        *stage = Stage::Running(Running { since, job: None });
        Ok(since)
    }

    /// Moves the bytes, then sends the notification.
    fn run(&self, notification: Option<&[u8]>) -> Result<Arc<Job>> {
        let (link, _) = self.core.connect(&self.peer)?;
        let renew = |claims: &[Claim], local| {
            let claims = claims.iter();
            claims
                .map(|c| c.renewed(self.plan.spans(local)))
                .collect::<Result<Vec<_>>>()
        };
        let job = Arc::new(Job::new(
            self.op,
            self.plan.clone(),
            renew(&self.local, true)?,
            renew(&self.remote, false)?,
            self.peer.clone(),
            link.clone(),
            self.cancel.clone(),
        ));
        if let Stage::Running(running) = &mut *lock(&self.stage) {
            running.job = Some(job.clone());
        }
        self.core.copiers.run(&job)?;
        // Only a peer that is still there certainly was there during the copy.
        if link.as_ref().is_some_and(|link| link.is_dead()) {
            return Err(self.peer.lose("its process has ended"));
        }
        self.peer.check()?;
        let payload = notification.or(self.notification.as_deref());
        if let Some(payload) = payload {
            self.core
                .send(&self.peer, link.as_deref(), payload)
                .map_err(|e| e.context("all bytes are in, but the notification was not sent"))?;
        }
        Ok(job)
    }

    fn finish(&self, since: Instant, result: Result<Arc<Job>>) -> Result<TransferState> {
        let took = since.elapsed();
        let result = result.map_err(|e| match self.core.usable() {
            // Closing the agent is what stopped it, whatever it ran into because of that.
            Err(closed) => Error::new(Status::Canceled, closed.message()),
            Ok(()) => e,
        });
        let mut stage = lock(&self.stage);
        if self.core.telemetry {
            *lock(&self.figures) = Some(figures(&stage, &self.plan, took));
        }
        if result.is_ok() {
            self.core.speed.learn(self.plan.bytes, took);
        }
        let result = result.map(|_| ());
        *stage = Stage::Ended(result.clone());
        result.map(|()| TransferState::Done)
    }
}

/// Puts an end to a post that panics, so that the transfer does not look active for ever.
struct Ending<'a>(&'a Copy);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut stage = lock(&self.0.stage);
        if matches!(*stage, Stage::Running(_)) {
            *stage = Stage::Ended(Err(Error::new(Status::Internal, "posting panicked")));
        }
    }
}

fn own_list<'a>(core: &Arc<Core>, list: &'a dyn PreparedList, side: &str) -> Result<&'a List> {
    match list.as_any().downcast_ref::<List>() {
        Some(list) if Arc::ptr_eq(&list.core, core) => Ok(list),
        _ => bail!(
            Status::InvalidArgument,
            "the {side} list was prepared by another agent"
        ),
    }
}

fn same_count(local: usize, remote: usize) -> Result<()> {
    if local != remote {
        bail!(
            Status::Mismatch,
            "{local} local ranges against {remote} remote ones"
        );
    }
    if local == 0 {
        bail!(Status::InvalidArgument, "a transfer of no ranges");
    }
    Ok(())
}

fn figures(stage: &Stage, plan: &Plan, took: Duration) -> Telemetry {
    let (since, job) = match stage {
        Stage::Running(running) => (running.since, running.job.as_ref()),
        _ => return Telemetry::default(),
    };
    let took = took.as_micros() as u64;
    Telemetry {
        start_time_us: (monotonic_ns() / 1000).saturating_sub(since.elapsed().as_micros() as u64),
        // The copy is made inside the call.
        post_duration_us: took,
        transfer_duration_us: took,
        total_bytes: job.map_or(0, |job| job.moved()),
        descriptors: plan.descriptors,
    }
}

impl Transfer for Copy {
    fn post(&self, notification: Option<&[u8]>) -> Result<TransferState> {
        self.core.usable()?;
        if let Some(payload) = notification {
            super::endpoint::check_payload(payload)?;
        }
        let since = self.begin()?;
        let _ending = Ending(self);
        let result = self.run(notification);
        self.finish(since, result)
    }

    fn state(&self) -> Result<TransferState> {
        self.core.at_home()?;
        self.core.state.drive(Duration::ZERO);
        match &*lock(&self.stage) {
            Stage::New => Err(Error::new(
                Status::NotPosted,
                "the transfer has not been posted yet",
            )),
            Stage::Running(_) => Ok(TransferState::InProgress),
            Stage::Ended(Ok(())) => Ok(TransferState::Done),
            Stage::Ended(Err(e)) => Err(e.clone()),
        }
    }

    fn cancel(&self) -> Result<()> {
        self.core.at_home()?;
        // Under the lock of the stage, so that it cannot hit the next post instead.
        if let Stage::Running(_) = *lock(&self.stage) {
            self.cancel.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn telemetry(&self) -> Result<Telemetry> {
        self.core.at_home()?;
        if !self.core.telemetry {
            bail!(
                Status::NoTelemetry,
                "telemetry was not enabled when agent \"{}\" was created",
                self.core.state.presence.name
            );
        }
        let stage = lock(&self.stage);
        if let Stage::Running(running) = &*stage {
            return Ok(figures(&stage, &self.plan, running.since.elapsed()));
        }
        lock(&self.figures)
            .ok_or_else(|| Error::new(Status::NoTelemetry, "the transfer has not been posted yet"))
    }

    fn cost(&self) -> Result<Cost> {
        Ok(self.core.speed.cost(&self.plan))
    }

    fn backend(&self) -> Result<String> {
        Ok(super::BACKEND.to_string())
    }
}

/// What copying has cost this agent so far, for estimates.
///
/// The model is `descriptors × 0.2 µs + bytes / rate`. The rate is a moving average over the agent's
/// own transfers of a megabyte and more, and 4 GB/s before the first of them.
pub(super) struct Speed {
    bytes_per_us: AtomicU64,
}

impl Speed {
    pub fn new() -> Speed {
        Speed {
            bytes_per_us: AtomicU64::new(4000),
        }
    }

    fn learn(&self, bytes: u64, took: Duration) {
        if bytes < 1 << 20 {
            return;
        }
        let seen = bytes / (took.as_micros() as u64).max(1);
        let known = self.bytes_per_us.load(Ordering::Relaxed);
        // A lost update loses one of many samples.
        let next = (known * 7 + seen) / 8;
        self.bytes_per_us.store(next.max(1), Ordering::Relaxed);
    }

    fn cost(&self, plan: &Plan) -> Cost {
        let rate = self.bytes_per_us.load(Ordering::Relaxed);
        let duration = 1 + plan.descriptors / 5 + plan.bytes / rate;
        let duration = i64::try_from(duration).unwrap_or(i64::MAX);
        Cost {
            duration_us: duration,
            error_margin_us: duration / 2 + 1,
            method: 0,
        }
    }
}
