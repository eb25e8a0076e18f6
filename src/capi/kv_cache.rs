//! What an engine knows about its KV cache: the input of the connector's worker half.

use std::ffi::c_char;

use super::input::{Plain, bounded, flag, nonzero, opt_text, options, slice, text};
use super::layout::kvf_group;
use crate::connector::Mode;
use crate::connector::geometry::{
    Content, HeadShape, KvCache, KvTensor, MAX_DIMS, SlabOrder, StateKind, StateSizes,
};
use crate::error::{Error, Result};
use crate::layout::{Group, GroupKind, MAX_GROUPS, MAX_REGIONS};
use crate::memory::{MemDesc, MemKind};

/// K and V of this rank's share of the heads.
pub const KVF_CONTENT_HEADS: u32 = 0;
/// One vector per token, whole on every rank: MLA, indexer caches.
pub const KVF_CONTENT_LATENT: u32 = 1;
/// Recurrent state of a Mamba or linear attention layer.
pub const KVF_CONTENT_STATE: u32 = 2;

/// In one head of a block each token's K is followed by its V: most attention backends.
pub const KVF_SLAB_CELLS: u32 = 0;
/// In one head of a block all tokens' K come before all tokens' V: vLLM's CPU backend.
pub const KVF_SLAB_HALVES: u32 = 1;
/// The order inside one head of a block is not known; it is moved whole, and only between engines
/// with blocks of one size.
pub const KVF_SLAB_OPAQUE: u32 = 2;

/// The sub-projections of the convolution are stated in `conv_channels`.
pub const KVF_STATE_STATED: u32 = 0;
/// Mamba 1: x.
pub const KVF_STATE_MAMBA1: u32 = 1;
/// Mamba 2: x, B, C.
pub const KVF_STATE_MAMBA2: u32 = 2;
/// Gated linear attention: Q, K, V.
pub const KVF_STATE_GDN: u32 = 3;

/// Recurrent state of one layer on this rank: convolution state `[channels][rows]`, then recurrent
/// state `[heads][...]`. Tensor parallelism cuts every piece into equal shares.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_kv_state {
    /// One of `KVF_STATE_...`: how the channels fall into sub-projections.
    pub kind: u32,
    /// Channels of the convolution state.
    pub conv_channels_total: u32,
    /// Rows of the convolution state: the kernel's width less one.
    pub conv_rows: u32,
    /// Bytes of an element of the convolution state.
    pub conv_elem_bytes: u32,
    /// Shape of the recurrent state, heads first.
    pub ssm_shape: [u32; 4],
    /// Number of its dimensions.
    pub ssm_dims: u32,
    /// Bytes of an element of the recurrent state.
    pub ssm_elem_bytes: u32,
    /// With `KVF_STATE_STATED`: channels of each sub-projection, in their order in memory.
    pub conv_channels: *const u32,
    /// How many there are.
    pub conv_channels_len: usize,
}

/// One layer's cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_kv_tensor {
    /// The layer's name: the same in every engine that serves the model.
    pub layer: *const c_char,
    /// Index of its group.
    pub group: u32,
    /// One of `KVF_CONTENT_...`.
    pub content: u32,
    /// Address of its block 0.
    pub address: u64,
    /// Where the allocation begins that it is a view of; 0 is `address`.
    pub storage_address: u64,
    /// Bytes of that allocation. It is registered as a whole, once. 0 is what the blocks take up.
    pub storage_bytes: u64,
    /// Bytes of one logical block of this layer, padding included. 0 is what its content needs.
    pub page_bytes: u64,
    /// Logical blocks, if this layer has a pool of its own; 0 is `num_blocks` of the cache.
    pub num_blocks: u64,
    /// Device; see `KVF_MEM_...`.
    pub device: u64,
    /// One of `KVF_MEM_...`.
    pub mem_kind: u32,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// Length of each dimension: `[blocks, heads, tokens, cell]`, or without heads `[blocks, tokens,
    /// cell]`, blocks being kernel blocks; of a state `[blocks, ...]`.
    pub shape: [u64; 5],
    /// Bytes from one index of each dimension to the next.
    pub strides: [u64; 5],
    /// Number of dimensions. 1 is a flat view of bytes. 0: blocks follow each other, each arranged as
    /// `layout` of the cache says.
    pub dims: u32,
    /// Elements of a K head. Of a latent its elements per token, needed if `dims` is 0 or 1.
    pub k_head_size: u32,
    /// Elements of a V head; 0 is `k_head_size`.
    pub v_head_size: u32,
    /// KV heads of this layer in the model, if they are not those of the cache; else 0.
    pub kv_heads: u32,
    /// With `KVF_CONTENT_STATE`, its sizes; else NULL.
    pub state: *const kvf_kv_state,
}

