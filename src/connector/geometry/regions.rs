//! The list of regions: which rows of equal blocks the tensors make, in the order in which stock vLLM
//! lists them. Both sides of a transfer pair their regions by place in this list, so it is reproduced
//! exactly, down to which layer's name a shared region gets.

use std::collections::HashMap;

use super::kv::{Content, KvCache, KvTensor};
use super::order::{PhysicalOrder, natural};
use super::view::{View, view};
use super::{Memory, SHARED};
use crate::connector::Mode;
use crate::error::{Result, Status, bail};
use crate::layout::{GroupKind, MAX_GROUPS, MAX_REGIONS, Parallel};
use crate::memory::{MemDesc, MemKind};

/// A row of equal blocks.
#[derive(Clone, Debug)]
pub(super) struct RegionRow {
    pub base: u64,
    pub len: u64,
    pub stride: u64,
    /// Kernel blocks.
    pub blocks: u64,
    /// Transfer group, or [`SHARED`].
    pub group: i64,
    pub mem: MemKind,
    pub device: u64,
    /// The first layer that lives here, an index into [`Regions::layers`].
    pub layer: usize,
}

/// A layer, and the regions that it is in.
#[derive(Clone, Debug)]
pub(super) struct Layer<'a> {
    pub tensor: &'a KvTensor,
    pub view: View,
    pub regions: Vec<usize>,
}

/// Everything that the tensors make.
pub(super) struct Regions<'a> {
    pub rows: Vec<RegionRow>,
    /// In the order of the model.
    pub layers: Vec<Layer<'a>>,
    pub memory: Vec<Memory>,
    /// Whether peers are told the layers of each region.
    pub tell_layers: bool,
    /// Layers inside rows that are moved whole: index, offset, bytes.
    pub packed: Vec<(usize, u64, u64)>,
    /// Where a region begins, and its index.
    by_base: HashMap<u64, usize>,
}

/// What decides between the ways in which vLLM cuts tensors into regions.
struct Rules {
    tell_layers: bool,
    /// Push from a pipeline stage: layers that share an address stay apart.
    keep_apart: bool,
    block_outermost: bool,
    by_head: bool,
    /// All tensors are views of one allocation with one block stride.
    packed: bool,
}

/// Makes the region list.
pub(super) fn regions<'a>(
    cache: &'a KvCache,
    order: PhysicalOrder,
    parallel: &Parallel,
) -> Result<Regions<'a>> {
    check_cache(cache)?;
    let mut layers = layers(cache, order, parallel)?;
    let rules = rules(cache, order, parallel, &layers)?;
    let has_state = cache.groups.iter().any(|g| g.kind == GroupKind::State);
    let mut out = Regions {
        rows: Vec::new(),
        layers: Vec::new(),
        memory: memory(&layers)?,
        tell_layers: rules.tell_layers,
        packed: Vec::new(),
        by_base: HashMap::new(),
    };
    let allocations: HashMap<_, _> = out
        .memory
        .iter()
        .map(|m| ((m.range.addr, m.mem), m.range))
        .collect();
    let mut storages = Vec::with_capacity(layers.len());
    for (i, layer) in layers.iter_mut().enumerate() {
        let key = (layer.tensor.storage.addr, layer.tensor.mem);
        let storage = allocations.get(&key).copied().unwrap_or_default();
        let mut cut = cut(cache, &rules, layer, storage)
            .map_err(|e| e.context(format_args!("layer {:?}", layer.tensor.layer)))?;
        if let Some(offset) = cut.packed {
            out.packed.push((i, offset, layer.view.page));
        }
        for piece in cut.pieces.drain(..) {
            let at = out.enter(i, layer, piece, rules.keep_apart)?;
            layer.regions.push(at);
        }
        storages.push(storage);
    }
    if has_state {
        let blocks = cache.num_blocks * u64::from(cache.blocks_per_logical);
        out.rows.iter_mut().for_each(|r| r.blocks = blocks);
    }
    out.layers = layers;
    out.check(&storages)?;
    Ok(out)
}

fn check_cache(cache: &KvCache) -> Result<()> {
    for (name, value) in [
        ("num_blocks", cache.num_blocks),
        ("blocks_per_logical", cache.blocks_per_logical.into()),
        ("block_tokens", cache.block_tokens.into()),
        ("tensors", cache.tensors.len() as u64),
        ("groups", cache.groups.len() as u64),
        ("kv_heads", cache.kv_heads.into()),
    ] {
        if value == 0 {
            bail!(Status::InvalidArgument, "{name} is 0");
        }
    }
    let ppl = u64::from(cache.blocks_per_logical);
    if cache.num_blocks.saturating_mul(ppl) > u32::MAX.into() {
        bail!(
            Status::InvalidArgument,
            "num_blocks {} of {ppl} kernel blocks are more than {}",
            cache.num_blocks,
            u32::MAX
        );
    }
    for (name, len, max) in [
        ("tensors", cache.tensors.len(), MAX_REGIONS),
        ("groups", cache.groups.len(), MAX_GROUPS),
    ] {
        if len > max {
            bail!(Status::InvalidArgument, "{len} {name}, more than {max}");
        }
    }
    for (i, g) in cache.groups.iter().enumerate() {
        let divides = g.tokens_per_block % cache.blocks_per_logical == 0;
        if g.kind != GroupKind::State && (g.tokens_per_block == 0 || !divides) {
            bail!(
                Status::InvalidArgument,
                "groups[{i}]: tokens_per_block {} is not a multiple of blocks_per_logical {ppl}",
                g.tokens_per_block
            );
        }
    }
    Ok(())
}

