//! Layouts: how one rank's KV cache lies in memory.

use std::sync::Arc;

use once_cell::sync::Lazy;

use super::guard::{guard, guard_or};
use super::handle::Table;
use super::input::{Plain, bounded, nonzero, options, out, slice};
use super::output::{self, give, kvf_buffer, take};
use super::status::kvf_status;
use crate::error::{Error, Result};
use crate::layout::{
    ConvOrder, DenseShape, Group, GroupKind, KvPlacement, LatentShape, Layout, LayoutBuilder,
    MAX_GROUPS, MAX_PARTS, MAX_REGIONS, PageOrder, Parallel, Part, Region, Role, Span, StateShape,
    SubProjection, shard,
};
use crate::memory::MemKind;

/// Attention over all tokens.
pub const KVF_GROUP_FULL: u32 = 0;
/// Attention over the last `window` tokens; block lists may be cut to their end.
pub const KVF_GROUP_SLIDING_WINDOW: u32 = 1;
/// Attention inside chunks of `window` tokens; block lists may be cut to their end.
pub const KVF_GROUP_CHUNKED_LOCAL: u32 = 2;
/// Multi-head latent attention.
pub const KVF_GROUP_MLA: u32 = 3;
/// Recurrent state (Mamba, SSM, linear attention): a block id is a state, not a range of tokens.
pub const KVF_GROUP_STATE: u32 = 4;

/// Keys.
pub const KVF_ROLE_K: u32 = 0;
/// Values.
pub const KVF_ROLE_V: u32 = 1;
/// Keys and values of a head in an order that only the attention backend knows.
pub const KVF_ROLE_KV: u32 = 2;
/// The latent of MLA, with its rotary part.
pub const KVF_ROLE_LATENT: u32 = 3;
/// Recurrent state of an SSM.
pub const KVF_ROLE_SSM: u32 = 4;
/// The first of the convolution sub-projections; the others have the numbers that follow, to 255.
pub const KVF_ROLE_CONV: u32 = 16;
/// First number that is free for the caller: indexer caches, scales, draft heads.
pub const KVF_ROLE_OTHER: u32 = 256;

/// `[tokens][heads][head size]`: token-major.
pub const KVF_ORDER_NHD: u32 = 0;
/// `[heads][tokens][head size]`: head-major.
pub const KVF_ORDER_HND: u32 = 1;

/// Two regions for each layer: first K's, then V's.
pub const KVF_KV_REGIONS: u32 = 0;
/// One page, all of K before all of V: `[2][heads][tokens]` or `[2][tokens][heads]`.
pub const KVF_KV_PLANES: u32 = 1;
/// One page, K before V within the outer of heads and tokens: `[heads][2][tokens]` or
/// `[tokens][2][heads]`.
pub const KVF_KV_HALVES: u32 = 2;
/// One page, V right behind K in each cell: `[heads][tokens][2]` or `[tokens][heads][2]`.
pub const KVF_KV_CELLS: u32 = 3;
/// One page of `[heads]` slabs, each with K and V of all its tokens in an order known only to the
/// attention backend. Can be split by head and never by token.
pub const KVF_KV_SLABS: u32 = 4;

/// `[channels][rows]`: each sub-projection is contiguous.
pub const KVF_CONV_CHANNELS_FIRST: u32 = 0;
/// `[rows][channels]`: each row holds a piece of every sub-projection.
pub const KVF_CONV_ROWS_FIRST: u32 = 1;

/// Text for people. It may change from version to version.
pub const KVF_DESCRIBE_TEXT: u32 = 0;
/// JSON for programs. Keys are added, never changed or taken away.
pub const KVF_DESCRIBE_JSON: u32 = 1;

/// Geometry of one rank's KV cache. All zero is the null handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct kvf_layout {
    /// Opaque. Zero is null.
    pub id: u64,
}

