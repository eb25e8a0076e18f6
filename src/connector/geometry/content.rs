//! What the blocks hold: the one description that is laid over our own regions and over every peer's.

use super::kv::{SlabOrder, StateSizes};
use super::order::PhysicalOrder;
use super::view::Cells;
use crate::error::{Result, Status, bail};
use crate::layout::{Part, Role};

/// How one engine arranges what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrangement {
    pub order: PhysicalOrder,
    pub slab: SlabOrder,
}

/// An attention layer inside the blocks of its region, as it is here.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub cells: Cells,
    /// Bytes before its first cell in a block of the region.
    pub offset: u64,
    /// Bytes of a block of the region.
    pub len: u64,
    /// Whether a row stands for a token.
    pub rows_are_tokens: bool,
}

/// The same layer inside the blocks of some rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub offset: u64,
    pub head_stride: u64,
    pub row_stride: u64,
    /// Bytes of a block of the region; of one head, where each has its own region.
    pub len: u64,
}

impl Attention {
    /// Where the layer is on a rank of `heads` heads whose blocks have `rows` rows.
    ///
    /// With as many heads and rows as here it is arranged as here, holes and neighbours included. Else it
    /// must be arranged without holes, so that the other numbers say where everything is.
    pub fn place(
        &self,
        mine: PhysicalOrder,
        heads: u64,
        rows: u64,
        theirs: PhysicalOrder,
    ) -> Result<Placed> {
        let c = &self.cells;
        if (heads, rows, mine) == (c.head_count(), c.rows, theirs) {
            return Ok(Placed {
                offset: self.offset,
                head_stride: c.head_stride,
                row_stride: c.row_stride,
                len: self.len,
            });
        }
        let Some(layers) = self.layers_in_slab(mine) else {
            bail!(
                Status::PeerIncompatible,
                "blocks of {} heads and {} tokens here, {heads} heads and {rows} tokens there, and here they \
                 lie beside others or beside padding in blocks of {} bytes, so that it is not known where \
                 they are there",
                c.head_count(),
                c.rows,
                self.len
            );
        };
        if mine != theirs && layers != 1 {
            bail!(
                Status::PeerIncompatible,
                "kv_cache_layout: blocks that hold {layers} layers side by side can only be exchanged for \
                 blocks of the same layout"
            );
        }
        let slab = bytes(&[layers, rows, c.cell])?;
        let all = bytes(&[heads, slab])?;
        Ok(match theirs {
            o if o.is_token_major() => Placed {
                offset: 0,
                head_stride: c.cell,
                row_stride: heads * c.cell,
                len: all,
            },
            o => Placed {
                offset: self.offset / c.rows * rows,
                head_stride: slab,
                row_stride: c.cell,
                len: if o.is_by_head() { slab } else { all },
            },
        })
    }

    /// Where the last cell ends in a block of a region that has `heads` heads of the layer.
    pub fn end(&self, at: &Placed, heads: u64, rows: u64) -> u64 {
        let reach = |count: u64, stride: u64| (count - 1).saturating_mul(stride);
        at.offset
            .saturating_add(reach(heads, at.head_stride))
            .saturating_add(reach(rows, at.row_stride))
            .saturating_add(self.cells.cell)
    }

    /// Whether our own region is told to be of shorter blocks than the layer has: layers of different
    /// pages lie over each other, and one length is told for all of them.
    pub fn is_cut_short(&self, mine: PhysicalOrder) -> bool {
        let c = &self.cells;
        let heads = if mine.is_by_head() { 1 } else { c.head_count() };
        let here = Placed {
            offset: self.offset,
            head_stride: c.head_stride,
            row_stride: c.row_stride,
            len: self.len,
        };
        self.end(&here, heads, c.rows) > self.len
    }

    /// How many layers share a head of a block, if nothing else is in the region's blocks.
    fn layers_in_slab(&self, mine: PhysicalOrder) -> Option<u64> {
        let c = &self.cells;
        if mine.is_token_major() && c.heads.is_some() {
            let tight = (c.head_stride, c.row_stride) == (c.cell, c.head_count() * c.cell);
            return (tight && self.offset == 0 && self.len == c.head_count() * c.slab())
                .then_some(1);
        }
        // What the region's block has for each head.
        let slab = match mine.is_by_head() {
            true => self.len,
            false => self.len / c.head_count(),
        };
        let whole = mine.is_by_head() || slab * c.head_count() == self.len;
        let strided = mine.is_by_head() || c.head_count() == 1 || c.head_stride == slab;
        let fits = self.offset % c.slab() == 0 && self.offset + c.slab() <= slab;
        let tight = whole && strided && fits && c.row_stride == c.cell && slab % c.slab() == 0;
        let layers = slab / c.slab();
        (tight && (layers == 1 || mine.is_block_outermost())).then_some(layers)
    }

