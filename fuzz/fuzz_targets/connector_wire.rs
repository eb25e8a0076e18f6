//! The decoders of the connector's wire: nothing panics, and what is understood can be written again and
//! is the same then.
#![no_main]

use kvferry::connector::wire::{AgentMetadata, Clock, Notification, Payload, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 5 {
        0 => {
            if let Ok(read) = AgentMetadata::decode(bytes) {
                assert_eq!(AgentMetadata::decode(&read.encode().unwrap()), Ok(read));
            }
        }
        1 => {
            if let Ok(read) = Payload::decode(bytes) {
                assert_eq!(Payload::decode(&read.encode().unwrap()).as_ref(), Ok(&read));
                let _ = read.metadata();
            }
        }
        2 => {
            if let Ok(read) = Notification::parse(bytes) {
                // An empty heartbeat is passed over, and not sent.
                if read != Notification::Heartbeat(Vec::new()) {
                    assert_eq!(Notification::parse(&read.encode().unwrap()), Ok(read));
                }
            }
        }
        3 => {
            if let Ok(read) = Request::decode(bytes) {
                let again = Request::decode(&Request::encode(read.rank)).unwrap();
                assert_eq!((again.rank, again.magic), (read.rank, true));
            }
        }
        _ => {
            if let Ok(read) = Clock::decode(bytes) {
                assert_eq!(Clock::decode(&read.encode()), Ok(read));
            }
        }
    }
});
