//! Whether ranges of host memory are there at all.
//!
//! A registration of an address that is not mapped, or not writable, would be accepted by most
//! transports and bring the process down with the first transfer. The kernel's own table is asked
//! instead, once per registration call.

use crate::error::{Result, Status, bail};
use crate::memory::MemDesc;

/// Fails when a range is not wholly mapped for reading. (Not for writing: a producer may register
/// a read-only mapping that is only ever read.)
pub(super) fn check<'a>(ranges: impl Iterator<Item = &'a MemDesc>) -> Result<()> {
    let maps = match std::fs::read_to_string("/proc/self/maps") {
        Ok(maps) => readable(&maps),
        // No /proc (a bare container): the transport's own checks have to do.
        Err(e) => {
            log::debug!("ranges are not checked, /proc/self/maps: {e}");
            return Ok(());
        }
    };
    for (i, r) in ranges.enumerate() {
        let end = r.end()?;
        if let Some(hole) = first_hole(&maps, r.addr, end) {
            bail!(
                Status::InvalidArgument,
                "range {i} at {:#x} of {} bytes is not mapped readable at {hole:#x}",
                r.addr,
                r.len
            );
        }
    }
    Ok(())
}

/// The readable spans of a maps file, in ascending order, neighbours joined.
fn readable(maps: &str) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for line in maps.lines() {
        let Some((start, end)) = parse(line) else {
            continue;
        };
        match spans.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => spans.push((start, end)),
        }
    }
    spans
}

/// `start-end perms …` with the `r` permission.
fn parse(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    if !rest.starts_with('r') {
        return None;
    }
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

/// The first address of `start..end` that no span covers.
fn first_hole(spans: &[(u64, u64)], start: u64, end: u64) -> Option<u64> {
    let i = spans.partition_point(|s| s.1 <= start);
    match spans.get(i) {
        Some(s) if s.0 <= start && end <= s.1 => None,
        Some(s) if s.0 <= start => Some(s.1),
        _ => Some(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0
3000-4000 r--p 00000000 00:00 0 /a file
4000-5000 ---p 00000000 00:00 0
6000-7000 rw-p 00000000 00:00 0
garbage
";

    #[test]
    fn holes_are_found() {
        let spans = readable(MAPS);
        assert_eq!(spans, [(0x1000, 0x4000), (0x6000, 0x7000)]);
        assert_eq!(first_hole(&spans, 0x1000, 0x4000), None);
        assert_eq!(first_hole(&spans, 0x2fff, 0x3001), None);
        assert_eq!(first_hole(&spans, 0x0fff, 0x1001), Some(0x0fff));
        assert_eq!(first_hole(&spans, 0x3fff, 0x4001), Some(0x4000));
        assert_eq!(first_hole(&spans, 0x5000, 0x5001), Some(0x5000));
        assert_eq!(first_hole(&spans, 0x6000, 0x8000), Some(0x7000));
        assert_eq!(first_hole(&spans, 0x9000, 0x9001), Some(0x9000));
    }

    #[test]
    fn own_memory_is_mapped_and_low_memory_is_not() {
        let buffer = vec![1u8; 100_000];
        let good = MemDesc {
            addr: buffer.as_ptr() as u64,
            len: 100_000,
            device: 0,
        };
        assert!(check([good].iter()).is_ok());
        let bad = MemDesc {
            addr: 8,
            len: 16,
            device: 0,
        };
        let e = check([good, bad].iter()).unwrap_err();
        assert_eq!(e.status(), Status::InvalidArgument);
        assert!(e.message().contains("range 1 at 0x8"), "{e}");
    }
}
