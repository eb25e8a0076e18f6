//! Maps with string keys, and the values that several of them have.

use super::{MAX_KEYS, MAX_NAME, MAX_RANKS};
use crate::error::{Error, Result, Status, bail};
use crate::msgpack::Reader;

/// Reads one map with string keys, and nothing behind it: hands each value of a known key to `take`, and
/// tells which keys were there.
pub(super) fn read_map<'a, const N: usize>(
    bytes: &'a [u8],
    max: usize,
    keys: &[&'static str; N],
    mut take: impl FnMut(&mut Reader<'a>, &'static str) -> Result<()>,
) -> Result<[bool; N]> {
    if bytes.len() > max {
        bail!(
            Status::PeerIncompatible,
            "{} bytes are more than {max}",
            bytes.len()
        );
    }
    let mut r = Reader::new(bytes);
    let mut seen = [false; N];
    for _ in 0..r.map(MAX_KEYS)? {
        let key = r.str(MAX_NAME).map_err(|e| e.context("a key"))?;
        let Some(i) = keys.iter().position(|known| *known == key) else {
            r.skip().map_err(|e| e.context(format_args!("{key:?}")))?;
            continue;
        };
        if std::mem::replace(&mut seen[i], true) {
            bail!(Status::PeerIncompatible, "{key} is there twice");
        }
        take(&mut r, keys[i]).map_err(|e| e.context(key))?;
    }
    r.finish()?;
    Ok(seen)
}

/// Makes sure that these keys, the first of those that were looked for, were there.
pub(super) fn require(keys: &[&str], seen: &[bool]) -> Result<()> {
    let missing: Vec<&str> = keys
        .iter()
        .zip(seen)
        .filter_map(|(key, seen)| (!seen).then_some(*key))
        .collect();
    if !missing.is_empty() {
        bail!(Status::PeerIncompatible, "missing: {}", missing.join(", "));
    }
    Ok(())
}

/// Refuses to send what nobody would take.
pub(super) fn fits(what: &str, len: usize, max: usize) -> Result<()> {
    if len > max {
        return Err(Error::invalid(format!("{what}: {len} is more than {max}")));
    }
    Ok(())
}

pub(super) fn u32_of(r: &mut Reader) -> Result<u32> {
    Ok(r.uint(u32::MAX.into())? as u32)
}

/// A number of ranks: one at least.
pub(super) fn size_of(r: &mut Reader) -> Result<u32> {
    match r.uint(MAX_RANKS.into())? {
        0 => bail!(Status::PeerIncompatible, "0 ranks"),
        n => Ok(n as u32),
    }
}

pub(super) fn opt<'a, T>(
    r: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if r.nil()? {
        Ok(None)
    } else {
        read(r).map(Some)
    }
}

/// `n` values, each named by its place when something is wrong with it.
pub(super) fn list<'a, T>(
    r: &mut Reader<'a>,
    n: usize,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..n)
        .map(|i| read(r).map_err(|e| e.context(format_args!("[{i}]"))))
        .collect()
}