/// The layers in the order of the model, with their views.
fn layers<'a>(
    cache: &'a KvCache,
    order: PhysicalOrder,
    parallel: &Parallel,
) -> Result<Vec<Layer<'a>>> {
    let mut out = Vec::with_capacity(cache.tensors.len());
    for tensor in &cache.tensors {
        let view = view(cache, order, tensor, parallel)
            .map_err(|e| e.context(format_args!("layer {:?}", tensor.layer)))?;
        out.push(Layer {
            tensor,
            view,
            regions: Vec::new(),
        });
    }
    out.sort_by(|a, b| natural(&a.tensor.layer, &b.tensor.layer));
    let mut names: Vec<&str> = out.iter().map(|l| l.tensor.layer.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        bail!(Status::InvalidArgument, "layer {:?} occurs twice", twice[0]);
    }
    Ok(out)
}

fn rules(
    cache: &KvCache,
    order: PhysicalOrder,
    parallel: &Parallel,
    layers: &[Layer],
) -> Result<Rules> {
    let block_outermost = order.is_block_outermost();
    let group = |l: &Layer| cache.groups[l.tensor.group as usize].kind;
    let state = layers.iter().any(|l| group(l) == GroupKind::State);
    let several_tables = cache.hybrid
        && layers
            .iter()
            .any(|l| !matches!(group(l), GroupKind::Full | GroupKind::Mla));
    let tell_layers = cache.mode == Mode::Push && (several_tables || block_outermost) && !state;
    let keep_apart = tell_layers && parallel.pp_size > 1 && block_outermost;
    if keep_apart && layers.iter().any(|l| !is_latent(l.tensor)) {
        bail!(
            Status::NotSupported,
            "kv_cache_layout {}: pushing from pipeline stages (pp_size {}) needs a layout whose layers lie \
             apart, unless all layers are latent",
            cache.layout,
            parallel.pp_size
        );
    }
    let one = |f: fn(&Layer) -> u64| layers.windows(2).all(|w| f(&w[0]) == f(&w[1]));
    Ok(Rules {
        tell_layers,
        keep_apart,
        block_outermost,
        by_head: order.is_by_head(),
        packed: one(|l| l.tensor.storage.addr) && one(|l| l.view.stride),
    })
}

fn is_latent(tensor: &KvTensor) -> bool {
    matches!(tensor.content, Content::Latent(_))
}

/// What to register: each allocation once. Layers without a stated length have what their blocks take.
fn memory(layers: &[Layer]) -> Result<Vec<Memory>> {
    let mut out: Vec<Memory> = Vec::new();
    let mut known: HashMap<(u64, MemKind), usize> = HashMap::new();
    for layer in layers {
        let (t, v) = (layer.tensor, &layer.view);
        let mut range = t.storage;
        if range.len == 0 {
            let own = v.bytes.max(v.blocks.saturating_mul(v.stride));
            range.len = own.saturating_add(t.address.saturating_sub(range.addr));
        }
        range
            .end()
            .map_err(|e| e.context(format_args!("layer {:?}", t.layer)))?;
        let at = *known.entry((range.addr, t.mem)).or_insert(out.len());
        match out.get_mut(at) {
            Some(m) if m.range.device != range.device => bail!(
                Status::InvalidArgument,
                "layer {:?}: device {}, and {} of another layer in the same allocation",
                t.layer,
                range.device,
                m.range.device
            ),
            Some(m) => m.range.len = m.range.len.max(range.len),
            None => out.push(Memory { range, mem: t.mem }),
        }
    }
    Ok(out)
}

/// A region of a layer before it is known whether it is new: base, length, stride.
type Piece = (u64, u64, u64);

struct Cut {
    pieces: Vec<Piece>,
    /// Where the layer is in the row, if the row is moved whole and peers are told.
    packed: Option<u64>,
}

