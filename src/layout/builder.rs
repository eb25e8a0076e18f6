//! Builders for the layouts that engines have.
//!
//! A builder knows the names of arrangements (head-major, K and V in one page, dimension-first
//! convolution state) and turns them into offsets and strides. What it does not know can be put
//! into the tables of [`Layout`] by hand.

use super::*;
use crate::error::{Result, Status, bail};

/// Heads that rank `rank` of `size` holds out of `total`: `(first, count)`.
///
/// Heads are dealt out in order. With fewer heads than ranks each rank holds one, and neighbouring
/// ranks hold the same (the usual rule of engines with grouped-query attention): head
/// `rank * total / size`. An error if neither number divides the other.
pub fn shard(total: u32, size: u32, rank: u32) -> Result<(u32, u32)> {
    if total == 0 || size == 0 || rank >= size {
        bail!(
            Status::InvalidArgument,
            "heads {total} over tp_size {size} at tp_rank {rank}"
        );
    }
    if total % size == 0 {
        let count = total / size;
        return Ok((rank * count, count));
    }
    if size % total == 0 {
        return Ok((rank / (size / total), 1));
    }
    bail!(
        Status::InvalidArgument,
        "heads {total} and tp_size {size}: neither divides the other"
    )
}

/// Memory of one region, before it is known how long its pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Address of page 0.
    pub base: u64,
    /// Bytes between the starts of pages; 0 means that pages follow each other without gaps.
    pub page_stride: u64,
    /// Number of pages (kernel blocks; for state groups, blocks).
    pub page_count: u64,
    /// Kind of memory.
    pub mem: MemKind,
    /// Device.
    pub device: u64,
}

impl Span {
    /// `page_count` pages of host memory without gaps.
    pub fn host(base: u64, page_count: u64) -> Self {
        Span {
            base,
            page_stride: 0,
            page_count,
            mem: MemKind::Dram,
            device: 0,
        }
    }

    fn region(self, page_len: u64) -> Region {
        Region {
            base: self.base,
            page_stride: if self.page_stride == 0 {
                page_len
            } else {
                self.page_stride
            },
            page_len,
            page_count: self.page_count,
            mem: self.mem,
            device: self.device,
        }
    }
}

/// Which of heads and tokens lies outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageOrder {
    /// `[tokens][heads][head size]`, "NHD", token-major.
    Nhd,
    /// `[heads][tokens][head size]`, "HND", head-major.
    Hnd,
}

/// Where K and V of a layer are in relation to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvPlacement {
    /// Two regions: first K's, then V's.
    Regions,
    /// One page, all of K before all of V: `[2][heads][tokens]` or `[2][tokens][heads]`.
    Planes,
    /// One page, and within the outer of heads and tokens, K before V: `[heads][2][tokens]` or
    /// `[tokens][2][heads]`.
    Halves,
    /// One page, V right behind K in each cell: `[heads][tokens][2]` or `[tokens][heads][2]`.
    Cells,
    /// One page of `[heads]` slabs, each holding K and V of all its tokens in an order known only to
    /// the attention backend. Can be split by head and never by token.
    Slabs,
}

/// Attention layers with heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseShape {
    /// KV heads of the model, before tensor parallelism.
    pub kv_heads: u32,
    /// Elements of a K head.
    pub k_head_size: u32,
    /// Elements of a V head.
    pub v_head_size: u32,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// Order within the page.
    pub order: PageOrder,
    /// Where V is in relation to K.
    pub kv: KvPlacement,
}

/// Layers with one vector per token, the same on every rank: MLA, indexer caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Elements per token.
    pub size: u32,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// [`Role::LATENT`], or a number of the caller's.
    pub role: Role,
}

/// Order of the convolution state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConvOrder {
    /// `[channels][rows]`, dimension-first: each sub-projection is contiguous.
    ChannelsFirst,
    /// `[rows][channels]`: each row holds a piece of every sub-projection.
    RowsFirst,
}

/// One sub-projection of the convolution state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubProjection {
    /// What tensor parallelism deals out, as [`shard`] does: channels, or groups of channels when
    /// there may be fewer groups than ranks.
    pub units: u32,
    /// Channels of each unit.
    pub channels_per_unit: u32,
}