/// A rank's place in its engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_parallel {
    /// Tensor-parallel rank.
    pub tp_rank: u32,
    /// Tensor-parallel size; 0 is 1.
    pub tp_size: u32,
    /// Pipeline stage. A stage holds some of the layers.
    pub pp_rank: u32,
    /// Number of pipeline stages; 0 is 1.
    pub pp_size: u32,
    /// Which share of the tokens this rank keeps in its attention groups.
    pub dcp_rank: u32,
    /// Decode-context-parallel size; 0 is 1. When it is c, a block id stands for c times
    /// `tokens_per_block` tokens, of which each of c ranks keeps `tokens_per_block`.
    pub dcp_size: u32,
    /// Consecutive tokens that go to one rank before the next rank's turn; divides
    /// `tokens_per_block`. 0 is one whole block.
    pub dcp_interleave: u32,
    /// Zero.
    pub reserved: u32,
}

/// A row of equal pages: page `p` is the `page_len` bytes at `base + p * page_stride`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_region {
    /// Address of page 0; see `KVF_MEM_…`.
    pub base: u64,
    /// Bytes from the start of one page to the start of the next; 0 is `page_len`.
    pub page_stride: u64,
    /// Bytes of a page. For `kvf_dense_layers` and its like 0 is what the layer needs; anything else
    /// is checked to be just that.
    pub page_len: u64,
    /// Number of pages.
    pub page_count: u64,
    /// Device; see `KVF_MEM_…`.
    pub device: u64,
    /// One of `KVF_MEM_…`.
    pub mem_kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// Layers that share a block table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_group {
    /// One of `KVF_GROUP_…`.
    pub kind: u32,
    /// Tokens of one block on this rank: what block ids name. For state groups 1, which 0 means too.
    pub tokens_per_block: u32,
    /// Pages that one block id stands for in each region: block `b` is pages `b * kernel_blocks` and
    /// following. Divides `tokens_per_block`; 0 is 1.
    pub kernel_blocks: u32,
    /// Tokens of the window or chunk; 0 for other kinds, and where lists are never cut.
    pub window: u32,
    /// A number of the caller's choice for what the cells mean (element type, quantisation). Both
    /// sides must state the same.
    pub format: u32,
    /// Zero.
    pub reserved: u32,
}

/// One role of one layer, or some heads of it, inside the pages of one region. The cell of a head
/// and a row is the `cell_bytes` bytes at `offset + (head - head_first) * head_stride +
/// row * row_stride` of its page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_part {
    /// Index of the group whose block ids select the pages.
    pub group: u32,
    /// Index of the region that has the pages.
    pub region: u32,
    /// Layer number in the model: the same on every rank and engine.
    pub layer: u32,
    /// One of `KVF_ROLE_…`, or a number from `KVF_ROLE_OTHER` on.
    pub role: u32,
    /// Byte offset of its first cell in the page.
    pub offset: u64,
    /// Heads of this role in the model; 1 for what every rank has whole; channels for state.
    pub heads_total: u32,
    /// First head held here.
    pub head_first: u32,
    /// Number of heads held here, at least 1.
    pub head_count: u32,
    /// Rows in a page: the page's tokens, or 1 if the page may not be split by token. For state: any
    /// number, the same on both sides.
    pub rows: u32,
    /// Bytes from one head to the next.
    pub head_stride: u64,
    /// Bytes from one row to the next.
    pub row_stride: u64,
    /// Bytes of one cell: one head of one row.
    pub cell_bytes: u32,
    /// Bytes of one element; divides `cell_bytes`.
    pub elem_bytes: u32,
}

/// Attention layers with heads, of one shape. Their numbers are `layers`, or else count up from
/// `first_layer`. This rank's share of the heads follows from `kvf_parallel`; with fewer heads than
/// ranks, neighbouring ranks hold the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_dense_layers {
    /// Index of their group.
    pub group: u32,
    /// KV heads of the model, before tensor parallelism.
    pub kv_heads: u32,
    /// Elements of a K head.
    pub k_head_size: u32,
    /// Elements of a V head; 0 is `k_head_size`.
    pub v_head_size: u32,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// One of `KVF_ORDER_…`: which of heads and tokens lies outside.
    pub order: u32,
    /// One of `KVF_KV_…`: where K and V of a layer are in relation to each other.
    pub kv: u32,
    /// Number of the first layer, if `layers_len` is 0.
    pub first_layer: u32,
    /// Numbers of the layers.
    pub layers: *const u32,
    /// How many there are; 0 is as many as the regions are for.
    pub layers_len: usize,
    /// Their memory, one region for each layer, or two with `KVF_KV_REGIONS`.
    pub regions: *const kvf_region,
    /// Number of regions.
    pub regions_len: usize,
}

