//! Words that every room shares: memory kinds and descriptors.

use crate::error::{Error, Result};

/// Where memory lives. The numbers are part of the C ABI and equal NIXL's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum MemKind {
    /// Host memory. `addr` is a virtual address; `device` is a NUMA hint or 0.
    Dram = 0,
    /// GPU memory. `addr` is a device address; `device` the CUDA ordinal.
    Vram = 1,
    /// A block device. `addr` is an offset; `device` an identifier that the backend defines.
    Block = 2,
    /// An object store. `addr` is an offset; the metadata string of the registration is the key.
    Object = 3,
    /// A file. `addr` is an offset; `device` the file descriptor.
    File = 4,
}

impl MemKind {
    /// Every kind.
    pub const ALL: [MemKind; 5] = [
        MemKind::Dram,
        MemKind::Vram,
        MemKind::Block,
        MemKind::Object,
        MemKind::File,
    ];

    /// The kind with this number.
    pub fn from_code(code: u32) -> Result<MemKind> {
        Self::ALL
            .into_iter()
            .find(|k| *k as u32 == code)
            .ok_or_else(|| Error::invalid(format!("memory kind {code} is not known")))
    }

    /// `DRAM`, `VRAM`, `BLOCK`, `OBJECT` or `FILE`.
    pub fn name(self) -> &'static str {
        match self {
            MemKind::Dram => "DRAM",
            MemKind::Vram => "VRAM",
            MemKind::Block => "BLOCK",
            MemKind::Object => "OBJECT",
            MemKind::File => "FILE",
        }
    }
}

/// A range of memory. Laid out like a row of an N×3 array of 64-bit integers, so that numpy arrays
/// and C arrays cross the boundary without a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(C)]
pub struct MemDesc {
    /// Address, or offset for memory that is not addressed; see [`MemKind`].
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Device; see [`MemKind`].
    pub device: u64,
}

impl MemDesc {
    /// One past the last byte, or an error if that is beyond the address space.
    pub fn end(&self) -> Result<u64> {
        self.addr.checked_add(self.len).ok_or_else(|| {
            Error::invalid(format!(
                "range at {:#x} of {} bytes wraps around",
                self.addr, self.len
            ))
        })
    }

    /// Whether `other` lies wholly inside this range, on the same device.
    pub fn contains(&self, other: &MemDesc) -> bool {
        match (self.end(), other.end()) {
            (Ok(end), Ok(other_end)) => {
                self.device == other.device && self.addr <= other.addr && other_end <= end
            }
            _ => false,
        }
    }
}

/// `count` ranges of `len` bytes, `stride` bytes apart, the first at `addr`: a row of an N×5 array.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(C)]
pub struct StridedDesc {
    /// Address of the first range.
    pub addr: u64,
    /// Length of each range in bytes.
    pub len: u64,
    /// Device; see [`MemKind`].
    pub device: u64,
    /// Distance from the start of one range to the start of the next, in bytes.
    pub stride: u64,
    /// Number of ranges.
    pub count: u64,
}

/// A range to register, with the metadata string that some backends want (a path, an object key).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegDesc {
    /// The range.
    pub range: MemDesc,
    /// Backend-defined; usually empty.
    pub meta: Vec<u8>,
}

impl From<MemDesc> for RegDesc {
    fn from(range: MemDesc) -> Self {
        RegDesc {
            range,
            meta: Vec::new(),
        }
    }
}