    /// The parts of the layer in a region of a rank that holds `count` heads from `first` there.
    pub fn parts(
        &self,
        base: &Part,
        how: Arrangement,
        rows: u64,
        at: &Placed,
    ) -> Result<Vec<Part>> {
        let c = &self.cells;
        let token_major = how.order.is_token_major();
        let known = self.rows_are_tokens
            && match how.slab {
                SlabOrder::Cells => true,
                SlabOrder::Halves => c.heads.is_none() || c.kv.1 > 0 && !token_major,
                SlabOrder::Opaque => c.heads.is_none() || token_major,
            };
        let role = match c.heads {
            None => Role::LATENT,
            Some(_) => Role::KV,
        };
        let base = Part {
            role,
            offset: at.offset,
            head_stride: at.head_stride,
            row_stride: at.row_stride,
            ..*base
        };
        if !known {
            let cell_bytes = narrow("head of a block", bytes(&[rows, c.cell])?)?;
            return Ok(vec![Part {
                rows: 1,
                cell_bytes,
                elem_bytes: self.elem(cell_bytes.into()),
                ..base
            }]);
        }
        let rows = narrow("rows", rows)?;
        let (k, v) = c.kv;
        if v == 0 || how.slab == SlabOrder::Opaque {
            let elem_bytes = self.elem(c.cell);
            let cell_bytes = narrow("cell", c.cell)?;
            return Ok(vec![Part {
                rows,
                cell_bytes,
                elem_bytes,
                ..base
            }]);
        }
        let part = |role, offset, row_stride, cell: u64| {
            Ok(Part {
                role,
                rows,
                offset: at.offset + offset,
                row_stride,
                cell_bytes: narrow("cell", cell)?,
                elem_bytes: self.elem(cell),
                ..base
            })
        };
        Ok(match how.slab {
            SlabOrder::Halves => vec![
                part(Role::K, 0, k, k)?,
                part(Role::V, u64::from(rows) * k, v, v)?,
            ],
            _ => vec![
                part(Role::K, 0, at.row_stride, k)?,
                part(Role::V, k, at.row_stride, v)?,
            ],
        })
    }

    fn elem(&self, cell: u64) -> u32 {
        match cell % self.cells.elem {
            0 => self.cells.elem as u32,
            _ => 1,
        }
    }
}

/// The pieces of a state on rank `rank` of `size`, of a layer whose sizes on a rank of `mine` are
/// `sizes`. All pieces are cut into equal shares.
pub(super) fn state_parts(
    sizes: &StateSizes,
    mine: u32,
    rank: u32,
    size: u32,
    base: &Part,
) -> Result<(Vec<Part>, StateSizes)> {
    let share = |what: &str, local: u32| {
        let total = u64::from(local) * u64::from(mine);
        if total % u64::from(size) != 0 || total > u32::MAX.into() {
            bail!(
                Status::PeerIncompatible,
                "ssm_sizes: {local} {what} on each of {mine} ranks cannot be dealt out to tp_size {size}"
            );
        }
        Ok((total as u32, (total / u64::from(size)) as u32))
    };
    let row = sizes.conv_elem_bytes;
    let channel = u64::from(sizes.conv_rows) * u64::from(row);
    let mut theirs = StateSizes {
        conv_channels: Vec::with_capacity(sizes.conv_channels.len()),
        ..sizes.clone()
    };
    let mut parts = Vec::with_capacity(sizes.conv_channels.len() + 1);
    let mut offset = 0;
    for (i, &local) in sizes.conv_channels.iter().enumerate() {
        let (total, count) = share("channels", local)?;
        theirs.conv_channels.push(count);
        parts.push(Part {
            role: Role(Role::CONV.0 + i as u32),
            offset,
            heads_total: total,
            head_first: rank * count,
            head_count: count,
            head_stride: channel,
            rows: sizes.conv_rows,
            row_stride: row.into(),
            cell_bytes: row,
            elem_bytes: row,
            ..*base
        });
        offset += u64::from(count) * channel;
    }
    let (total, count) = share("heads", sizes.ssm_heads)?;
    theirs.ssm_heads = count;
    if count == 0 || sizes.ssm_head_bytes == 0 {
        return Ok((parts, theirs));
    }
    parts.push(Part {
        role: Role::SSM,
        offset,
        heads_total: total,
        head_first: rank * count,
        head_count: count,
        head_stride: sizes.ssm_head_bytes.into(),
        rows: 1,
        row_stride: sizes.ssm_head_bytes.into(),
        cell_bytes: sizes.ssm_head_bytes,
        elem_bytes: sizes.ssm_elem_bytes,
        ..*base
    });
    Ok((parts, theirs))
}

/// A product that stays far from overflow.
fn bytes(factors: &[u64]) -> Result<u64> {
    let product = factors.iter().try_fold(1u64, |n, f| n.checked_mul(*f));
    match product {
        Some(n) if n < 1 << 48 => Ok(n),
        _ => bail!(
            Status::InvalidArgument,
            "a block of {factors:?} bytes is too large"
        ),
    }
}

fn narrow(what: &str, value: u64) -> Result<u32> {
    match u32::try_from(value) {
        Ok(n) if n <= u32::MAX / 2 => Ok(n),
        _ => bail!(
            Status::InvalidArgument,
            "{what} of {value} bytes is too large"
        ),
    }
}