/// Layers with one vector per token, the same on every rank: MLA, indexer caches. Their numbers are
/// `layers`, or else count up from `first_layer`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_latent_layers {
    /// Index of their group.
    pub group: u32,
    /// Elements per token.
    pub size: u32,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// What it is: 0 is `KVF_ROLE_LATENT`, or a number from `KVF_ROLE_OTHER` on.
    pub role: u32,
    /// Number of the first layer, if `layers_len` is 0.
    pub first_layer: u32,
    /// Zero.
    pub reserved: u32,
    /// Numbers of the layers.
    pub layers: *const u32,
    /// How many there are; 0 is as many as there are regions.
    pub layers_len: usize,
    /// Their memory, one region for each layer.
    pub regions: *const kvf_region,
    /// Number of regions.
    pub regions_len: usize,
}

/// One sub-projection of a convolution state: x, B or C of Mamba 2, Q, K or V of linear attention.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct kvf_sub_projection {
    /// What tensor parallelism deals out: channels, or groups of channels when there may be fewer
    /// groups than ranks.
    pub units: u32,
    /// Channels of each unit; 0 is 1.
    pub channels_per_unit: u32,
}

/// Layers with recurrent state: a page is one state, the convolution sub-projections one after the
/// other and then the SSM state. Their numbers are `layers`, or else count up from `first_layer`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_state_layers {
    /// Index of their group.
    pub group: u32,
    /// Rows of the convolution state: the kernel's width less one.
    pub conv_rows: u32,
    /// Bytes of an element of the convolution state.
    pub conv_elem_bytes: u32,
    /// One of `KVF_CONV_…`.
    pub conv_order: u32,
    /// Heads of the SSM state in the model.
    pub ssm_heads: u32,
    /// Bytes of the SSM state of one head.
    pub ssm_head_bytes: u32,
    /// Bytes of an element of the SSM state.
    pub ssm_elem_bytes: u32,
    /// Number of the first layer, if `layers_len` is 0.
    pub first_layer: u32,
    /// The convolution sub-projections, in their order in memory.
    pub conv: *const kvf_sub_projection,
    /// Their number; 0 is no convolution.
    pub conv_len: usize,
    /// Numbers of the layers.
    pub layers: *const u32,
    /// How many there are; 0 is as many as there are regions.
    pub layers_len: usize,
    /// Their memory, one region for each layer. `page_stride` is the distance between the states of
    /// consecutive block ids.
    pub regions: *const kvf_region,
    /// Number of regions.
    pub regions_len: usize,
}

/// What a layout is made of. Start from `kvf_layout_options_default()`; zero is the default of
/// every field. Common models need `parallel`, `groups`, and `dense`, `latent` or `state`; anything
/// else can be said with `regions` and `parts`, alone or besides.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_layout_options {
    /// `sizeof(kvf_layout_options)`.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Which rank of which engine this is.
    pub parallel: kvf_parallel,
    /// Block tables, in the order in which the engine lists its block ids.
    pub groups: *const kvf_group,
    /// Their number.
    pub groups_len: usize,
    /// Attention layers with heads.
    pub dense: *const kvf_dense_layers,
    /// Number of sets of them.
    pub dense_len: usize,
    /// Layers with one vector per token.
    pub latent: *const kvf_latent_layers,
    /// Number of sets of them.
    pub latent_len: usize,
    /// Layers with recurrent state.
    pub state: *const kvf_state_layers,
    /// Number of sets of them.
    pub state_len: usize,
    /// Regions for `parts`: the first ones of the layout. Those of the layers follow in the order of
    /// `dense`, `latent` and `state`.
    pub regions: *const kvf_region,
    /// Their number.
    pub regions_len: usize,
    /// Parts in the caller's own arrangement.
    pub parts: *const kvf_part,
    /// Their number.
    pub parts_len: usize,
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_layout_options {
    const FIRST_SIZE: usize = 136;
}

