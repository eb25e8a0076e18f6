//! Arrays whose allocation may fail: a pool can be large, and running out of memory must be a
//! status and not the end of the process.

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
