//! Laying the content over regions: the step from a region list, ours or a peer's, to a [`Layout`].

use super::content::{Arrangement, Attention, state_parts};
use super::kv::StateSizes;
use super::order::PhysicalOrder;
use crate::error::{Result, Status, bail};
use crate::layout::{Group, GroupKind, Layout, Parallel, Part, Region, Role, shard};

/// What we know of the model and of our own engine.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub parallel: Parallel,
    pub how: Arrangement,
    /// With [`Group::kernel_blocks`] filled in.
    pub groups: Vec<Group>,
    pub layers: Vec<ModelLayer>,
    /// Regions that belong together: one, or one for each head of a layer.
    pub slots: Vec<Slot>,
    pub block_tokens: u32,
    pub blocks_per_logical: u32,
    pub attn_backend: String,
    pub layout: String,
    pub pcp_size: u32,
    pub state: Option<StateSizes>,
}

/// A layer of the model that this rank has. Its number is its place in the list.
#[derive(Clone, Debug)]
pub(super) struct ModelLayer {
    pub name: String,
    pub group: u32,
    pub slot: usize,
    pub content: LayerContent,
}

#[derive(Clone, Debug)]
pub(super) enum LayerContent {
    Attention(Attention),
    State(StateSizes),
}

/// Regions that belong together.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The layer that names them.
    pub name: String,
    /// Our own regions.
    pub regions: Vec<usize>,
}

/// A rank over whose regions the content is laid.
pub(super) struct Target<'a> {
    pub parallel: Parallel,
    pub how: Arrangement,
    /// In our order.
    pub groups: Vec<Group>,
    pub regions: Vec<Region>,
    /// For each layer its regions; none: the rank does not have the layer.
    pub homes: Vec<Vec<usize>>,
    /// Names of the regions, for messages.
    pub name: &'a dyn Fn(usize) -> String,
    /// For each layer where it is in its row, if that was said.
    pub packed: Vec<Option<(u64, u64)>>,
    /// Whether a block of a region may be longer than what we know of.
    pub loose: bool,
}

impl ModelLayer {
    /// Heads of the layer on rank `rank` of `size`: total, first, count.
    pub fn heads(&self, parallel: &Parallel) -> Result<(u32, u32, u32)> {
        match &self.content {
            LayerContent::Attention(Attention { cells, .. }) => match cells.heads {
                Some(h) => {
                    let (first, count) = shard(h.total, parallel.tp_size, parallel.tp_rank)?;
                    Ok((h.total, first, count))
                }
                None => Ok((1, 0, 1)),
            },
            LayerContent::State(_) => Ok((1, 0, 1)),
        }
    }

    /// Regions that the layer has on a rank.
    pub fn region_count(&self, parallel: &Parallel, order: PhysicalOrder) -> Result<usize> {
        Ok(if order.is_by_head() {
            self.heads(parallel)?.2 as usize
        } else {
            1
        })
    }
}

