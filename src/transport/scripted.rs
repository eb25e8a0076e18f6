//! A transport for tests: memory of this process, and faults on command.
//!
//! It moves bytes like any other, but late, out of order or not at all, as its script says. Engines
//! can use it to see how they behave when transfers are slow and peers vanish; the queue's tests do.
//! Agents find each other only within one process.
//!
//! The script is a set of parameters, given with the backend `test` when the agent is created and
//! changed at any time by creating that backend again:
//!
//! | parameter | value | meaning |
//! |---|---|---|
//! | `delay_us` | number | a transfer completes no earlier than this after its post |
//! | `hold` | 0 or 1 | while 1, nothing completes |
//! | `reorder` | seed | transfers complete in a random order of this seed instead of their own |
//! | `fail_post` | n | the n-th post from now is refused |
//! | `fail_transfer` | n | the n-th post from now is accepted and fails when it would complete |
//! | `hold_load` | 0 or 1 | while 1, loading a peer's metadata does not return |
//! | `stubborn` | 0 or 1 | while 1, a cancel takes effect only when the bytes are through, as with NIXL |
//! | `vram` | 0 or 1 | while 1, ranges may be called GPU memory; they are host memory all the same |
//! | `lose` | agent | that peer is gone: transfers and messages to it fail |
//! | `find` | agent | it is back |
//!
//! What it has done so far is told by the backend's information: `posts` is the number of posts that
//! were accepted, `flying` how many transfers are under way, `loading` how many peers are being loaded, and a
//! `post` each for the last of them the
//! name of the peer and the number of bytes.
//!
//! Bytes are copied when a transfer completes, not when it is posted, so that a buffer that is used
//! too early shows.

use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::Lazy;

use super::*;
use crate::error::{Status, bail};
use crate::sync::lock;

/// Name of the transport and of its one backend.
pub const NAME: &str = "test";

/// Live agents of this process by token.
static AGENTS: Lazy<Mutex<HashMap<u64, Weak<Core>>>> = Lazy::new(Mutex::default);
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// Makes an endpoint.
pub fn create(options: &AgentOptions) -> Result<Arc<dyn Transport>> {
    let core = Arc::new(Core {
        name: options.name.clone(),
        token: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
        state: Mutex::default(),
        arrived: Condvar::new(),
        loading: Condvar::new(),
        copying: Mutex::default(),
    });
    for (plugin, params) in options.backends.iter().flatten() {
        core.script(plugin, params)?;
    }
    lock(&AGENTS).insert(core.token, Arc::downgrade(&core));
    Ok(Arc::new(Endpoint { core }))
}

struct Endpoint {
    core: Arc<Core>,
}

struct Core {
    name: String,
    token: u64,
    state: Mutex<State>,
    arrived: Condvar,
    /// Loading may go on.
    loading: Condvar,
    /// Held while bytes move; taken after `state` never, before it only.
    copying: Mutex<()>,
}

#[derive(Default)]
struct State {
    registered: Vec<MemDesc>,
    /// Remote agents by name.
    remotes: HashMap<String, u64>,
    lost: HashSet<String>,
    inbox: VecDeque<Notification>,
    script: Script,
    /// Posted transfers that have not completed, in the order of their posts.
    flying: Vec<Arc<Flight>>,
    posts: u64,
    /// Peers whose metadata is being loaded.
    loading: usize,
    /// Peer and bytes of the last posts.
    journal: VecDeque<(String, u64)>,
}

/// Most posts that are remembered.
const JOURNAL: usize = 4096;

#[derive(Default)]
struct Script {
    delay: Duration,
    hold: bool,
    hold_load: bool,
    stubborn: bool,
    vram: bool,
    /// State of a small random generator; 0 is "in order".
    reorder: u64,
    fail_post: u64,
    fail_transfer: u64,
}

/// One posted transfer.
struct Flight {
    op: Op,
    pairs: Vec<(MemDesc, MemDesc)>,
    remote: String,
    notification: Option<Vec<u8>>,
    due: Instant,
    doomed: bool,
    outcome: Mutex<Option<Result<()>>>,
    canceled: std::sync::atomic::AtomicBool,
}

