//! Figures: counters by vLLM's names, and a record of each request.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use crate::clock::monotonic_ns;
use crate::error::{Result, Status};
use crate::queue;
use crate::sync::lock;

/// Records that are kept when nobody takes them.
const MAX_RECORDS: usize = 4096;
/// Values of one key that are kept when nobody takes them.
const MAX_VALUES: usize = 65_536;

/// What is counted. The names are those of vLLM's statistics, from which it makes its metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    TransferDuration,
    PostDuration,
    Bytes,
    Descriptors,
    FailedTransfers,
    FailedNotifications,
    FailedHandshakes,
    Expired,
    LateNotifications,
}

/// In the order of [`Kind`].
const NAMES: [&str; 9] = [
    "transfer_duration",
    "post_duration",
    "bytes_transferred",
    "num_descriptors",
    "num_failed_transfers",
    "num_failed_notifications",
    "num_failed_handshakes",
    "num_kv_expired_reqs",
    "num_notifications_after_expiry",
];

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A request that was received here.
    Receive = 0,
    /// A request that was written to another engine.
    Push = 1,
}

impl RecordKind {
    fn name(self) -> &'static str {
        match self {
            RecordKind::Receive => "receive",
            RecordKind::Push => "push",
        }
    }
}

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// This engine's id of the request.
    pub request_id: String,
    /// Which way it went.
    pub kind: RecordKind,
    /// The other engine; empty if it was never known.
    pub engine_id: String,
    /// How it ended.
    pub status: Status,
    /// What went wrong.
    pub message: String,
    /// When the worker heard of it, in nanoseconds of the monotonic clock. The other times count from
    /// then; 0 is "did not get there".
    pub arrived_ns: u64,
    /// When it went to the queue.
    pub queued_ns: u64,
    /// When its ranges were known.
    pub planned_ns: u64,
    /// When its first bytes were asked for.
    pub posted_ns: u64,
    /// When it was over.
    pub finished_ns: u64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Ranges after merging.
    pub descriptors: u64,
}

/// When a request came, and when it went to the queue, in nanoseconds of the monotonic clock; 0 is "not
/// yet".
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub arrived_ns: u64,
    pub queued_ns: u64,
}

impl Times {
    pub(super) fn now() -> Self {
        Times {
            arrived_ns: monotonic_ns(),
            queued_ns: 0,
        }
    }
}

impl RequestRecord {
    /// Of a request that is over now. `record` is what the queue says of it.
    pub(super) fn of(
        kind: RecordKind,
        (request_id, engine_id): (&str, &str),
        times: Times,
        result: &Result<()>,
        record: &queue::Record,
    ) -> Self {
        // The queue counts from when it got the request.
        let queued_ns = times.queued_ns.saturating_sub(times.arrived_ns);
        let since = |ns: u64| if ns == 0 { 0 } else { queued_ns + ns };
        let (status, message) = match result {
            Ok(()) => (Status::Ok, String::new()),
            Err(e) => (e.status(), e.message().to_owned()),
        };
        RequestRecord {
            request_id: request_id.to_owned(),
            kind,
            engine_id: engine_id.to_owned(),
            status,
            message,
            arrived_ns: times.arrived_ns,
            queued_ns,
            planned_ns: since(record.planned_ns),
            posted_ns: since(record.posted_ns),
            finished_ns: monotonic_ns().saturating_sub(times.arrived_ns).max(1),
            bytes: record.bytes,
            descriptors: record.descriptors,
        }
    }

    fn json(&self) -> Value {
        json!({
            "request_id": self.request_id,
            "kind": self.kind.name(),
            "engine_id": self.engine_id,
            "status": self.status.name(),
            "message": self.message,
            "arrived_ns": self.arrived_ns,
            "queued_ns": self.queued_ns,
            "planned_ns": self.planned_ns,
            "posted_ns": self.posted_ns,
            "finished_ns": self.finished_ns,
            "bytes": self.bytes,
            "descriptors": self.descriptors,
        })
    }
}

/// What is counted until somebody takes it.
#[derive(Default)]
pub(super) struct Stats {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    values: [Vec<Value>; NAMES.len()],
    records: VecDeque<RequestRecord>,
}

impl Stats {
    /// Counts an event.
    pub(super) fn count(&self, kind: Kind) {
        self.add(kind, 1.into());
    }

