//! One tensor, with everything that may be left unsaid worked out: how far its blocks are apart, and
//! where in a block each cell is.

use super::kv::{Content, HeadShape, KvCache, KvTensor};
use super::order::PhysicalOrder;
use crate::error::{Result, Status, bail};
use crate::layout::{GroupKind, Parallel, shard};

/// A tensor's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Kernel blocks; of a state, blocks.
    pub blocks: u64,
    /// Bytes from block to block.
    pub stride: u64,
    /// Bytes of a block, padding included.
    pub page: u64,
    /// Bytes of all its elements.
    pub bytes: u64,
    /// Whether one block is a page without holes.
    pub dense: bool,
    /// Where cells are; `None` of a state.
    pub cells: Option<Cells>,
}

/// The cells of one block of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cells {
    /// Heads of the layer in the model and the range held here; `None` of a latent.
    pub heads: Option<Heads>,
    /// Rows of a block: its tokens, or its states if several tokens share one.
    pub rows: u64,
    /// Bytes of a head's row.
    pub cell: u64,
    /// Bytes of its K and of its V; `(cell, 0)` where they are not told apart.
    pub kv: (u64, u64),
    /// Bytes from head to head.
    pub head_stride: u64,
    /// Bytes from row to row.
    pub row_stride: u64,
    /// Bytes of an element.
    pub elem: u64,
}

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub total: u32,
    pub first: u32,
    pub count: u32,
}

impl View {
    /// Heads in a block; one if there are none.
    pub fn heads(&self) -> u64 {
        self.cells.map_or(1, |c| c.head_count())
    }
}

impl Cells {
    /// Heads in a block; one for a latent.
    pub fn head_count(&self) -> u64 {
        self.heads.map_or(1, |h| h.count.into())
    }

    /// Bytes of one head of a block.
    pub fn slab(&self) -> u64 {
        self.rows * self.cell
    }
}

/// Works out the view of a tensor.
pub(super) fn view(
    cache: &KvCache,
    order: PhysicalOrder,
    tensor: &KvTensor,
    parallel: &Parallel,
) -> Result<View> {
    let Some(group) = cache.groups.get(tensor.group as usize) else {
        bail!(
            Status::InvalidArgument,
            "group {} of {} groups",
            tensor.group,
            cache.groups.len()
        );
    };
    let is_state = matches!(tensor.content, Content::State(_));
    if is_state != (group.kind == GroupKind::State) {
        bail!(
            Status::InvalidArgument,
            "content {} in group {} of kind {}",
            if is_state { "state" } else { "attention" },
            tensor.group,
            group.kind.name()
        );
    }
    if tensor.elem_bytes == 0 && !is_state {
        bail!(Status::InvalidArgument, "elem_bytes is 0");
    }
    for (length, stride) in &tensor.dims {
        small("shape", *length)?;
        small("stride", *stride)?;
    }
    small("page_bytes", tensor.page_bytes)?;
    let blocks = match tensor.num_blocks {
        0 => cache.num_blocks,
        n => n,
    };
    if is_state {
        state(cache, tensor, blocks)
    } else {
        let blocks = blocks * u64::from(cache.blocks_per_logical);
        let tokens = u64::from(group.tokens_per_block / cache.blocks_per_logical);
        attention(cache, order, tensor, parallel, blocks, tokens)
    }
}

fn state(cache: &KvCache, tensor: &KvTensor, blocks: u64) -> Result<View> {
    let ppl = u64::from(cache.blocks_per_logical);
    let Content::State(sizes) = &tensor.content else {
        bail!(Status::Internal, "not a state");
    };
    let (conv, ssm) = sizes.bytes();
    let needed = small("state", conv.saturating_add(ssm))?;
    let page = match tensor.page_bytes {
        0 => needed,
        n => n,
    };
    if needed == 0 || needed > page {
        bail!(
            Status::InvalidArgument,
            "page_bytes {page} for {conv} bytes of convolution and {ssm} of recurrent state"
        );
    }
    if page % ppl != 0 {
        bail!(
            Status::InvalidArgument,
            "page_bytes {page} of a state is not a multiple of blocks_per_logical {ppl}"
        );
    }
    // A peer is told no other distance than the page.
    let stride = match tensor.dims[..] {
        [(_, stride), _, ..] => stride,
        _ => page,
    };
    if stride != page {
        bail!(
            Status::NotSupported,
            "states {stride} bytes apart whose page_bytes is {page}"
        );
    }
    enough_blocks(tensor, blocks)?;
    Ok(View {
        blocks,
        stride,
        page,
        bytes: page.saturating_mul(blocks),
        dense: true,
        cells: None,
    })
}

