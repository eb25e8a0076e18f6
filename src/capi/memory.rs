//! Memory kinds and descriptors, as they cross the boundary.

use super::input::{MAX_RANGES, bounded};
use crate::error::Result;
use crate::memory::{MemDesc, RegDesc, StridedDesc};

/// Host memory. `addr` is a virtual address; `device` is 0.
pub const KVF_MEM_DRAM: u32 = 0;
/// GPU memory. `addr` is a device address; `device` the CUDA ordinal.
pub const KVF_MEM_VRAM: u32 = 1;
/// A block device. `addr` is an offset; `device` an identifier that the backend defines.
pub const KVF_MEM_BLOCK: u32 = 2;
/// An object store. `addr` is an offset; the metadata of the registration is the key.
pub const KVF_MEM_OBJECT: u32 = 3;
/// A file. `addr` is an offset; `device` the file descriptor.
pub const KVF_MEM_FILE: u32 = 4;

/// A range of memory: a row of an N×3 array of 64-bit integers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_mem_desc {
    /// Address, or offset for memory that is not addressed; see `KVF_MEM_…`.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Device; see `KVF_MEM_…`.
    pub device: u64,
}

/// `count` ranges of `len` bytes, `stride` bytes from start to start: a row of an N×5 array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_strided_desc {
    /// Address of the first range.
    pub addr: u64,
    /// Length of each range in bytes.
    pub len: u64,
    /// Device; see `KVF_MEM_…`.
    pub device: u64,
    /// Distance from the start of one range to the start of the next, in bytes.
    pub stride: u64,
    /// Number of ranges, at least 1.
    pub count: u64,
}

/// A range to register.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_reg_desc {
    /// Address, or offset; see `KVF_MEM_…`.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Device; see `KVF_MEM_…`.
    pub device: u64,
    /// What the backend wants to know (a path, an object key); usually NULL.
    pub meta: *const u8,
    /// Its length in bytes.
    pub meta_len: usize,
}

/// Longest metadata of one registration in bytes: a path or a key, not a payload.
const MAX_META: usize = 1 << 20;

/// # Safety
/// As for [`super::input::slice`], and the metadata pointers are valid.
pub(super) unsafe fn reg_descs(ptr: *const kvf_reg_desc, len: usize) -> Result<Vec<RegDesc>> {
    // SAFETY: by contract, here and below.
    let descs = unsafe { bounded(ptr, len, MAX_RANGES, "descs") }?;
    descs
        .iter()
        .map(|d| {
            // SAFETY: by contract.
            let meta = unsafe { bounded(d.meta, d.meta_len, MAX_META, "desc.meta") }?;
            let range = MemDesc {
                addr: d.addr,
                len: d.len,
                device: d.device,
            };
            Ok(RegDesc {
                range,
                meta: meta.to_vec(),
            })
        })
        .collect()
}

/// # Safety
/// As for [`super::input::slice`].
pub(super) unsafe fn mem_descs<'a>(
    ptr: *const kvf_mem_desc,
    len: usize,
    what: &str,
) -> Result<&'a [MemDesc]> {
    // SAFETY: the caller's contract; the two structs have the same fields, as asserted below.
    unsafe { bounded(ptr.cast::<MemDesc>(), len, MAX_RANGES, what) }
}

/// # Safety
/// As for [`super::input::slice`].
pub(super) unsafe fn strided_descs<'a>(
    ptr: *const kvf_strided_desc,
    len: usize,
) -> Result<&'a [StridedDesc]> {
    // SAFETY: the caller's contract; the two structs have the same fields, as asserted below.
    unsafe { bounded(ptr.cast::<StridedDesc>(), len, MAX_RANGES, "descs") }
}

/// Asserts that two structs can stand for each other: size, alignment and each field's place.
macro_rules! same_layout {
    ($a:ty, $b:ty, $($field:ident),+) => {
        const _: () = {
            assert!(size_of::<$a>() == size_of::<$b>() && align_of::<$a>() == align_of::<$b>());
            $(assert!(std::mem::offset_of!($a, $field) == std::mem::offset_of!($b, $field));)+
        };
    };
}
same_layout!(kvf_mem_desc, MemDesc, addr, len, device);
same_layout!(
    kvf_strided_desc,
    StridedDesc,
    addr,
    len,
    device,
    stride,
    count
);