/// The tables of a layout. Free with `kvf_layout_tables_free()`.
#[repr(C)]
#[derive(Debug)]
pub struct kvf_layout_tables {
    /// Which rank of which engine it is.
    pub parallel: kvf_parallel,
    /// Memory: rows of pages.
    pub regions: *mut kvf_region,
    /// Their number.
    pub regions_len: usize,
    /// Block tables.
    pub groups: *mut kvf_group,
    /// Their number.
    pub groups_len: usize,
    /// What the pages hold.
    pub parts: *mut kvf_part,
    /// Their number.
    pub parts_len: usize,
}

pub(super) static LAYOUTS: Lazy<Table<Layout>> = Lazy::new(|| Table::new(5, "layout"));

/// Describes one rank's KV cache. The layout keeps no pointer to the memory's content: only its
/// geometry. Any thread.
///
/// @param options  Borrowed; not NULL.
/// @param layout   Receives the handle; end it with `kvf_layout_destroy()`.
/// @return `KVF_ERR_INVALID_ARGUMENT`, naming the field and its value, for a layout that cannot be:
///         cells outside their page or on top of each other, sizes that do not divide, addresses
///         that wrap around.
///
/// # Safety
/// Pointers are valid as the header's conventions say; this holds for all functions below.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_create(
    options: *const kvf_layout_options,
    layout: *mut kvf_layout,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract, here and in every block below of this file.
        let layout = unsafe { out(layout, "layout") }?;
        if options.is_null() {
            return Err(Error::invalid("options is NULL"));
        }
        // SAFETY: as above.
        let made = unsafe { from_options(options) }?;
        layout.write(kvf_layout {
            id: LAYOUTS.insert(Arc::new(made))?,
        });
        Ok(())
    })
}

/// Ends a layout. Plans made of it go on. Any thread.
///
/// @return `KVF_ERR_INVALID_HANDLE` if it was destroyed before, which is harmless.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_layout_destroy(layout: kvf_layout) -> kvf_status {
    guard(|| LAYOUTS.remove(layout.id).map(drop))
}

/// The layout as bytes, in the form in which ranks exchange theirs: versioned, compact (some KB),
/// and the same bytes for the same layout. Any thread.
///
/// @param bytes  Free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_encode(
    layout: kvf_layout,
    bytes: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let bytes = unsafe { out(bytes, "bytes") }?;
        bytes.write(output::buffer(LAYOUTS.get(layout.id)?.encode()?));
        Ok(())
    })
}

/// A layout from the bytes that `kvf_layout_encode()` gave, in this or another process. They need
/// not be trusted: what is returned has passed every check of `kvf_layout_create()`. Any thread.
///
/// @param layout  Receives the handle; end it with `kvf_layout_destroy()`.
/// @return `KVF_ERR_PEER_INCOMPATIBLE` for bytes that are not a sound layout: the message says at
///         which byte, or which field.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_decode(
    bytes: *const u8,
    bytes_len: usize,
    layout: *mut kvf_layout,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (bytes, layout) =
            unsafe { (slice(bytes, bytes_len, "bytes")?, out(layout, "layout")?) };
        layout.write(kvf_layout {
            id: LAYOUTS.insert(Arc::new(Layout::decode(bytes)?))?,
        });
        Ok(())
    })
}

/// The layout in words. Any thread.
///
/// @param format  One of `KVF_DESCRIBE_…`.
/// @param text    Free with `kvf_buffer_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_describe(
    layout: kvf_layout,
    format: u32,
    text: *mut kvf_buffer,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let text = unsafe { out(text, "text") }?;
        let json = is_json(format)?;
        let layout = LAYOUTS.get(layout.id)?;
        text.write(output::buffer(match json {
            true => layout.describe_json(),
            false => layout.describe(),
        }));
        Ok(())
    })
}

/// Takes the tables out, with every default filled in: what the builders made of the layers, say, or
/// what a peer has sent. Any thread.
///
/// @param tables  Free with `kvf_layout_tables_free()`.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_tables_get(
    layout: kvf_layout,
    tables: *mut kvf_layout_tables,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let tables = unsafe { out(tables, "tables") }?;
        tables.write(to_tables(&*LAYOUTS.get(layout.id)?));
        Ok(())
    })
}