/// The KV cache of one rank. Zero it, or start from `kvf_kv_cache_default()`, and set `tensors`,
/// `groups`, `num_blocks`, `block_tokens` and `kv_heads`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvf_kv_cache {
    /// `sizeof(kvf_kv_cache)`.
    pub struct_size: u32,
    /// KV heads of the model, before tensor parallelism; 1 with `mla`.
    pub kv_heads: u32,
    /// The layers, in any order. Layers that use another layer's cache are left out.
    pub tensors: *const kvf_kv_tensor,
    /// Their number.
    pub tensors_len: usize,
    /// Block tables, in the order in which the engine lists its block ids. `kernel_blocks` is 0 or
    /// `blocks_per_logical`.
    pub groups: *const kvf_group,
    /// Their number.
    pub groups_len: usize,
    /// Logical blocks in the pool.
    pub num_blocks: u64,
    /// Kernel blocks of one logical block; 0 is 1.
    pub blocks_per_logical: u32,
    /// Tokens of one kernel block.
    pub block_tokens: u32,
    /// Physical order: "LBHNC" (also for NULL), "LBNHC", "LHBNC", "BLHNC", "BLNHC" or "BHLNC", where L
    /// is layers, B blocks, H heads, N tokens, C a cell; outermost first.
    pub layout: *const c_char,
    /// Name of the attention backend; NULL is "". Peers are told.
    pub attn_backend: *const c_char,
    /// One of `KVF_SLAB_...`: order of K and V inside one head of a block.
    pub slab_order: u32,
    /// Prefill-context-parallel size; 0 is 1.
    pub pcp_size: u32,
    /// Whether the model as a whole uses multi-head latent attention.
    pub mla: u8,
    /// Whether groups that are not full attention have block tables of their own (vLLM: the hybrid
    /// manager is on). Decides what peers are told in push mode, nothing else.
    pub hybrid: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

// SAFETY: integers and raw pointers only.
unsafe impl Plain for kvf_kv_cache {
    const FIRST_SIZE: usize = 88;
}

/// Most sub-projections: there are three in the largest family known.
const MAX_SUB_PROJECTIONS: usize = 240;

/// The cache that C describes. `mode` comes from the worker's own options.
///
/// # Safety
/// Pointers are valid as the header's conventions say; a non-null `cache` is as large as it says.
pub(super) unsafe fn kv_cache(cache: *const kvf_kv_cache, mode: Mode) -> Result<KvCache> {
    if cache.is_null() {
        return Err(Error::invalid("cache is NULL"));
    }
    // SAFETY: the caller's contract, here and in every block below of this file.
    let c = unsafe { options(cache, "cache") }?;
    // SAFETY: by contract.
    let groups = unsafe { bounded(c.groups, c.groups_len, MAX_GROUPS, "groups") }?;
    // SAFETY: by contract.
    let tensors = unsafe { bounded(c.tensors, c.tensors_len, MAX_REGIONS, "tensors") }?;
    let ppl = nonzero(c.blocks_per_logical).unwrap_or(1);
    let groups = groups
        .iter()
        .enumerate()
        .map(|(i, g)| group(g, ppl).map_err(|e| e.context(format_args!("groups[{i}]"))))
        .collect::<Result<Vec<Group>>>()?;
    // SAFETY: by contract.
    let layout = unsafe { opt_text(c.layout, "layout") }?;
    // SAFETY: by contract.
    let attn_backend = unsafe { opt_text(c.attn_backend, "attn_backend") }?;
    let mut out = KvCache {
        tensors: Vec::with_capacity(tensors.len()),
        groups,
        num_blocks: c.num_blocks,
        blocks_per_logical: ppl,
        block_tokens: c.block_tokens,
        layout: layout.unwrap_or("LBHNC").to_owned(),
        attn_backend: attn_backend.unwrap_or("").to_owned(),
        kv_heads: c.kv_heads,
        mla: flag(c.mla, "mla")?,
        slab: SlabOrder::from_code(c.slab_order)?,
        mode,
        hybrid: flag(c.hybrid, "hybrid")?,
        pcp_size: nonzero(c.pcp_size).unwrap_or(1),
    };
    for (i, t) in tensors.iter().enumerate() {
        // SAFETY: the caller's contract.
        let tensor = unsafe { tensor(t) };
        out.tensors
            .push(tensor.map_err(|e| e.context(format_args!("tensors[{i}]")))?);
    }
    Ok(out)
}