impl Model {
    /// The layout of a rank.
    pub fn lay_out(&self, target: &Target) -> Result<Layout> {
        let mut out = Layout {
            parallel: target.parallel,
            regions: target.regions.clone(),
            groups: target.groups.iter().map(plain_state).collect(),
            parts: Vec::new(),
        };
        // The states of a region, seen by block id: a region of their own over the same memory.
        let mut states: Vec<(usize, u32)> = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let home = &target.homes[number];
            if home.is_empty() {
                continue;
            }
            let base = Part {
                group: layer.group,
                region: home[0] as u32,
                layer: number as u32,
                role: Role::KV,
                offset: 0,
                heads_total: 1,
                head_first: 0,
                head_count: 1,
                head_stride: 0,
                rows: 1,
                row_stride: 0,
                cell_bytes: 0,
                elem_bytes: 1,
            };
            let context =
                |e: crate::error::Error| e.context(format_args!("layer {:?}", layer.name));
            match &layer.content {
                LayerContent::Attention(a) => self
                    .attention(target, number, a, home, &base, &mut out)
                    .map_err(context)?,
                LayerContent::State(sizes) => {
                    let ppl = target.groups[layer.group as usize].kernel_blocks;
                    let known = states.iter().find(|s| s.0 == home[0]).map(|s| s.1);
                    let region = match known {
                        Some(region) => region,
                        None => {
                            out.regions.push(by_block(&target.regions[home[0]], ppl));
                            let region = out.regions.len() as u32 - 1;
                            states.push((home[0], region));
                            region
                        }
                    };
                    let at = &target.parallel;
                    let base = Part { region, ..base };
                    let mine = self.parallel.tp_size;
                    let (parts, _) =
                        state_parts(sizes, mine, at.tp_rank, at.tp_size, &base).map_err(context)?;
                    out.parts.extend(parts);
                }
            }
        }
        out.validate()?;
        Ok(out)
    }

    /// Adds the parts of an attention layer.
    fn attention(
        &self,
        target: &Target,
        number: usize,
        content: &Attention,
        home: &[usize],
        base: &Part,
        out: &mut Layout,
    ) -> Result<()> {
        let layer = &self.layers[number];
        let (total, first, count) = layer.heads(&target.parallel)?;
        let rows = self.rows(content, layer.group as usize, &target.groups)?;
        let mine = self.how.order;
        let mut at = content.place(mine, count.into(), rows, target.how.order)?;
        if let Some((offset, len)) = target.packed[number] {
            let needed = rows.saturating_mul(content.cells.cell);
            if content.cells.heads.is_some() || len < needed {
                bail!(
                    Status::PeerIncompatible,
                    "packed_member_layouts: {len} bytes at {offset}, and the layer has {count} heads of \
                     {needed} bytes here"
                );
            }
            (at.offset, at.row_stride) = (offset, content.cells.cell);
        }
        let by_head = target.how.order.is_by_head();
        let end = content.end(&at, if by_head { 1 } else { count.into() }, rows);
        for (i, &region) in home.iter().enumerate() {
            if content.is_cut_short(mine) {
                let page = &mut out.regions[region].page_len;
                *page = end.max(*page);
            }
            let len = target.regions[region].page_len;
            let longer = (target.loose || target.packed[number].is_some()) && len >= end;
            if len != at.len && !longer {
                bail!(
                    Status::PeerIncompatible,
                    "block_lens of region {region} ({}): {len}, and {} follows from {} here, with {count} of \
                     {total} heads and {rows} tokens there, {} heads and {} tokens here",
                    (target.name)(region),
                    at.len,
                    content.len,
                    content.cells.head_count(),
                    content.cells.rows
                );
            }
            let base = Part {
                region: region as u32,
                heads_total: total,
                head_first: if by_head { first + i as u32 } else { first },
                head_count: if by_head { 1 } else { count },
                ..*base
            };
            out.parts
                .extend(content.parts(&base, target.how, rows, &at)?);
        }
        Ok(())
    }

    /// Rows of a block of a layer on a rank whose blocks have other sizes than ours.
    fn rows(&self, content: &Attention, group: usize, theirs: &[Group]) -> Result<u64> {
        let mine = u64::from(self.groups[group].tokens_per_page());
        let theirs = u64::from(theirs[group].tokens_per_page());
        let rows = content.cells.rows.saturating_mul(theirs);
        if mine == 0 || rows % mine != 0 || rows == 0 {
            bail!(
                Status::PeerIncompatible,
                "block_size: kernel blocks of {theirs} tokens there and {mine} here, and here they have {} \
                 rows",
                content.cells.rows
            );
        }
        Ok(rows / mine)
    }
}

/// A group as [`Layout`] wants it.
fn plain_state(g: &Group) -> Group {
    match g.kind {
        GroupKind::State => Group {
            tokens_per_block: 1,
            kernel_blocks: 1,
            window: 0,
            ..*g
        },
        _ => *g,
    }
}

/// The same memory, seen by logical block.
fn by_block(region: &Region, blocks_per_logical: u32) -> Region {
    let ppl = u64::from(blocks_per_logical.max(1));
    Region {
        page_stride: region.page_stride.saturating_mul(ppl),
        page_len: region
            .page_stride
            .saturating_mul(ppl - 1)
            .saturating_add(region.page_len),
        page_count: region.page_count / ppl,
        ..*region
    }
}