/// Frees the tables and zeroes the struct; otherwise, also for threads, as `kvf_buffer_free()`.
///
/// # Safety
/// As for `kvf_buffer_free()`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_layout_tables_free(tables: *mut kvf_layout_tables) {
    guard_or((), || {
        // SAFETY: NULL or valid by contract.
        let Some(t) = (unsafe { tables.as_mut() }) else {
            return;
        };
        // SAFETY: made by `to_tables`, by contract not changed.
        unsafe {
            drop(take(&mut t.regions, &mut t.regions_len));
            drop(take(&mut t.groups, &mut t.groups_len));
            drop(take(&mut t.parts, &mut t.parts_len));
        }
        t.parallel = kvf_parallel::default();
    });
}

/// The heads that one rank holds, as `kvf_dense_layers` deals them out. Heads go to ranks in order;
/// with fewer heads than ranks each rank holds one, and neighbouring ranks hold the same. Any
/// thread.
///
/// @param first  Receives the first head.
/// @param count  Receives their number.
/// @return `KVF_ERR_INVALID_ARGUMENT` if neither of `heads_total` and `tp_size` divides the other.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn kvf_layout_shard(
    heads_total: u32,
    tp_size: u32,
    tp_rank: u32,
    first: *mut u32,
    count: *mut u32,
) -> kvf_status {
    guard(|| {
        // SAFETY: the caller's contract.
        let (first, count) = unsafe { (out(first, "first")?, out(count, "count")?) };
        let held = shard(heads_total, tp_size, tp_rank)?;
        first.write(held.0);
        count.write(held.1);
        Ok(())
    })
}

/// Whether a description is wanted as JSON.
pub(super) fn is_json(format: u32) -> Result<bool> {
    match format {
        KVF_DESCRIBE_TEXT => Ok(false),
        KVF_DESCRIBE_JSON => Ok(true),
        _ => Err(Error::invalid(format!(
            "format {format} is not a KVF_DESCRIBE_ value"
        ))),
    }
}

/// # Safety
/// `ptr` is not null; it and what it points to are valid.
unsafe fn from_options(ptr: *const kvf_layout_options) -> Result<Layout> {
    // SAFETY: by contract, here and below.
    let o = unsafe { options(ptr, "options") }?;
    zero(o.reserved.into(), "options.reserved")?;
    let mut made = Making {
        builder: LayoutBuilder::new(parallel(&o.parallel)?),
        stated: Vec::new(),
    };
    // SAFETY: by contract; it holds for what the sets point to as well.
    let (groups, regions, dense, latent, state, parts) = unsafe {
        (
            bounded(o.groups, o.groups_len, MAX_GROUPS, "options.groups")?,
            bounded(o.regions, o.regions_len, MAX_REGIONS, "options.regions")?,
            bounded(o.dense, o.dense_len, MAX_REGIONS, "options.dense")?,
            bounded(o.latent, o.latent_len, MAX_REGIONS, "options.latent")?,
            bounded(o.state, o.state_len, MAX_REGIONS, "options.state")?,
            bounded(o.parts, o.parts_len, MAX_PARTS, "options.parts")?,
        )
    };
    each(groups, "options.groups", |g| {
        made.builder.group(group(g)?);
        Ok(())
    })?;
    each(regions, "options.regions", |r| {
        made.builder.region(region(r)?);
        made.stated.push(0);
        Ok(())
    })?;
    each(parts, "options.parts", |p| {
        made.builder.part(part(p));
        Ok(())
    })?;
    // SAFETY: by contract.
    unsafe {
        each(dense, "options.dense", |l| made.dense(l))?;
        each(latent, "options.latent", |l| made.latent(l))?;
        each(state, "options.state", |l| made.state(l))?;
    }
    made.finish()
}

/// A layout in the making.
struct Making {
    builder: LayoutBuilder,
    /// For each region the page length that the caller stated to be checked; 0 is none.
    stated: Vec<u64>,
}