fn group(g: &kvf_group, ppl: u32) -> Result<Group> {
    let kind = GroupKind::from_code(g.kind)?;
    let kernel_blocks = nonzero(g.kernel_blocks).unwrap_or(ppl);
    if kind != GroupKind::State && kernel_blocks != ppl {
        return Err(Error::invalid(format!(
            "kernel_blocks {kernel_blocks}, and blocks_per_logical is {ppl}"
        )));
    }
    Ok(Group {
        kind,
        tokens_per_block: g.tokens_per_block,
        kernel_blocks: ppl,
        window: g.window,
        format: g.format,
    })
}

/// # Safety
/// As for [`kv_cache`].
unsafe fn tensor(t: &kvf_kv_tensor) -> Result<KvTensor> {
    let dims = t.dims as usize;
    if dims > MAX_DIMS {
        return Err(Error::invalid(format!(
            "dims is {dims}, more than {MAX_DIMS}"
        )));
    }
    let content = match t.content {
        KVF_CONTENT_HEADS => Content::Heads(HeadShape {
            k_size: t.k_head_size,
            v_size: nonzero(t.v_head_size).unwrap_or(t.k_head_size),
            total: t.kv_heads,
        }),
        KVF_CONTENT_LATENT => Content::Latent(t.k_head_size),
        // SAFETY: the caller's contract.
        KVF_CONTENT_STATE => Content::State(unsafe { state(t.state) }?),
        n => return Err(Error::invalid(format!("content {n} is not known"))),
    };
    let address = t.address;
    Ok(KvTensor {
        // SAFETY: the caller's contract.
        layer: unsafe { text(t.layer, "layer") }?.to_owned(),
        group: t.group,
        content,
        address,
        storage: MemDesc {
            addr: nonzero(t.storage_address).unwrap_or(address),
            len: t.storage_bytes,
            device: t.device,
        },
        mem: MemKind::from_code(t.mem_kind)?,
        dims: (0..dims).map(|i| (t.shape[i], t.strides[i])).collect(),
        elem_bytes: t.elem_bytes,
        page_bytes: t.page_bytes,
        num_blocks: t.num_blocks,
    })
}

