//! What the kernel says about this process's own memory.
//!
//! Most transports accept any address, and bring the process down with the first transfer. So ranges
//! are looked up in `/proc/self/maps` when they are registered. The price is one read of that file per
//! call, whatever the size of the ranges.

/// One mapping of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    readable: bool,
    writable: bool,
}

/// The mappings of this process at one moment.
pub(crate) struct Mapped {
    /// Sorted by start; `None` where the system does not tell (no `/proc`).
    mappings: Option<Vec<Mapping>>,
}

/// What can be done with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// All of it can be read and written.
    ReadWrite,
    /// All of it can be read, some of it not written.
    ReadOnly,
    /// The byte at this address cannot be read.
    Missing(u64),
}

impl Mapped {
    /// Asks the kernel.
    pub fn now() -> Mapped {
        let mappings = match std::fs::read_to_string("/proc/self/maps") {
            Ok(text) => Some(parse(&text)),
            // A bare container: what the transport checks itself has to do.
            Err(e) => {
                log::debug!("ranges are not checked, /proc/self/maps: {e}");
                None
            }
        };
        Mapped { mappings }
    }

    /// What can be done with the bytes from `start` to before `end`. Where the kernel does not tell,
    /// the caller is trusted.
    pub fn access(&self, start: u64, end: u64) -> Access {
        let Some(mappings) = &self.mappings else {
            return Access::ReadWrite;
        };
        let mut next = start;
        let mut writable = true;
        let first = mappings.partition_point(|m| m.end <= start);
        for mapping in &mappings[first..] {
            if mapping.start > next || !mapping.readable {
                break;
            }
            writable &= mapping.writable;
            next = mapping.end.max(next);
            if next >= end {
                return if writable {
                    Access::ReadWrite
                } else {
                    Access::ReadOnly
                };
            }
        }
        Access::Missing(next)
    }
}

/// Lines of `/proc/self/maps`: `start-end perms …`, in ascending order.
fn parse(text: &str) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let perms = words.next()?.as_bytes();
            Some(Mapping {
                start: u64::from_str_radix(start, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
                readable: perms.first() == Some(&b'r'),
                writable: perms.get(1) == Some(&b'w'),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_rights_are_seen() {
        let text = "1000-2000 rw-p 0 00:00 0\n2000-3000 r--p 0 00:00 0 /lib/x\n\
                    4000-5000 rw-p 0 00:00 0 [heap]\n5000-6000 ---p 0 00:00 0\n";
        let mapped = Mapped {
            mappings: Some(parse(text)),
        };
        let at = |start, end| mapped.access(start, end);
        assert_eq!(at(0x1000, 0x2000), Access::ReadWrite);
        assert_eq!(at(0x1800, 0x3000), Access::ReadOnly);
        assert_eq!(at(0x2800, 0x3001), Access::Missing(0x3000));
        assert_eq!(at(0xfff, 0x1001), Access::Missing(0xfff));
        assert_eq!(at(0x4800, 0x5800), Access::Missing(0x5000));
        assert_eq!(at(0x9000, 0x9001), Access::Missing(0x9000));
    }

    #[test]
    fn this_process_is_mapped() {
        let data = vec![0u8; 1 << 20];
        let start = data.as_ptr() as u64;
        let mapped = Mapped::now();
        let end = start + data.len() as u64;
        assert_eq!(mapped.access(start, end), Access::ReadWrite);
        assert_eq!(mapped.access(16, 32), Access::Missing(16));
    }

    #[test]
    fn neighbours_count_as_one_and_garbage_is_passed_over() {
        let mapped = Mapped {
            mappings: Some(parse(MAPS)),
        };
        let first_hole = |start, end| match mapped.access(start, end) {
            Access::Missing(at) => Some(at),
            _ => None,
        };
        assert_eq!(first_hole(0x1000, 0x4000), None);
        assert_eq!(first_hole(0x2fff, 0x3001), None);
        assert_eq!(first_hole(0x0fff, 0x1001), Some(0x0fff));
        assert_eq!(first_hole(0x3fff, 0x4001), Some(0x4000));
        assert_eq!(first_hole(0x5000, 0x5001), Some(0x5000));
        assert_eq!(first_hole(0x6000, 0x8000), Some(0x7000));
        assert_eq!(first_hole(0x9000, 0x9001), Some(0x9000));
    }

    const MAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0
3000-4000 r--p 00000000 00:00 0 /a file
4000-5000 ---p 00000000 00:00 0
6000-7000 rw-p 00000000 00:00 0
garbage
";
}