impl Making {
    /// # Safety
    /// The pointers in it are valid.
    unsafe fn dense(&mut self, l: &kvf_dense_layers) -> Result<()> {
        for (name, value) in [
            ("kv_heads", l.kv_heads),
            ("k_head_size", l.k_head_size),
            ("elem_bytes", l.elem_bytes),
        ] {
            positive(value, name)?;
        }
        let shape = DenseShape {
            kv_heads: l.kv_heads,
            k_head_size: l.k_head_size,
            v_head_size: nonzero(l.v_head_size).unwrap_or(l.k_head_size),
            elem_bytes: l.elem_bytes,
            order: order(l.order)?,
            kv: placement(l.kv)?,
        };
        let each = match shape.kv {
            KvPlacement::Regions => 2,
            _ => 1,
        };
        // SAFETY: by contract.
        let layers = unsafe {
            Layers::new(
                l.first_layer,
                l.layers,
                l.layers_len,
                l.regions,
                l.regions_len,
                each,
            )
        }?;
        self.layers(&layers, |builder, layer, spans| {
            builder.dense(l.group, layer, shape, spans).map(drop)
        })
    }

    /// # Safety
    /// The pointers in it are valid.
    unsafe fn latent(&mut self, l: &kvf_latent_layers) -> Result<()> {
        zero(l.reserved.into(), "reserved")?;
        positive(l.size, "size")?;
        positive(l.elem_bytes, "elem_bytes")?;
        let shape = LatentShape {
            size: l.size,
            elem_bytes: l.elem_bytes,
            role: nonzero(l.role).map_or(Role::LATENT, Role),
        };
        // SAFETY: by contract.
        let layers = unsafe {
            Layers::new(
                l.first_layer,
                l.layers,
                l.layers_len,
                l.regions,
                l.regions_len,
                1,
            )
        }?;
        self.layers(&layers, |builder, layer, spans| {
            builder.latent(l.group, layer, shape, spans[0]).map(drop)
        })
    }

    /// # Safety
    /// The pointers in it are valid.
    unsafe fn state(&mut self, l: &kvf_state_layers) -> Result<()> {
        // SAFETY: by contract.
        let (conv, layers) = unsafe {
            (
                bounded(l.conv, l.conv_len, MAX_REGIONS, "conv")?,
                Layers::new(
                    l.first_layer,
                    l.layers,
                    l.layers_len,
                    l.regions,
                    l.regions_len,
                    1,
                )?,
            )
        };
        for (name, value) in [
            ("ssm_heads", l.ssm_heads),
            ("ssm_head_bytes", l.ssm_head_bytes),
            ("ssm_elem_bytes", l.ssm_elem_bytes),
        ] {
            positive(value, name)?;
        }
        if !conv.is_empty() {
            positive(l.conv_rows, "conv_rows")?;
            positive(l.conv_elem_bytes, "conv_elem_bytes")?;
        }
        let shape = StateShape {
            conv: conv
                .iter()
                .map(|c| SubProjection {
                    units: c.units,
                    channels_per_unit: nonzero(c.channels_per_unit).unwrap_or(1),
                })
                .collect(),
            conv_rows: l.conv_rows,
            conv_elem_bytes: l.conv_elem_bytes,
            conv_order: match l.conv_order {
                KVF_CONV_CHANNELS_FIRST => ConvOrder::ChannelsFirst,
                KVF_CONV_ROWS_FIRST => ConvOrder::RowsFirst,
                n => {
                    return Err(Error::invalid(format!(
                        "conv_order {n} is not a KVF_CONV_ value"
                    )));
                }
            },
            ssm_heads: l.ssm_heads,
            ssm_head_bytes: l.ssm_head_bytes,
            ssm_elem_bytes: l.ssm_elem_bytes,
        };
        self.layers(&layers, |builder, layer, spans| {
            builder.state(l.group, layer, &shape, spans[0]).map(drop)
        })
    }