    fn add(&self, kind: Kind, value: Value) {
        let list = &mut lock(&self.inside).values[kind as usize];
        if list.len() < MAX_VALUES {
            list.push(value);
        }
    }

    /// Figures of a transfer that went well.
    pub(super) fn transfer(&self, record: &queue::Record) {
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        let posted = match record.posted_ns {
            0 => record.finished_ns,
            at => at,
        };
        self.add(
            Kind::TransferDuration,
            seconds(posted, record.finished_ns).into(),
        );
        self.add(
            Kind::PostDuration,
            seconds(record.planned_ns, posted).into(),
        );
        self.add(Kind::Bytes, record.bytes.into());
        self.add(Kind::Descriptors, record.descriptors.into());
    }

    /// Keeps a record; the oldest one gives way.
    pub(super) fn record(&self, record: RequestRecord) {
        let records = &mut lock(&self.inside).records;
        if records.len() == MAX_RECORDS {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// A JSON object of lists, empty if there is nothing.
    pub(super) fn take_json(&self) -> String {
        let values = std::mem::take(&mut lock(&self.inside).values);
        if values.iter().all(Vec::is_empty) {
            return "{}".to_owned();
        }
        let pairs = NAMES.iter().map(|n| (*n).to_owned()).zip(values);
        let map: Map<String, Value> = pairs.map(|(n, v)| (n, Value::Array(v))).collect();
        Value::Object(map).to_string()
    }

    /// Whether there is anything to take.
    pub(super) fn any(&self) -> bool {
        lock(&self.inside).values.iter().any(|v| !v.is_empty())
    }

    pub(super) fn take_records(&self) -> Vec<RequestRecord> {
        lock(&self.inside).records.drain(..).collect()
    }
}

/// Records as JSON, one per line.
pub(super) fn lines(records: &[RequestRecord]) -> String {
    records.iter().fold(String::new(), |mut text, r| {
        text.push_str(&r.json().to_string());
        text.push('\n');
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(result: &Result<()>) -> RequestRecord {
        let times = Times {
            arrived_ns: 1000,
            queued_ns: 1200,
        };
        let record = queue::Record {
            planned_ns: 30,
            posted_ns: 0,
            bytes: 7,
            ..queue::Record::default()
        };
        RequestRecord::of(RecordKind::Push, ("r", "e"), times, result, &record)
    }

    #[test]
    fn times_count_from_the_arrival() {
        let r = ended(&Err(crate::error::Error::new(Status::Expired, "late")));
        assert_eq!((r.arrived_ns, r.queued_ns), (1000, 200));
        assert_eq!((r.planned_ns, r.posted_ns), (230, 0));
        assert!(r.finished_ns > 0);
        let shown: Value = serde_json::from_str(&lines(&[r])).unwrap();
        assert_eq!(shown["kind"], "push");
        assert_eq!(shown["status"], "expired");
        assert_eq!(shown["message"], "late");
    }

    #[test]
    fn names_stand_where_their_kinds_are() {
        let stats = Stats::default();
        assert_eq!(stats.take_json(), "{}");
        stats.count(Kind::LateNotifications);
        stats.count(Kind::FailedTransfers);
        stats.count(Kind::FailedTransfers);
        assert!(stats.any());
        let taken: Value = serde_json::from_str(&stats.take_json()).unwrap();
        assert_eq!(taken["num_notifications_after_expiry"], json!([1]));
        assert_eq!(taken["num_failed_transfers"], json!([1, 1]));
        assert_eq!(taken["transfer_duration"], json!([]));
        assert_eq!(taken.as_object().unwrap().len(), 9);
        assert!(!stats.any());
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let stats = Stats::default();
        for i in 0..MAX_RECORDS + 5 {
            stats.record(RequestRecord {
                bytes: i as u64,
                ..ended(&Ok(()))
            });
        }
        let records = stats.take_records();
        assert_eq!(records.len(), MAX_RECORDS);
        assert_eq!(records[0].bytes, 5);
        assert_eq!(lines(&records).lines().count(), MAX_RECORDS);
        (0..MAX_VALUES + 5).for_each(|_| stats.count(Kind::Expired));
        let taken: Value = serde_json::from_str(&stats.take_json()).unwrap();
        assert_eq!(
            taken["num_kv_expired_reqs"].as_array().unwrap().len(),
            MAX_VALUES
        );
    }
}
