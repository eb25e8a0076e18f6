//! Reading and writing the few integers and strings that leave the process.
//!
//! Everything is little-endian: both ends are on one host. The reader never indexes, so that
//! foreign bytes cannot make it panic; it answers `None` when they end too early.

/// Longest agent name, in bytes. Long enough for any UUID, host name and rank put together.
pub(super) const MAX_NAME: usize = 1024;

/// A cursor over foreign bytes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(n)?;
        self.rest = tail;
        Some(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A name that [`put_name`] wrote: UTF-8, not empty, no NUL, not too long.
    pub fn name(&mut self) -> Option<&'a str> {
        let len = usize::from(self.u16()?);
        let name = std::str::from_utf8(self.take(len)?).ok()?;
        is_name(name).then_some(name)
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Whether an agent may be called so.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains('\0')
}

/// Appends a name that satisfies [`is_name`].
pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    debug_assert!(is_name(name));
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
}