    /// Adds the layers of a set.
    fn layers(
        &mut self,
        layers: &Layers<'_>,
        mut add: impl FnMut(&mut LayoutBuilder, u32, &[Span]) -> Result<()>,
    ) -> Result<()> {
        let mut spans = Vec::with_capacity(layers.each);
        for (i, regions) in layers.regions.chunks(layers.each).enumerate() {
            spans.clear();
            for (k, r) in regions.iter().enumerate() {
                let named = |e: Error| e.context(format_args!("regions[{}]", i * layers.each + k));
                spans.push(span(r).map_err(named)?);
                self.stated.push(r.page_len);
            }
            add(&mut self.builder, layers.number(i)?, &spans)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Layout> {
        let layout = self.builder.finish()?;
        for (i, (r, &stated)) in layout.regions.iter().zip(&self.stated).enumerate() {
            if stated != 0 && stated != r.page_len {
                return Err(Error::invalid(format!(
                    "regions[{i}]: page_len {stated}, and what its layer has in a page is {} bytes",
                    r.page_len
                )));
            }
        }
        Ok(layout)
    }
}

/// The layers of a set and their memory.
struct Layers<'a> {
    first: u32,
    numbers: &'a [u32],
    regions: &'a [kvf_region],
    /// Regions of each layer.
    each: usize,
}

impl<'a> Layers<'a> {
    /// # Safety
    /// As for [`bounded`].
    unsafe fn new(
        first: u32,
        numbers: *const u32,
        numbers_len: usize,
        regions: *const kvf_region,
        regions_len: usize,
        each: usize,
    ) -> Result<Self> {
        // SAFETY: by contract.
        let (numbers, regions): (&[u32], &[kvf_region]) = unsafe {
            (
                bounded(numbers, numbers_len, MAX_REGIONS, "layers")?,
                bounded(regions, regions_len, MAX_REGIONS, "regions")?,
            )
        };
        let wanted = match numbers.len() {
            0 => regions.len().max(1).next_multiple_of(each),
            n => n * each,
        };
        if regions.len() != wanted {
            return Err(Error::invalid(format!(
                "regions_len is {}, and each layer has {each}{}",
                regions.len(),
                match numbers.len() {
                    0 => String::new(),
                    n => format!(" for layers_len {n}"),
                }
            )));
        }
        if !numbers.is_empty() && first != 0 {
            return Err(Error::invalid(format!(
                "first_layer {first} and layers are both given"
            )));
        }
        Ok(Layers {
            first,
            numbers,
            regions,
            each,
        })
    }