fn attention(
    cache: &KvCache,
    order: PhysicalOrder,
    tensor: &KvTensor,
    parallel: &Parallel,
    blocks: u64,
    tokens: u64,
) -> Result<View> {
    let ppl = u64::from(cache.blocks_per_logical);
    let elem = u64::from(tensor.elem_bytes);
    let heads = match &tensor.content {
        Content::Heads(shape) => Some(heads(cache, shape, parallel)?),
        _ => None,
    };
    let count = heads.map_or(1, |h| u64::from(h.count));
    let stated = stated_cells(tensor, count)?;
    let (rows, cell) = stated.map_or((tokens, 0), |s| (s.rows, s.cell));
    let kv = match tensor.content {
        Content::Heads(s) => (u64::from(s.k_size) * elem, u64::from(s.v_size) * elem),
        Content::Latent(size) => (u64::from(size) * elem, 0),
        Content::State(_) => (0, 0),
    };
    // A cell that is more than its K and V (scales, say) is not taken apart.
    let cell = if stated.is_none() { kv.0 + kv.1 } else { cell };
    let kv = if kv.0 + kv.1 == cell && heads.is_some() {
        kv
    } else {
        (cell, 0)
    };
    small("head size", cell)?;
    if cell == 0 || rows == 0 {
        bail!(
            Status::InvalidArgument,
            "a block of {rows} rows of {cell} bytes: head sizes and block size must be known"
        );
    }
    let slab = small("head of a block", rows.saturating_mul(cell))?;
    let content = small("block", count.saturating_mul(slab))?;
    let page = match tensor.page_bytes {
        0 => content,
        n if n % ppl == 0 => n / ppl,
        n => bail!(
            Status::InvalidArgument,
            "page_bytes {n} is not a multiple of blocks_per_logical {ppl}"
        ),
    };
    if page < content {
        bail!(
            Status::InvalidArgument,
            "page_bytes {} for {ppl} kernel blocks of {count} heads, {rows} tokens and cells of {cell} \
             bytes",
            tensor.page_bytes
        );
    }
    let usual = match order {
        o if o.is_token_major() => (cell, count * cell),
        o if o.is_by_head() => (small("head", blocks.saturating_mul(slab))?, cell),
        _ => (slab, cell),
    };
    let (head_stride, row_stride) = match stated {
        Some(s) => s.strides,
        None => usual,
    };
    // With one head or one row its stride says nothing.
    let head_stride = if count == 1 { usual.0 } else { head_stride };
    let row_stride = if rows == 1 { usual.1 } else { row_stride };
    let stride = match tensor.dims[..] {
        [(_, stride), _, ..] => stride,
        [_] => page,
        [] if order.is_by_head() => slab,
        [] => page,
    };
    enough_blocks(tensor, blocks)?;
    if let [(n, s)] = tensor.dims[..] {
        flat_holds(n.saturating_mul(s), blocks, page)?;
    }
    let dense = match tensor.dims.len() {
        0 => !order.is_by_head() && page == content,
        1 => false,
        _ => page == content && is_dense(&tensor.dims[1..], elem),
    };
    let bytes = match tensor.dims[..] {
        [(n, s)] => n.saturating_mul(s),
        [] => blocks.saturating_mul(page),
        [(n, _), ..] => n.saturating_mul(content),
    };
    Ok(View {
        blocks,
        stride,
        page,
        bytes: small("tensor", bytes)?,
        dense,
        cells: Some(Cells {
            heads,
            rows,
            cell,
            kv,
            head_stride,
            row_stride,
            elem,
        }),
    })
}

/// This rank's heads of a layer.
fn heads(cache: &KvCache, shape: &HeadShape, parallel: &Parallel) -> Result<Heads> {
    let total = match shape.total {
        0 => cache.kv_heads,
        n => n,
    };
    let (first, count) = shard(total, parallel.tp_size, parallel.tp_rank)?;
    Ok(Heads {
        total,
        first,
        count,
    })
}

#[derive(Clone, Copy)]
struct Stated {
    rows: u64,
    cell: u64,
    strides: (u64, u64),
}

/// What the dimensions of a tensor say about its cells.
fn stated_cells(tensor: &KvTensor, heads: u64) -> Result<Option<Stated>> {
    let elem = u64::from(tensor.elem_bytes);
    let (head_dim, row_dim, cell_dim) = match tensor.dims[..] {
        [] | [_] => return Ok(None),
        [_, rows, cell] => ((1, 0), rows, cell),
        [_, heads, rows, cell] => (heads, rows, cell),
        _ => bail!(
            Status::NotSupported,
            "a tensor of {} dimensions; [blocks, heads, tokens, cell] has 4",
            tensor.dims.len()
        ),
    };
    if head_dim.0 != heads {
        bail!(
            Status::InvalidArgument,
            "shape has {} heads, and this rank's share of the model's is {heads}",
            head_dim.0
        );
    }
    if cell_dim.0 > 1 && cell_dim.1 != elem {
        bail!(
            Status::NotSupported,
            "elements of a cell {} bytes apart, each of {elem}",
            cell_dim.1
        );
    }
    Ok(Some(Stated {
        rows: row_dim.0,
        cell: cell_dim.0 * elem,
        strides: (head_dim.1, row_dim.1),
    }))
}

/// A flat view has room for the blocks.
fn flat_holds(bytes: u64, blocks: u64, page: u64) -> Result<()> {
    if bytes < blocks.saturating_mul(page) {
        bail!(
            Status::InvalidArgument,
            "a flat view of {bytes} bytes for {blocks} blocks of {page}"
        );
    }
    Ok(())
}

/// Whether dimensions follow each other without holes.
fn is_dense(dims: &[(u64, u64)], elem: u64) -> bool {
    let mut expected = elem;
    for (length, stride) in dims.iter().rev() {
        if *length != 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*length);
    }
    true
}

fn enough_blocks(tensor: &KvTensor, blocks: u64) -> Result<()> {
    match tensor.dims[..] {
        [(have, _), _, ..] if have < blocks => bail!(
            Status::InvalidArgument,
            "shape has {have} blocks, and the pool {blocks}"
        ),
        _ => Ok(()),
    }
}

/// Keeps numbers far from overflow, so that products of two of blocks and bytes are safe to compare.
pub(super) fn small(what: &str, value: u64) -> Result<u64> {
    if value >= 1 << 48 {
        bail!(Status::InvalidArgument, "{what} of {value} is too large");
    }
    Ok(value)
}