impl Core {
    fn script(&self, plugin: &str, params: &[(String, String)]) -> Result<()> {
        if plugin != NAME {
            bail!(
                Status::NotFound,
                "plugin \"{plugin}\" is not known; there is \"{NAME}\""
            );
        }
        let mut state = lock(&self.state);
        for (key, value) in params {
            let number = || {
                value.parse::<u64>().map_err(|_| {
                    Error::invalid(format!("parameter {key}: \"{value}\" is not a number"))
                })
            };
            match key.as_str() {
                "delay_us" => state.script.delay = Duration::from_micros(number()?),
                "hold" => state.script.hold = number()? != 0,
                "hold_load" => {
                    state.script.hold_load = number()? != 0;
                    self.loading.notify_all();
                }
                "stubborn" => state.script.stubborn = number()? != 0,
                "vram" => state.script.vram = number()? != 0,
                "reorder" => state.script.reorder = number()?,
                "fail_post" => state.script.fail_post = number()?,
                "fail_transfer" => state.script.fail_transfer = number()?,
                "lose" => drop(state.lost.insert(value.clone())),
                "find" => drop(state.lost.remove(value)),
                _ => return Err(Error::invalid(format!("parameter \"{key}\" is not known"))),
            }
        }
        Ok(())
    }

    fn accepts(&self, kind: MemKind) -> Result<()> {
        match kind {
            MemKind::Dram => Ok(()),
            MemKind::Vram if lock(&self.state).script.vram => Ok(()),
            other => bail!(
                Status::NoBackend,
                "the test transport has no {} memory",
                other.name()
            ),
        }
    }

    /// The peer's core, if it is known, alive, and not lost by the script.
    fn peer(&self, state: &State, remote: &str) -> Result<Arc<Core>> {
        let token = if remote == self.name {
            Some(self.token)
        } else {
            state.remotes.get(remote).copied()
        };
        let Some(token) = token else {
            bail!(Status::NotFound, "remote agent \"{remote}\" is not known");
        };
        let alive = lock(&AGENTS).get(&token).and_then(Weak::upgrade);
        match alive {
            Some(core) if !state.lost.contains(remote) => Ok(core),
            _ => bail!(Status::PeerLost, "remote agent \"{remote}\" is gone"),
        }
    }

    /// Completes what the script lets complete.
    fn advance(&self) {
        let now = Instant::now();
        loop {
            // Until the outcome is known, so that closing can wait for it.
            let _copying = lock(&self.copying);
            let (flight, peer) = {
                let mut state = lock(&self.state);
                let Some(i) = state.next_due(now) else { return };
                let flight = state.flying.remove(i);
                let peer = self.peer(&state, &flight.remote);
                (flight, peer)
            };
            let outcome = self.finish(&flight, peer);
            *lock(&flight.outcome) = Some(outcome);
        }
    }

    fn finish(&self, flight: &Flight, peer: Result<Arc<Core>>) -> Result<()> {
        let canceled = flight.canceled.load(Ordering::Acquire);
        let stubborn = lock(&self.state).script.stubborn;
        if canceled && !stubborn {
            bail!(Status::Canceled, "the transfer was cancelled");
        }
        let peer = peer?;
        if flight.doomed {
            bail!(Status::Backend, "the script said that this transfer fails");
        }
        for (local, remote) in &flight.pairs {
            if !lock(&peer.state).covers(remote) {
                bail!(
                    Status::NotRegistered,
                    "range at {:#x} is not registered any more",
                    remote.addr
                );
            }
            let (from, to) = match flight.op {
                Op::Read => (remote.addr, local.addr),
                Op::Write => (local.addr, remote.addr),
            };
            // SAFETY: both ranges are registered by agents of this process, whose users promised
            // to keep registered memory mapped.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, local.len as usize) };
        }
        if canceled {
            bail!(
                Status::Canceled,
                "the transfer was cancelled, after its bytes were through"
            );
        }
        if let Some(payload) = &flight.notification {
            peer.deliver(&self.name, payload);
        }
        Ok(())
    }

    fn deliver(&self, from: &str, payload: &[u8]) {
        let message = Notification {
            from: from.to_owned(),
            payload: payload.to_owned(),
        };
        lock(&self.state).inbox.push_back(message);
        self.arrived.notify_all();
    }
}

impl State {
    fn covers(&self, range: &MemDesc) -> bool {
        self.registered.iter().any(|r| r.contains(range))
    }

    fn note_post(&mut self, flight: &Flight) {
        self.posts += 1;
        if self.journal.len() == JOURNAL {
            self.journal.pop_front();
        }
        let bytes = flight.pairs.iter().map(|(local, _)| local.len).sum();
        self.journal.push_back((flight.remote.clone(), bytes));
    }

