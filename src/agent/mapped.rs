//! Whether ranges of host memory are there at all.
//!
//! A registration of an address that is not mapped, or not writable, would be accepted by most
//! transports and bring the process down with the first transfer. The kernel's own table is asked
//! instead, once per registration call.

use crate::error::{Result, Status, bail};
use crate::mapped::{Access, Mapped};
use crate::memory::MemDesc;

/// Fails when a range is not wholly mapped for reading. (Not for writing: a producer may register
/// a read-only mapping that is only ever read.)
pub(super) fn check<'a>(ranges: impl Iterator<Item = &'a MemDesc>) -> Result<()> {
    let mapped = Mapped::now();
    for (i, r) in ranges.enumerate() {
        let end = r.end()?;
        if let Access::Missing(hole) = mapped.access(r.addr, end) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