/// The regions of one layer.
fn cut(cache: &KvCache, rules: &Rules, layer: &Layer, storage: MemDesc) -> Result<Cut> {
    let (t, v) = (layer.tensor, &layer.view);
    let one = |piece| {
        Ok(Cut {
            pieces: vec![piece],
            packed: None,
        })
    };
    if matches!(t.content, Content::State(_)) {
        let ppl = u64::from(cache.blocks_per_logical);
        return one((t.address, v.page / ppl, v.stride / ppl));
    }
    // Of a layer whose heads lie apart, a block has one head.
    let needed = if rules.by_head {
        v.page / v.heads()
    } else {
        v.page
    };
    if v.stride == 0 || v.stride < needed {
        bail!(
            Status::InvalidArgument,
            "blocks of {} bytes {} bytes apart",
            needed,
            v.stride
        );
    }
    let all = v.blocks.saturating_mul(v.stride);
    // An allocation may be rounded up by less than a block.
    // A layer that reaches from one row into the next is in no row.
    let offset = t.address.checked_sub(storage.addr);
    let in_row = offset.is_some_and(|o| o.saturating_add(needed) <= v.stride);
    let holds_just_the_blocks =
        storage.len.checked_sub(all).is_some_and(|r| r < v.stride) && (in_row || v.dense);
    let row = (storage.addr, v.stride, v.stride);
    let own_page = (t.address, v.page, v.stride);
    let told = rules.tell_layers && rules.block_outermost && rules.packed && is_latent(t);
    if holds_just_the_blocks && told && rules.keep_apart {
        return one(own_page);
    }
    if holds_just_the_blocks && told {
        if !in_row {
            bail!(
                Status::InvalidArgument,
                "address {:#x} is outside the first row of {} bytes at {:#x}",
                t.address,
                v.stride,
                storage.addr
            );
        }
        return Ok(Cut {
            pieces: vec![row],
            packed: offset,
        });
    }
    if holds_just_the_blocks {
        return one(if v.dense { own_page } else { row });
    }
    segments(layer, all, own_page)
}

/// The allocation is shared with layers that lie behind each other: as many regions as the tensor has
/// runs of blocks.
fn segments(layer: &Layer, all: u64, own_page: Piece) -> Result<Cut> {
    let (t, v) = (layer.tensor, &layer.view);
    if t.address.checked_add(v.bytes).is_none() {
        bail!(
            Status::InvalidArgument,
            "{} bytes at {:#x} wrap around",
            v.bytes,
            t.address
        );
    }
    let pieces = if v.dense {
        // One page per block; what lies between blocks is padding, or other layers' pages.
        vec![own_page]
    } else if v.bytes % all == 0 && v.bytes / all == 1 {
        vec![own_page]
    } else if v.bytes % all == 0 && (1..=MAX_REGIONS as u64).contains(&(v.bytes / all)) {
        (0..v.bytes / all)
            .map(|i| (t.address + i * all, v.stride, v.stride))
            .collect()
    } else {
        bail!(
            Status::NotSupported,
            "{} bytes in {} blocks {} bytes apart are no whole number of rows, and its blocks are not \
             contiguous",
            v.bytes,
            v.blocks,
            v.stride
        );
    };
    Ok(Cut {
        pieces,
        packed: None,
    })
}

impl Regions<'_> {
    /// Finds the region that begins where a piece begins, or makes it.
    fn enter(
        &mut self,
        index: usize,
        layer: &Layer,
        (base, len, stride): Piece,
        keep_apart: bool,
    ) -> Result<usize> {
        let (t, v) = (layer.tensor, &layer.view);
        let group = i64::from(t.group);
        let seen = self.by_base.get(&base).copied();
        let Some(at) = seen.filter(|_| !keep_apart) else {
            if self.rows.len() >= MAX_REGIONS {
                bail!(Status::InvalidArgument, "more than {MAX_REGIONS} regions");
            }
            self.by_base.insert(base, self.rows.len());
            self.rows.push(RegionRow {
                base,
                len,
                stride,
                blocks: v.blocks,
                group,
                mem: t.mem,
                device: t.storage.device,
                layer: index,
            });
            return Ok(self.rows.len() - 1);
        };
        let row = &mut self.rows[at];
        if row.mem != t.mem {
            bail!(
                Status::InvalidArgument,
                "layer {:?}: memory kind {}, and {} of another layer at {base:#x}",
                t.layer,
                t.mem.name(),
                row.mem.name()
            );
        }
        if is_latent(t) {
            (row.len, row.stride, row.blocks) = (len, stride, v.blocks);
        }
        if row.group != group {
            row.group = SHARED;
        }
        Ok(at)
    }

    /// Every region lies inside a registered allocation.
    fn check(&self, storages: &[MemDesc]) -> Result<()> {
        for row in &self.rows {
            let t = self.layers[row.layer].tensor;
            let storage = storages[row.layer];
            let last = (row.blocks - 1).checked_mul(row.stride);
            let end = last
                .and_then(|l| l.checked_add(row.len))
                .and_then(|l| row.base.checked_add(l));
            let inside =
                row.base >= storage.addr && end.is_some_and(|e| Some(e) <= storage.end().ok());
            if !inside {
                bail!(
                    Status::InvalidArgument,
                    "layer {:?}: {} blocks {} bytes apart from {:#x} do not fit the allocation of {} \
                     bytes at {:#x}",
                    t.layer,
                    row.blocks,
                    row.stride,
                    row.base,
                    storage.len,
                    storage.addr
                );
            }
        }
        Ok(())
    }
}