    /// Index of a transfer to complete now.
    fn next_due(&mut self, now: Instant) -> Option<usize> {
        let stubborn = self.script.stubborn;
        let quick = |f: &Flight| !stubborn && f.canceled.load(Ordering::Acquire);
        if let Some(i) = self.flying.iter().position(|f| quick(f)) {
            return Some(i);
        }
        if self.script.hold {
            return None;
        }
        let due: Vec<usize> = (0..self.flying.len())
            .filter(|&i| self.flying[i].due <= now)
            .collect();
        if due.is_empty() || self.script.reorder == 0 {
            return due.first().copied();
        }
        // xorshift64: all that is needed is an order that is not the order of posting.
        let mut x = self.script.reorder;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.script.reorder = x;
        Some(due[(x % due.len() as u64) as usize])
    }
}

/// Token and name of an agent.
fn parse(metadata: &[u8]) -> Result<(u64, String)> {
    let parsed = std::str::from_utf8(metadata).ok().and_then(|text| {
        let mut words = text.splitn(3, ' ');
        let (magic, token, name) = (words.next()?, words.next()?, words.next()?);
        (magic == "kvferry-test").then_some((token.parse::<u64>().ok()?, name.to_owned()))
    });
    parsed.ok_or_else(|| {
        let why = "these are not metadata of the test transport";
        Error::new(Status::PeerIncompatible, why)
    })
}

impl Transport for Endpoint {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plugins(&self) -> Result<Vec<String>> {
        Ok(vec![NAME.to_owned()])
    }

    fn plugin_info(&self, plugin: &str) -> Result<BackendInfo> {
        self.backend_info(plugin)
    }

    /// Changes the script.
    fn create_backend(&self, plugin: &str, params: &[(String, String)]) -> Result<()> {
        self.core.script(plugin, params)
    }