    fn number(&self, i: usize) -> Result<u32> {
        match self.numbers.get(i) {
            Some(n) => Ok(*n),
            None => self.first.checked_add(i as u32).ok_or_else(|| {
                Error::invalid(format!(
                    "first_layer {} with {} layers is too large",
                    self.first,
                    self.regions.len() / self.each
                ))
            }),
        }
    }
}

/// Calls `add` for each element; an error says which it was.
fn each<T>(items: &[T], what: &str, mut add: impl FnMut(&T) -> Result<()>) -> Result<()> {
    for (i, item) in items.iter().enumerate() {
        add(item).map_err(|e| e.context(format_args!("{what}[{i}]")))?;
    }
    Ok(())
}

fn parallel(p: &kvf_parallel) -> Result<Parallel> {
    zero(p.reserved.into(), "options.parallel.reserved")?;
    let size = |n: u32| nonzero(n).unwrap_or(1);
    let made = Parallel {
        tp_rank: p.tp_rank,
        tp_size: size(p.tp_size),
        pp_rank: p.pp_rank,
        pp_size: size(p.pp_size),
        dcp_rank: p.dcp_rank,
        dcp_size: size(p.dcp_size),
        dcp_interleave: p.dcp_interleave,
    };
    // Before the layers, whose heads are dealt out by it.
    made.validate().map_err(|e| e.context("options.parallel"))?;
    Ok(made)
}

fn group(g: &kvf_group) -> Result<Group> {
    zero(g.reserved.into(), "reserved")?;
    let kind = GroupKind::from_code(g.kind)?;
    let tokens = nonzero(g.tokens_per_block);
    Ok(Group {
        kind,
        tokens_per_block: match kind {
            GroupKind::State => tokens.unwrap_or(1),
            _ => tokens.unwrap_or(0),
        },
        kernel_blocks: nonzero(g.kernel_blocks).unwrap_or(1),
        window: g.window,
        format: g.format,
    })
}

fn region(r: &kvf_region) -> Result<Region> {
    let s = span(r)?;
    Ok(Region {
        base: s.base,
        page_stride: nonzero(s.page_stride).unwrap_or(r.page_len),
        page_len: r.page_len,
        page_count: s.page_count,
        mem: s.mem,
        device: s.device,
    })
}

fn span(r: &kvf_region) -> Result<Span> {
    zero(r.reserved.into(), "reserved")?;
    Ok(Span {
        base: r.base,
        page_stride: r.page_stride,
        page_count: r.page_count,
        mem: MemKind::from_code(r.mem_kind)?,
        device: r.device,
    })
}

fn part(p: &kvf_part) -> Part {
    Part {
        group: p.group,
        region: p.region,
        layer: p.layer,
        role: Role(p.role),
        offset: p.offset,
        heads_total: p.heads_total,
        head_first: p.head_first,
        head_count: p.head_count,
        head_stride: p.head_stride,
        rows: p.rows,
        row_stride: p.row_stride,
        cell_bytes: p.cell_bytes,
        elem_bytes: p.elem_bytes,
    }
}

fn order(code: u32) -> Result<PageOrder> {
    match code {
        KVF_ORDER_NHD => Ok(PageOrder::Nhd),
        KVF_ORDER_HND => Ok(PageOrder::Hnd),
        _ => Err(Error::invalid(format!(
            "order {code} is not a KVF_ORDER_ value"
        ))),
    }
}

fn placement(code: u32) -> Result<KvPlacement> {
    match code {
        KVF_KV_REGIONS => Ok(KvPlacement::Regions),
        KVF_KV_PLANES => Ok(KvPlacement::Planes),
        KVF_KV_HALVES => Ok(KvPlacement::Halves),
        KVF_KV_CELLS => Ok(KvPlacement::Cells),
        KVF_KV_SLABS => Ok(KvPlacement::Slabs),
        _ => Err(Error::invalid(format!("kv {code} is not a KVF_KV_ value"))),
    }
}

fn to_tables(layout: &Layout) -> kvf_layout_tables {
    let p = &layout.parallel;
    let regions = layout.regions.iter().map(|r| kvf_region {
        base: r.base,
        page_stride: r.page_stride,
        page_len: r.page_len,
        page_count: r.page_count,
        device: r.device,
        mem_kind: r.mem as u32,
        reserved: 0,
    });
    let groups = layout.groups.iter().map(|g| kvf_group {
        kind: g.kind as u32,
        tokens_per_block: g.tokens_per_block,
        kernel_blocks: g.kernel_blocks,
        window: g.window,
        format: g.format,
        reserved: 0,
    });
    let parts = layout.parts.iter().map(|p| kvf_part {
        group: p.group,
        region: p.region,
        layer: p.layer,
        role: p.role.0,
        offset: p.offset,
        heads_total: p.heads_total,
        head_first: p.head_first,
        head_count: p.head_count,
        rows: p.rows,
        head_stride: p.head_stride,
        row_stride: p.row_stride,
        cell_bytes: p.cell_bytes,
        elem_bytes: p.elem_bytes,
    });
    let (regions, regions_len) = give(regions.collect());
    let (groups, groups_len) = give(groups.collect());
    let (parts, parts_len) = give(parts.collect());
    kvf_layout_tables {
        parallel: kvf_parallel {
            tp_rank: p.tp_rank,
            tp_size: p.tp_size,
            pp_rank: p.pp_rank,
            pp_size: p.pp_size,
            dcp_rank: p.dcp_rank,
            dcp_size: p.dcp_size,
            dcp_interleave: p.dcp_interleave,
            reserved: 0,
        },
        regions,
        regions_len,
        groups,
        groups_len,
        parts,
        parts_len,
    }
}

/// A number that must not be zero.
fn positive(value: u32, what: &str) -> Result<()> {
    match value {
        0 => Err(Error::invalid(format!("{what} is 0"))),
        _ => Ok(()),
    }
}

/// A field that is kept for later versions.
pub(super) fn zero(value: u64, what: &str) -> Result<()> {
    match value {
        0 => Ok(()),
        _ => Err(Error::invalid(format!("{what} is {value}; it must be 0"))),
    }
}