/// Layers with recurrent state: convolution sub-projections one after the other, then the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// x of Mamba 1; x, B, C of Mamba 2; Q, K, V of gated linear attention.
    pub conv: Vec<SubProjection>,
    /// Rows of the convolution state (kernel width − 1).
    pub conv_rows: u32,
    /// Bytes of an element of the convolution state.
    pub conv_elem_bytes: u32,
    /// Order of the convolution state.
    pub conv_order: ConvOrder,
    /// Heads of the recurrent state in the model.
    pub ssm_heads: u32,
    /// Bytes of the recurrent state of one head.
    pub ssm_head_bytes: u32,
    /// Bytes of an element of the recurrent state.
    pub ssm_elem_bytes: u32,
}

/// Collects groups and layers into a [`Layout`].
///
/// ```
/// use kvferry::layout::*;
/// // Rank 1 of 4 of a model with 8 KV heads: two layers, blocks of 16 tokens.
/// let mut b = LayoutBuilder::new(Parallel::tp(1, 4));
/// let g = b.attention(GroupKind::Full, 16, 1);
/// let shape = DenseShape {
///     kv_heads: 8, k_head_size: 128, v_head_size: 128, elem_bytes: 2,
///     order: PageOrder::Hnd, kv: KvPlacement::Cells,
/// };
/// b.dense(g, 0, shape, &[Span::host(0x10_0000, 64)])?;
/// b.dense(g, 1, shape, &[Span::host(0x90_0000, 64)])?;
/// let layout = b.finish()?;
/// assert_eq!(layout.regions[0].page_len, 2 * 16 * 2 * 128 * 2); // heads, tokens, K and V, bytes
/// assert_eq!(layout.parts[0].head_first, 2);
/// # Ok::<(), kvferry::error::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LayoutBuilder {
    layout: Layout,
}

impl LayoutBuilder {
    /// An empty layout of this rank.
    pub fn new(parallel: Parallel) -> Self {
        LayoutBuilder {
            layout: Layout {
                parallel,
                ..Layout::default()
            },
        }
    }

    /// Adds an attention group of blocks of `tokens_per_block` tokens, each `kernel_blocks` pages;
    /// returns its index. For windows and formats use [`LayoutBuilder::group`].
    pub fn attention(&mut self, kind: GroupKind, tokens_per_block: u32, kernel_blocks: u32) -> u32 {
        self.group(Group {
            kind,
            tokens_per_block,
            kernel_blocks,
            window: 0,
            format: 0,
        })
    }

    /// Adds a state group; returns its index.
    pub fn state_group(&mut self) -> u32 {
        self.attention(GroupKind::State, 1, 1)
    }

    /// Adds a group; returns its index.
    pub fn group(&mut self, group: Group) -> u32 {
        self.layout.groups.push(group);
        self.layout.groups.len() as u32 - 1
    }

    /// Adds a region as it is; returns its index. For parts that are added with
    /// [`LayoutBuilder::part`].
    pub fn region(&mut self, region: Region) -> u32 {
        self.layout.regions.push(region);
        self.layout.regions.len() as u32 - 1
    }

    /// Adds a part as it is.
    pub fn part(&mut self, part: Part) -> &mut Self {
        self.layout.parts.push(part);
        self
    }

    /// Adds an attention layer with heads: this rank's [`shard`] of them. `spans` is one region, or
    /// K's and V's with [`KvPlacement::Regions`].
    ///
    /// When decode context parallelism spreads tokens over ranks that share heads, the heads are
    /// dealt out over all `tp_size` ranks all the same.
    pub fn dense(
        &mut self,
        group: u32,
        layer: u32,
        shape: DenseShape,
        spans: &[Span],
    ) -> Result<&mut Self> {
        let heads = self.heads(shape.kv_heads)?;
        self.dense_heads(group, layer, shape, heads, spans)
    }

    /// Adds an attention layer with heads whose every head has regions of its own. `spans` is one
    /// region for each head that this rank holds, or with [`KvPlacement::Regions`] K's and V's of the
    /// first, then of the next.
    pub fn dense_by_head(
        &mut self,
        group: u32,
        layer: u32,
        shape: DenseShape,
        spans: &[Span],
    ) -> Result<&mut Self> {
        let (first, count) = self.heads(shape.kv_heads)?;
        let each = if shape.kv == KvPlacement::Regions {
            2
        } else {
            1
        };
        if spans.len() != each * count as usize {
            bail!(
                Status::InvalidArgument,
                "layer {layer}: {} regions for {count} heads, {each} wanted for each",
                spans.len()
            );
        }
        for (head, spans) in (first..).zip(spans.chunks(each)) {
            self.dense_heads(group, layer, shape, (head, 1), spans)?;
        }
        Ok(self)
    }