    fn backends(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn backend_info(&self, backend: &str) -> Result<BackendInfo> {
        if backend != NAME {
            bail!(
                Status::NotFound,
                "backend \"{backend}\" is not known; there is \"{NAME}\""
            );
        }
        let state = lock(&self.core.state);
        let mut params = vec![
            ("posts".to_owned(), state.posts.to_string()),
            ("flying".to_owned(), state.flying.len().to_string()),
            ("loading".to_owned(), state.loading.to_string()),
        ];
        let posts = state.journal.iter();
        params.extend(posts.map(|(peer, bytes)| ("post".to_owned(), format!("{peer} {bytes}"))));
        let mut kinds = vec![MemKind::Dram];
        kinds.extend(state.script.vram.then_some(MemKind::Vram));
        Ok(BackendInfo { params, kinds })
    }

    fn register(&self, kind: MemKind, descs: &[RegDesc], _: &[&str]) -> Result<()> {
        self.core.accepts(kind)?;
        lock(&self.core.state)
            .registered
            .extend(descs.iter().map(|d| d.range));
        Ok(())
    }

    fn deregister(&self, _: MemKind, descs: &[RegDesc], _: &[&str]) -> Result<()> {
        let mut state = lock(&self.core.state);
        for d in descs {
            let at = state.registered.iter().position(|r| *r == d.range);
            let Some(at) = at else {
                bail!(
                    Status::NotRegistered,
                    "range at {:#x} is not registered",
                    d.range.addr
                );
            };
            state.registered.swap_remove(at);
        }
        Ok(())
    }

    fn query_memory(&self, _: MemKind, _: &[RegDesc], _: &str) -> Result<Vec<Option<Params>>> {
        unsupported("querying memory")
    }

    fn metadata(&self) -> Result<Vec<u8>> {
        Ok(format!("kvferry-test {} {}", self.core.token, self.core.name).into_bytes())
    }

    fn partial_metadata(&self, _: MemKind, _: &[RegDesc], _: bool, _: &[&str]) -> Result<Vec<u8>> {
        self.metadata()
    }

    fn metadata_name(&self, metadata: &[u8]) -> Result<String> {
        Ok(parse(metadata)?.1)
    }

    fn add_remote(&self, metadata: &[u8]) -> Result<String> {
        let (token, name) = parse(metadata)?;
        let mut state = lock(&self.core.state);
        let held = |s: &mut State| s.script.hold_load;
        state.loading += 1;
        let state = self.core.loading.wait_while(state, held);
        let mut state = state.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.loading -= 1;
        state.lost.remove(&name);
        state.remotes.insert(name.clone(), token);
        Ok(name)
    }

    fn remove_remote(&self, remote: &str) -> Result<()> {
        match lock(&self.core.state).remotes.remove(remote) {
            Some(_) => Ok(()),
            None => bail!(Status::NotFound, "remote agent \"{remote}\" is not known"),
        }
    }

    fn check_remote(&self, remote: &str, _: MemKind, descs: &[MemDesc]) -> Result<bool> {
        let peer = self.core.peer(&lock(&self.core.state), remote);
        Ok(peer.is_ok_and(|p| {
            let state = lock(&p.state);
            descs.iter().all(|d| state.covers(d))
        }))
    }

    fn connect(&self, remote: &str, _: &[&str]) -> Result<()> {
        self.core.peer(&lock(&self.core.state), remote).map(drop)
    }

    fn send_metadata(&self, _: MetadataStore<'_>) -> Result<()> {
        unsupported("sending metadata")
    }

    fn send_partial_metadata(
        &self,
        _: MemKind,
        _: &[RegDesc],
        _: bool,
        _: &[&str],
        _: MetadataStore<'_>,
        _: Option<&str>,
    ) -> Result<()> {
        unsupported("sending metadata")
    }

    fn fetch_metadata(&self, _: &str, _: MetadataStore<'_>, _: Option<&str>) -> Result<()> {
        unsupported("fetching metadata")
    }

    fn invalidate_metadata(&self, _: MetadataStore<'_>) -> Result<()> {
        unsupported("invalidating metadata")
    }

    fn prepare(
        &self,
        side: Side<'_>,
        kind: MemKind,
        descs: Descs<'_>,
        _: &[&str],
    ) -> Result<Arc<dyn PreparedList>> {
        self.core.accepts(kind)?;
        let ranges: Vec<MemDesc> = match descs {
            Descs::Flat(flat) => flat.to_vec(),
            Descs::Strided(rows) => rows
                .iter()
                .flat_map(|r| {
                    (0..r.count).map(|i| MemDesc {
                        addr: r.addr + i * r.stride,
                        len: r.len,
                        device: r.device,
                    })
                })
                .collect(),
        };
        let remote = match side {
            Side::Local => None,
            Side::Remote(name) => Some(name.to_owned()),
        };
        Ok(Arc::new(Ranges { ranges, remote }))
    }

    fn make_transfer(
        &self,
        op: Op,
        local: &dyn PreparedList,
        local_indices: &[i32],
        remote: &dyn PreparedList,
        remote_indices: &[i32],
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>> {
        let (local, remote) = (ranges(local)?, ranges(remote)?);
        let Some(name) = &remote.remote else {
            return Err(Error::invalid(
                "the remote list was prepared for the local side",
            ));
        };
        let pick = |list: &Ranges, indices: &[i32]| -> Vec<MemDesc> {
            indices
                .iter()
                .filter_map(|&i| list.ranges.get(i as usize).copied())
                .collect()
        };
        let (l, r) = (pick(local, local_indices), pick(remote, remote_indices));
        self.create_transfer(op, (MemKind::Dram, &l), (MemKind::Dram, &r), name, options)
    }

    fn create_transfer(
        &self,
        op: Op,
        local: (MemKind, &[MemDesc]),
        remote: (MemKind, &[MemDesc]),
        remote_agent: &str,
        options: TransferOptions<'_>,
    ) -> Result<Arc<dyn Transfer>> {
        self.core.accepts(local.0)?;
        self.core.accepts(remote.0)?;
        let state = lock(&self.core.state);
        let peer = self.core.peer(&state, remote_agent)?;
        if let Some(bad) = local.1.iter().find(|d| !state.covers(d)) {
            bail!(
                Status::NotRegistered,
                "local range at {:#x} is not registered",
                bad.addr
            );
        }
        drop(state);
        let theirs = lock(&peer.state);
        if let Some(bad) = remote.1.iter().find(|d| !theirs.covers(d)) {
            bail!(
                Status::NotRegistered,
                "remote range at {:#x} is not registered",
                bad.addr
            );
        }
        drop(theirs);
        if let Some(i) = local
            .1
            .iter()
            .zip(remote.1)
            .position(|(l, r)| l.len != r.len)
        {
            bail!(
                Status::Mismatch,
                "pair {i}: {} against {} bytes",
                local.1[i].len,
                remote.1[i].len
            );
        }
        Ok(Arc::new(ScriptedTransfer {
            core: self.core.clone(),
            op,
            pairs: local
                .1
                .iter()
                .copied()
                .zip(remote.1.iter().copied())
                .collect(),
            remote: remote_agent.to_owned(),
            notification: Mutex::new(options.notification.map(<[u8]>::to_vec)),
            flight: Mutex::new(None),
        }))
    }

    fn notify(&self, remote: &str, payload: &[u8], _: Option<&str>) -> Result<()> {
        let peer = self.core.peer(&lock(&self.core.state), remote)?;
        peer.deliver(&self.core.name, payload);
        Ok(())
    }

    fn notifications(&self, _: &[&str]) -> Result<Vec<Notification>> {
        self.core.advance();
        Ok(lock(&self.core.state).inbox.drain(..).collect())
    }

    fn wait_for_notification(&self, limit: Duration) -> Result<()> {
        let state = lock(&self.core.state);
        let empty = |s: &mut State| s.inbox.is_empty();
        drop(self.core.arrived.wait_timeout_while(state, limit, empty));
        Ok(())
    }

    fn close(&self) -> Result<()> {
        lock(&AGENTS).remove(&self.core.token);
        // Bytes move only inside calls: those that do now are waited for, the rest never lands.
        let _copying = lock(&self.core.copying);
        for flight in lock(&self.core.state).flying.drain(..) {
            let ended = Error::new(Status::Canceled, "the agent was destroyed");
            *lock(&flight.outcome) = Some(Err(ended));
        }
        Ok(())
    }
}

struct Ranges {
    ranges: Vec<MemDesc>,
    remote: Option<String>,
}

impl PreparedList for Ranges {
    fn len(&self) -> usize {
        self.ranges.len()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn ranges(list: &dyn PreparedList) -> Result<&Ranges> {
    list.as_any()
        .downcast_ref()
        .ok_or_else(|| Error::invalid("the list was prepared by another transport"))
}

struct ScriptedTransfer {
    core: Arc<Core>,
    op: Op,
    pairs: Vec<(MemDesc, MemDesc)>,
    remote: String,
    notification: Mutex<Option<Vec<u8>>>,
    flight: Mutex<Option<Arc<Flight>>>,
}

impl Transfer for ScriptedTransfer {
    fn post(&self, notification: Option<&[u8]>) -> Result<TransferState> {
        if matches!(self.state(), Ok(TransferState::InProgress)) {
            bail!(Status::RepostActive, "the transfer is still under way");
        }
        if let Some(payload) = notification {
            *lock(&self.notification) = Some(payload.to_owned());
        }
        let mut state = lock(&self.core.state);
        self.core.peer(&state, &self.remote)?;
        if countdown(&mut state.script.fail_post) {
            bail!(Status::Backend, "the script said that this post fails");
        }
        let flight = Arc::new(Flight {
            op: self.op,
            pairs: self.pairs.clone(),
            remote: self.remote.clone(),
            notification: lock(&self.notification).clone(),
            due: Instant::now() + state.script.delay,
            doomed: countdown(&mut state.script.fail_transfer),
            outcome: Mutex::new(None),
            canceled: false.into(),
        });
        state.note_post(&flight);
        state.flying.push(flight.clone());
        drop(state);
        *lock(&self.flight) = Some(flight);
        self.state()
    }

    fn state(&self) -> Result<TransferState> {
        self.core.advance();
        let Some(flight) = lock(&self.flight).clone() else {
            bail!(Status::NotPosted, "the transfer has not been posted");
        };
        let outcome = lock(&flight.outcome).clone();
        match outcome {
            None => Ok(TransferState::InProgress),
            Some(Ok(())) => Ok(TransferState::Done),
            Some(Err(e)) => Err(e),
        }
    }

    fn cancel(&self) -> Result<()> {
        if let Some(flight) = &*lock(&self.flight) {
            flight.canceled.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn telemetry(&self) -> Result<Telemetry> {
        Err(Error::new(
            Status::NoTelemetry,
            "the test transport keeps none",
        ))
    }

    fn cost(&self) -> Result<Cost> {
        unsupported("cost estimates")
    }

    fn backend(&self) -> Result<String> {
        Ok(NAME.to_owned())
    }
}

/// Counts down to zero; true when it gets there. Zero stays zero.
fn countdown(n: &mut u64) -> bool {
    match *n {
        0 => false,
        _ => {
            *n -= 1;
            *n == 0
        }
    }
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::new(
        Status::NotSupported,
        format!("the test transport does not offer {what}"),
    ))
}
