//! Reading what C hands over: pointer and length pairs, strings, option structs.
//!
//! All of it is borrowed for the call. What can be checked is checked (null, alignment, overflow,
//! UTF-8, sizes); that a non-null pointer points to what the caller says is the one thing that C
//! programs are trusted with.

use std::ffi::{CStr, c_char};
use std::mem::{MaybeUninit, align_of, size_of};

use crate::error::{Error, Result};

/// Most elements of an array of ranges or indices: an index counts no further.
pub(super) const MAX_RANGES: usize = i32::MAX as usize;
/// Most elements of an array of names or parameters.
pub(super) const MAX_NAMES: usize = 1024;

/// Option structs: every bit pattern, all zero included, is a value.
///
/// # Safety
/// `#[repr(C)]`, made of integers and raw pointers only.
pub(super) unsafe trait Plain: Copy {
    /// Size of the struct in the first version that had it. It never changes: a smaller
    /// `struct_size` is a mistake, and believing it would cut a pointer in two.
    const FIRST_SIZE: usize;
}

/// The array behind a pointer and a length.
///
/// # Safety
/// A non-null `ptr` points to `len` values that stay unchanged during the call.
pub(super) unsafe fn slice<'a, T>(ptr: *const T, len: usize, what: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() {
        return Err(Error::invalid(format!(
            "{what} is NULL but its length is {len}"
        )));
    }
    if !ptr.is_aligned() {
        return Err(Error::invalid(format!(
            "{what} at {ptr:p} is not aligned to {} bytes",
            align_of::<T>()
        )));
    }
    let bytes = len
        .checked_mul(size_of::<T>())
        .filter(|&n| n <= isize::MAX as usize);
    if bytes.and_then(|n| ptr.addr().checked_add(n)).is_none() {
        return Err(Error::invalid(format!(
            "{what} at {ptr:p} has an impossible length, {len}"
        )));
    }
    // SAFETY: not null, aligned, not larger than an object can be, not wrapping around; the rest is
    // the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
}

/// The same with a limit on the number of elements, for what is walked or copied before any other
/// check could notice a length that is a mistake.
///
/// # Safety
/// As for [`slice`].
pub(super) unsafe fn bounded<'a, T>(
    ptr: *const T,
    len: usize,
    max: usize,
    what: &str,
) -> Result<&'a [T]> {
    if len > max {
        return Err(Error::invalid(format!(
            "{what} has length {len}, more than {max}"
        )));
    }
    // SAFETY: the same contract.
    unsafe { slice(ptr, len, what) }
}

/// A NUL-terminated string, not NULL.
///
/// # Safety
/// A non-null `ptr` points to a NUL-terminated string that stays unchanged during the call.
pub(super) unsafe fn text<'a>(ptr: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the same contract.
    unsafe { opt_text(ptr, what) }?.ok_or_else(|| Error::invalid(format!("{what} is NULL")))
}

/// A NUL-terminated string, or nothing for NULL.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn opt_text<'a>(ptr: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if ptr.is_null() {
        return Ok(None);
    }
    // SAFETY: not null; terminated by the caller's word.
    let bytes = unsafe { CStr::from_ptr(ptr) };
    match bytes.to_str() {
        Ok(s) => Ok(Some(s)),
        Err(e) => Err(Error::invalid(format!("{what} is not UTF-8: {e}"))),
    }
}

/// An array of NUL-terminated strings.
///
/// # Safety
/// As for [`slice`] and, for each element, [`text`].
pub(super) unsafe fn texts<'a>(
    ptr: *const *const c_char,
    len: usize,
    what: &str,
) -> Result<Vec<&'a str>> {
    // SAFETY: the same contract.
    unsafe { texts_up_to(ptr, len, MAX_NAMES, what) }
}

/// The same with another limit.
///
/// # Safety
/// As for [`texts`].
pub(super) unsafe fn texts_up_to<'a>(
    ptr: *const *const c_char,
    len: usize,
    max: usize,
    what: &str,
) -> Result<Vec<&'a str>> {
    // SAFETY: the same contract.
    let pointers = unsafe { bounded(ptr, len, max, what) }?;
    pointers
        .iter()
        // SAFETY: the same contract.
        .map(|&p| unsafe { text(p, what) })
        .collect()
}

/// Where a result goes. Written once, at the end, on success.
///
/// # Safety
/// A non-null `ptr` may be written to.
pub(super) unsafe fn out<'a, T>(ptr: *mut T, what: &str) -> Result<&'a mut MaybeUninit<T>> {
    if ptr.is_null() {
        return Err(Error::invalid(format!("{what} is NULL")));
    }
    if !ptr.is_aligned() {
        return Err(Error::invalid(format!("{what} at {ptr:p} is not aligned")));
    }
    // SAFETY: not null, aligned; writable by the caller's word; MaybeUninit asks for no value.
    Ok(unsafe { &mut *ptr.cast::<MaybeUninit<T>>() })
}

/// Where a result goes that the caller may leave out by passing NULL.
///
/// # Safety
/// A non-null `ptr` may be written to.
pub(super) unsafe fn opt_out<'a, T>(
    ptr: *mut T,
    what: &str,
) -> Result<Option<&'a mut MaybeUninit<T>>> {
    if ptr.is_null() {
        return Ok(None);
    }
    // SAFETY: the same contract.
    unsafe { out(ptr, what) }.map(Some)
}