    fn dense_heads(
        &mut self,
        group: u32,
        layer: u32,
        shape: DenseShape,
        (head_first, head_count): (u32, u32),
        spans: &[Span],
    ) -> Result<&mut Self> {
        let rows = self.tokens_per_page(group)?;
        let wanted = if shape.kv == KvPlacement::Regions {
            2
        } else {
            1
        };
        if spans.len() != wanted {
            bail!(
                Status::InvalidArgument,
                "layer {layer}: {} regions for K and V, {wanted} wanted",
                spans.len()
            );
        }
        let k = product("K cell", &[shape.k_head_size, shape.elem_bytes])?;
        let v = product("V cell", &[shape.v_head_size, shape.elem_bytes])?;
        let (h, n) = (u64::from(head_count), u64::from(rows));
        let page = |cell: u64| byte_count("page", &[h, n, cell]);
        let part = Part {
            group,
            region: 0,
            layer,
            role: Role::KV,
            offset: 0,
            heads_total: shape.kv_heads,
            head_first,
            head_count,
            head_stride: 0,
            rows,
            row_stride: 0,
            cell_bytes: 0,
            elem_bytes: shape.elem_bytes,
        };
        if shape.kv == KvPlacement::Slabs {
            let slab = byte_count("slab", &[n, k + v])?;
            let cell_bytes = u32::try_from(slab)
                .map_err(|_| Error::invalid(format!("layer {layer}: slab of {slab} bytes")))?;
            let region = self.region(spans[0].region(page(k + v)?));
            let (head_stride, row_stride) = (slab, slab);
            self.part(Part {
                region,
                rows: 1,
                head_stride,
                row_stride,
                cell_bytes,
                ..part
            });
            return Ok(self);
        }
        // Steps of the inner direction in one step of the outer.
        let inner = if shape.order == PageOrder::Hnd { n } else { h };
        // Bytes from one step to the next, inner and outer, for a role of `cell` bytes.
        let strides = |cell: u64| match shape.kv {
            KvPlacement::Regions | KvPlacement::Planes => (cell, inner * cell),
            KvPlacement::Halves => (cell, inner * (k + v)),
            KvPlacement::Cells | KvPlacement::Slabs => (k + v, inner * (k + v)),
        };
        let v_offset = match shape.kv {
            KvPlacement::Regions => 0,
            KvPlacement::Planes => page(k)?,
            KvPlacement::Halves => inner * k,
            KvPlacement::Cells | KvPlacement::Slabs => k,
        };
        let (k_region, v_region) = match spans {
            [k_span, v_span] => {
                let first = self.region(k_span.region(page(k)?));
                (first, self.region(v_span.region(page(v)?)))
            }
            _ => {
                let both = self.region(spans[0].region(page(k + v)?));
                (both, both)
            }
        };
        for (role, region, cell, offset) in
            [(Role::K, k_region, k, 0), (Role::V, v_region, v, v_offset)]
        {
            let (inner, outer) = strides(cell);
            let (head_stride, row_stride) = match shape.order {
                PageOrder::Hnd => (outer, inner),
                PageOrder::Nhd => (inner, outer),
            };
            let cell_bytes = cell as u32;
            self.part(Part {
                region,
                role,
                offset,
                head_stride,
                row_stride,
                cell_bytes,
                ..part
            });
        }
        Ok(self)
    }

    /// Adds a layer with one vector per token, whole on every rank.
    pub fn latent(
        &mut self,
        group: u32,
        layer: u32,
        shape: LatentShape,
        span: Span,
    ) -> Result<&mut Self> {
        let rows = self.tokens_per_page(group)?;
        let cell = product("latent", &[shape.size, shape.elem_bytes])?;
        let region = self.region(span.region(byte_count("page", &[rows.into(), cell])?));
        Ok(self.part(Part {
            group,
            region,
            layer,
            role: shape.role,
            offset: 0,
            heads_total: 1,
            head_first: 0,
            head_count: 1,
            head_stride: cell,
            rows,
            row_stride: cell,
            cell_bytes: cell as u32,
            elem_bytes: shape.elem_bytes,
        }))
    }