/// # Safety
/// As for [`kv_cache`].
unsafe fn state(s: *const kvf_kv_state) -> Result<StateSizes> {
    // SAFETY: the caller's contract.
    let [s] = (unsafe { slice(s, 1, "state") })? else {
        return Err(Error::invalid("state is NULL"));
    };
    let dims = s.ssm_dims as usize;
    let Some(ssm) = s.ssm_shape.get(..dims) else {
        return Err(Error::invalid(format!(
            "ssm_dims is {dims}, more than {}",
            s.ssm_shape.len()
        )));
    };
    let conv = [s.conv_channels_total, s.conv_rows];
    let kind = match s.kind {
        KVF_STATE_STATED => None,
        KVF_STATE_MAMBA1 => Some(StateKind::Mamba1),
        KVF_STATE_MAMBA2 => Some(StateKind::Mamba2),
        KVF_STATE_GDN => Some(StateKind::Gdn),
        n => return Err(Error::invalid(format!("state kind {n} is not known"))),
    };
    if let Some(kind) = kind {
        return StateSizes::of(kind, conv, s.conv_elem_bytes, ssm, s.ssm_elem_bytes);
    }
    // SAFETY: the caller's contract.
    let stated = unsafe {
        bounded(
            s.conv_channels,
            s.conv_channels_len,
            MAX_SUB_PROJECTIONS,
            "conv_channels",
        )
    }?;
    StateSizes::stated(stated, conv, s.conv_elem_bytes, ssm, s.ssm_elem_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeroed<T: Copy>() -> T {
        // SAFETY: used with structs of integers and raw pointers only.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn a_hybrid_cache_is_read() {
        let sub = [32u32, 8, 8];
        let state = kvf_kv_state {
            kind: KVF_STATE_STATED,
            conv_rows: 3,
            conv_elem_bytes: 2,
            ssm_shape: [4, 8, 8, 0],
            ssm_dims: 3,
            ssm_elem_bytes: 4,
            conv_channels: sub.as_ptr(),
            conv_channels_len: 3,
            ..zeroed()
        };
        let attention = kvf_kv_tensor {
            layer: c"layers.0".as_ptr(),
            address: 0x1000,
            elem_bytes: 2,
            shape: [6, 4, 16, 32, 0],
            strides: [4096, 1024, 64, 2, 0],
            dims: 4,
            k_head_size: 16,
            ..zeroed()
        };
        let mamba = kvf_kv_tensor {
            layer: c"layers.1".as_ptr(),
            group: 1,
            content: KVF_CONTENT_STATE,
            storage_address: 0x800,
            storage_bytes: 0x10000,
            mem_kind: 1,
            device: 3,
            state: &state,
            ..attention
        };
        let groups = [
            kvf_group {
                tokens_per_block: 32,
                ..zeroed()
            },
            kvf_group {
                kind: super::super::layout::KVF_GROUP_STATE,
                ..zeroed()
            },
        ];
        let tensors = [attention, mamba];
        let cache = kvf_kv_cache {
            struct_size: size_of::<kvf_kv_cache>() as u32,
            kv_heads: 4,
            tensors: tensors.as_ptr(),
            tensors_len: 2,
            groups: groups.as_ptr(),
            groups_len: 2,
            num_blocks: 3,
            blocks_per_logical: 2,
            block_tokens: 16,
            ..zeroed()
        };
        // SAFETY: all pointers are to live values.
        let read = |c: &kvf_kv_cache| unsafe { kv_cache(c, Mode::Push) };
        let got = read(&cache).unwrap();
        assert_eq!(
            (got.layout.as_str(), got.attn_backend.as_str()),
            ("LBHNC", "")
        );
        assert_eq!(
            (got.mode, got.slab, got.pcp_size),
            (Mode::Push, SlabOrder::Cells, 1)
        );
        assert_eq!(got.groups[0].kernel_blocks, 2);
        let [a, m] = &got.tensors[..] else {
            panic!("{got:?}")
        };
        let heads = HeadShape {
            k_size: 16,
            v_size: 16,
            total: 0,
        };
        assert_eq!(a.content, Content::Heads(heads));
        assert_eq!(a.dims, [(6, 4096), (4, 1024), (16, 64), (32, 2)]);
        assert_eq!((a.storage.addr, a.storage.len), (0x1000, 0));
        let Content::State(s) = &m.content else {
            panic!("{m:?}")
        };
        assert_eq!(s.bytes(), (48 * 3 * 2, 4 * 64 * 4));
        assert_eq!(
            (m.storage.addr, m.storage.device, m.mem),
            (0x800, 3, MemKind::Vram)
        );

        let says = |c: kvf_kv_cache, word: &str| {
            let e = read(&c).unwrap_err();
            assert!(e.message().contains(word), "{e}");
        };
        says(kvf_kv_cache { mla: 2, ..cache }, "mla is 2");
        says(
            kvf_kv_cache {
                slab_order: 3,
                ..cache
            },
            "slab order 3",
        );
        says(
            kvf_kv_cache {
                tensors: std::ptr::null(),
                ..cache
            },
            "tensors is NULL",
        );
        for (tensor, word) in [
            (
                kvf_kv_tensor {
                    dims: 6,
                    ..attention
                },
                "tensors[0]: dims is 6",
            ),
            (
                kvf_kv_tensor {
                    content: 3,
                    ..attention
                },
                "content 3",
            ),
            (
                kvf_kv_tensor {
                    layer: std::ptr::null(),
                    ..attention
                },
                "layer is NULL",
            ),
            (
                kvf_kv_tensor {
                    state: std::ptr::null(),
                    ..mamba
                },
                "state is NULL",
            ),
        ] {
            let one = kvf_kv_cache {
                tensors: &tensor,
                tensors_len: 1,
                ..cache
            };
            says(one, word);
        }
    }
}
