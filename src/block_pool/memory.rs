//! Memory: arrays whose allocation may fail (a pool can be large, and running out of memory must be
//! a status and not the end of the process), and reading ahead.

use crate::error::{Error, Result, Status};

/// `count` copies of a value.
pub(super) fn filled<T: Clone>(count: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(count).map_err(|_| {
        Error::new(
            Status::ResourceExhausted,
            format!(
                "no memory for {what}: {count} times {} bytes",
                size_of::<T>()
            ),
        )
    })?;
    v.resize(count, value);
    Ok(v)
}

/// Asks the processor to fetch what will be written or read soon. Where it cannot be asked nothing
/// happens.
#[inline(always)]
pub(super) fn prefetch<T>(items: &[T], i: usize) {
    let Some(item) = items.get(i) else { return };
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the pointer is valid, and prefetching reads nothing as far as the program can see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(item).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}
