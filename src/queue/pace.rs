//! How large a request's next slice may be.
//!
//! A slice is small so that requests can take turns, and so that one post does not keep the thread from
//! the others for long: on one host a post may run the whole copy. But each post costs something, and
//! transports with threads of their own share out large posts only. So a request that is alone in the
//! queue doubles its slices for as long as posting is quick, and begins anew when another one comes.

use std::time::Duration;

use super::QueueOptions;
use super::slicer::Limits;

/// What a slice has when requests take turns, unless the queue's owner has said otherwise.
const BYTES: u64 = 8 << 20;
const DESCRIPTORS: usize = 1024;
/// Slices of a request alone are at most this many times as large: what is under way cannot be taken
/// back, so it is also what a cancel or a deadline has to wait for.
const MOST: u32 = 8;
/// A post that returns within this time is quick: the transport does its work elsewhere.
const QUICK: Duration = Duration::from_micros(500);
/// A post that keeps the thread for longer is too large.
const LONG: Duration = Duration::from_millis(4);

/// What one request's posts have shown so far.
pub(super) struct Pace {
    scale: u32,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace { scale: 1 }
    }

    /// What the next slice may have. What the queue's owner has stated is kept to in any case.
    pub(super) fn limits(&mut self, options: &QueueOptions, alone: bool) -> Limits {
        if !alone {
            self.scale = 1;
        }
        Limits {
            bytes: match options.slice_bytes {
                0 => BYTES * u64::from(self.scale),
                stated => stated,
            },
            descriptors: match options.slice_descriptors {
                0 => DESCRIPTORS * self.scale as usize,
                stated => stated,
            },
        }
    }

    /// Notes how long a post took.
    pub(super) fn posted(&mut self, took: Duration) {
        if took <= QUICK {
            self.scale = (self.scale * 2).min(MOST);
        } else if took > LONG {
            self.scale = (self.scale / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(pace: &mut Pace, alone: bool) -> usize {
        pace.limits(&QueueOptions::default(), alone).descriptors
    }

    #[test]
    fn alone_and_quick_it_grows_to_a_bound() {
        let mut pace = Pace::new();
        let sizes: Vec<usize> = (0..6)
            .map(|_| {
                let size = descriptors(&mut pace, true);
                pace.posted(QUICK);
                size
            })
            .collect();
        assert_eq!(sizes, [1024, 2048, 4096, 8192, 8192, 8192]);
        assert_eq!(pace.limits(&QueueOptions::default(), true).bytes, 64 << 20);
    }

    #[test]
    fn company_and_long_posts_make_it_small() {
        let mut pace = Pace::new();
        (0..3).for_each(|_| pace.posted(Duration::ZERO));
        pace.posted(LONG);
        assert_eq!(descriptors(&mut pace, true), 8192, "neither quick nor long");
        pace.posted(LONG * 2);
        assert_eq!(descriptors(&mut pace, true), 4096);
        assert_eq!(descriptors(&mut pace, false), 1024);
        assert_eq!(descriptors(&mut pace, true), 1024, "begins anew");
        pace.posted(LONG * 2);
        assert_eq!(descriptors(&mut pace, true), 1024, "and not less");
    }

    #[test]
    fn what_is_stated_is_kept_to() {
        let options = QueueOptions {
            slice_bytes: 100,
            slice_descriptors: 7,
            ..QueueOptions::default()
        };
        let mut pace = Pace::new();
        pace.posted(Duration::ZERO);
        let limits = pace.limits(&options, true);
        assert_eq!((limits.bytes, limits.descriptors), (100, 7));
    }
}
