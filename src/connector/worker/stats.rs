//! Figures: counters by vLLM's names, and a record of each request.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

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

/// What became of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestRecord {
    /// This engine's id of the request.
    pub request_id: String,
    /// `receive` or `push`.
    pub kind: &'static str,
    /// The other engine.
    pub engine_id: String,
    /// `ok`, or the name of a status.
    pub status: &'static str,
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

impl RequestRecord {
    fn json(&self) -> Value {
        json!({
            "request_id": self.request_id,
            "kind": self.kind,
            "engine_id": self.engine_id,
            "status": self.status,
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
    pub(super) fn transfer(&self, record: &crate::queue::Record) {
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
                finished_ns: i as u64,
                ..RequestRecord::default()
            });
        }
        let records = stats.take_records();
        assert_eq!(records.len(), MAX_RECORDS);
        assert_eq!(records[0].finished_ns, 5);
        assert_eq!(lines(&records).lines().count(), MAX_RECORDS);
        (0..MAX_VALUES + 5).for_each(|_| stats.count(Kind::Expired));
        let taken: Value = serde_json::from_str(&stats.take_json()).unwrap();
        assert_eq!(
            taken["num_kv_expired_reqs"].as_array().unwrap().len(),
            MAX_VALUES
        );
    }
}