    /// Adds a layer with recurrent state, this rank's share of it. `span.page_stride` is the distance
    /// between the states of consecutive block ids: in hybrid models that lay state over attention
    /// pages, `kernel_blocks` times the stride of those pages.
    pub fn state(
        &mut self,
        group: u32,
        layer: u32,
        shape: &StateShape,
        span: Span,
    ) -> Result<&mut Self> {
        if shape.conv.len() > 240 {
            bail!(
                Status::InvalidArgument,
                "layer {layer}: {} conv sub-projections",
                shape.conv.len()
            );
        }
        let mut held = Vec::with_capacity(shape.conv.len());
        for sub in &shape.conv {
            let (first, count) = self.heads(sub.units)?;
            let total = channels(sub.units, sub.channels_per_unit)?;
            held.push((
                total,
                channels(first, sub.channels_per_unit)?,
                channels(count, sub.channels_per_unit)?,
            ));
        }
        let (rows, elem) = (u64::from(shape.conv_rows), u64::from(shape.conv_elem_bytes));
        let all: u64 = held.iter().map(|h| u64::from(h.2)).sum();
        let conv_bytes = byte_count("convolution state", &[all, rows, elem])?;
        let (ssm_first, ssm_count) = self.heads(shape.ssm_heads)?;
        let ssm_len = u64::from(shape.ssm_head_bytes);
        let ssm_bytes = byte_count("recurrent state", &[ssm_count.into(), ssm_len])?;
        let region = self.region(span.region(conv_bytes + ssm_bytes));
        let mut before = 0;
        for (i, (heads_total, head_first, head_count)) in held.into_iter().enumerate() {
            let (offset, head_stride, row_stride) = match shape.conv_order {
                ConvOrder::ChannelsFirst => (before * rows * elem, rows * elem, elem),
                ConvOrder::RowsFirst => (before * elem, elem, all * elem),
            };
            before += u64::from(head_count);
            self.part(Part {
                group,
                region,
                layer,
                role: Role(Role::CONV.0 + i as u32),
                offset,
                heads_total,
                head_first,
                head_count,
                head_stride,
                rows: shape.conv_rows,
                row_stride,
                cell_bytes: shape.conv_elem_bytes,
                elem_bytes: shape.conv_elem_bytes,
            });
        }
        Ok(self.part(Part {
            group,
            region,
            layer,
            role: Role::SSM,
            offset: conv_bytes,
            heads_total: shape.ssm_heads,
            head_first: ssm_first,
            head_count: ssm_count,
            head_stride: ssm_len,
            rows: 1,
            row_stride: ssm_len,
            cell_bytes: shape.ssm_head_bytes,
            elem_bytes: shape.ssm_elem_bytes,
        }))
    }

    /// The layout, validated.
    pub fn finish(self) -> Result<Layout> {
        self.layout.validate()?;
        Ok(self.layout)
    }

    fn heads(&self, total: u32) -> Result<(u32, u32)> {
        shard(
            total,
            self.layout.parallel.tp_size,
            self.layout.parallel.tp_rank,
        )
    }

    fn tokens_per_page(&self, group: u32) -> Result<u32> {
        match self.layout.groups.get(group as usize) {
            Some(g) => Ok(g.tokens_per_page()),
            None => bail!(
                Status::InvalidArgument,
                "group {group} of {} groups",
                self.layout.groups.len()
            ),
        }
    }
}

/// A small product that must fit the 32 bits of a cell.
fn product(what: &str, factors: &[u32]) -> Result<u64> {
    let bytes = factors.iter().map(|f| u64::from(*f)).product::<u64>();
    if bytes > u64::from(u32::MAX / 2) {
        bail!(
            Status::InvalidArgument,
            "{what} of {bytes} bytes is too large"
        );
    }
    Ok(bytes)
}

/// A product of bytes that must stay far from overflow, so that sums of a few are safe.
fn byte_count(what: &str, factors: &[u64]) -> Result<u64> {
    let bytes = factors.iter().try_fold(1u64, |acc, f| acc.checked_mul(*f));
    match bytes {
        Some(bytes) if bytes < 1 << 56 => Ok(bytes),
        _ => bail!(
            Status::InvalidArgument,
            "{what} of {factors:?} bytes is too large"
        ),
    }
}

fn channels(units: u32, per_unit: u32) -> Result<u32> {
    units
        .checked_mul(per_unit)
        .ok_or_else(|| Error::invalid(format!("{units} units of {per_unit} channels are too many")))
}