/// Largest option struct that is believed, so that a stray `struct_size` does not make us read
/// on.
const MAX_STRUCT: usize = 512;

/// An option struct whose first field is its `struct_size`, or all zero for NULL.
///
/// A caller built against an older header passes a smaller struct: what is missing is zero, and
/// zero is every field's default. One built against a newer header passes a larger struct: that
/// is fine as long as what we do not know is zero.
///
/// # Safety
/// A non-null `ptr` points to a struct of as many bytes as its first 32 bits say.
pub(super) unsafe fn options<T: Plain>(ptr: *const T, what: &str) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    if ptr.is_null() {
        // SAFETY: all zero is a value of a `Plain` type.
        return Ok(unsafe { value.assume_init() });
    }
    // SAFETY: the size field is readable by the caller's word.
    let size = unsafe { struct_size(ptr, what) }?;
    let bytes = ptr.cast::<u8>();
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable by the caller's word, and `known` fit into `value`.
    unsafe { std::ptr::copy_nonoverlapping(bytes, value.as_mut_ptr().cast::<u8>(), known) };
    for i in known..size {
        // SAFETY: `i < size`.
        if unsafe { bytes.add(i).read() } != 0 {
            return Err(Error::invalid(format!(
                "{what} has {size} bytes and byte {i} is set, but this library knows only {known}: \
                 it is older than the header the program was built with"
            )));
        }
    }
    // SAFETY: every bit pattern is a value of a `Plain` type.
    Ok(unsafe { value.assume_init() })
}

/// The checked `struct_size` of a struct.
///
/// # Safety
/// A non-null `ptr` points to at least 4 readable bytes.
unsafe fn struct_size<T: Plain>(ptr: *const T, what: &str) -> Result<usize> {
    // SAFETY: 4 bytes are readable by contract; read_unaligned asks for no alignment.
    let size = unsafe { ptr.cast::<u32>().read_unaligned() } as usize;
    if !(T::FIRST_SIZE..=MAX_STRUCT).contains(&size) || size % align_of::<T>() != 0 {
        return Err(Error::invalid(format!(
            "{what}: struct_size is {size}; set it to sizeof(the struct), which is {} here",
            size_of::<T>()
        )));
    }
    Ok(size)
}

/// A flag byte: 0 is no, 1 is yes.
pub(super) fn flag(value: u8, what: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::invalid(format!("{what} is {value}; it is 0 or 1"))),
    }
}

/// `None` for 0, which everywhere means "the default".
pub(super) fn nonzero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Options {
        struct_size: u32,
        a: u32,
        b: u64,
    }
    // SAFETY: integers only.
    unsafe impl Plain for Options {
        const FIRST_SIZE: usize = 8;
    }

    fn read(bytes: &[u64]) -> Result<Options> {
        // SAFETY: every test below passes at least as many bytes as its size field says.
        unsafe { options(bytes.as_ptr().cast::<Options>(), "options") }
    }

    #[test]
    fn structs_grow_both_ways() {
        let old = read(&[8 | (5 << 32)]).unwrap();
        assert_eq!(
            old,
            Options {
                struct_size: 8,
                a: 5,
                b: 0
            }
        );
        let same = read(&[16 | (5 << 32), 9]).unwrap();
        assert_eq!(
            same,
            Options {
                struct_size: 16,
                a: 5,
                b: 9
            }
        );
        let new = read(&[24 | (5 << 32), 9, 0]).unwrap();
        assert_eq!(
            new,
            Options {
                struct_size: 24,
                a: 5,
                b: 9
            }
        );
        let e = read(&[24 | (5 << 32), 9, 1 << 8]).unwrap_err();
        assert!(e.message().contains("byte 17 is set"), "{e}");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0u64, 1, 7, 9, 12, 17, 520, 0xffff_ffff] {
            let e = read(&[size]).unwrap_err();
            assert!(
                e.message().contains(&format!("struct_size is {size}")),
                "{e}"
            );
        }
        // SAFETY: NULL is allowed.
        let none = unsafe { options(std::ptr::null::<Options>(), "options") }.unwrap();
        assert_eq!(
            none,
            Options {
                struct_size: 0,
                a: 0,
                b: 0
            }
        );
    }

    #[test]
    fn arrays_are_checked() {
        let values = [1u64, 2];
        // SAFETY: refused before anything is read, or real.
        unsafe {
            assert_eq!(slice(values.as_ptr(), 2, "v").unwrap(), [1, 2]);
            assert!(slice::<u64>(std::ptr::null(), 0, "v").unwrap().is_empty());
            assert!(slice::<u64>(std::ptr::null(), 1, "v").is_err());
            assert!(slice(values.as_ptr().byte_add(1), 1, "v").is_err());
            assert!(slice(values.as_ptr(), usize::MAX / 4, "v").is_err());
            assert_eq!(bounded(values.as_ptr(), 2, 2, "v").unwrap(), [1, 2]);
            let e = bounded(values.as_ptr(), 3, 2, "v").unwrap_err();
            assert_eq!(e.message(), "v has length 3, more than 2");
        }
    }
}
