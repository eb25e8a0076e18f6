//! What an engine knows about its KV cache: tensors, block tables, and a few words about the model.

use crate::connector::Mode;
use crate::error::{Result, Status, bail};
use crate::layout::Group;
use crate::memory::{MemDesc, MemKind};

/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 5;

/// The KV cache of one rank, as its engine sees it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct KvCache {
    /// The layers' tensors, in any order. Layers that use another layer's cache are left out.
    pub tensors: Vec<KvTensor>,
    /// Transfer groups in the order in which the engine lists block ids: [`Group::kind`],
    /// [`Group::tokens_per_block`] (ignored for state), [`Group::window`] and [`Group::format`] count.
    /// [`Group::kernel_blocks`] is ignored: it is [`KvCache::blocks_per_logical`].
    pub groups: Vec<Group>,
    /// Logical blocks in the pool.
    pub num_blocks: u64,
    /// Kernel blocks of one logical block.
    pub blocks_per_logical: u32,
    /// Tokens of one kernel block, as it is told to peers.
    pub block_tokens: u32,
    /// What [`PhysicalOrder`](super::PhysicalOrder) names, such as `LBHNC`.
    pub layout: String,
    /// Name of the first attention backend.
    pub attn_backend: String,
    /// KV heads of the model, before tensor parallelism; 1 if `mla`.
    pub kv_heads: u32,
    /// Whether the model as a whole uses multi-head latent attention.
    pub mla: bool,
    /// Order of K and V inside one head of a block.
    pub slab: SlabOrder,
    /// Which side moves the bytes; two sides must agree.
    pub mode: Mode,
    /// Whether the engine keeps several block tables for groups that are not full attention (vLLM: its
    /// hybrid manager is on). It decides what is told to peers in push mode, nothing else.
    pub hybrid: bool,
    /// Prefill-context-parallel size.
    pub pcp_size: u32,
}

/// What of the order inside one head of a block is known. It decides whether a block can be split by
/// token: between engines with blocks of different sizes, or with different backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
#[repr(u32)]
pub enum SlabOrder {
    /// Each token's K followed by its V: most backends.
    #[default]
    Cells = 0,
    /// All tokens' K, then all tokens' V: vLLM's CPU backend.
    Halves = 1,
    /// Not known. A head of a block is moved whole.
    Opaque = 2,
}

impl SlabOrder {
    /// The order with this number.
    pub fn from_code(code: u32) -> Result<Self> {
        match code {
            0 => Ok(SlabOrder::Cells),
            1 => Ok(SlabOrder::Halves),
            2 => Ok(SlabOrder::Opaque),
            _ => bail!(Status::InvalidArgument, "slab order {code} is not known"),
        }
    }
}

/// One layer's cache.
#[derive(Clone, Debug, PartialEq)]
pub struct KvTensor {
    /// The layer's name: the same in every engine that serves the model.
    pub layer: String,
    /// Index of its group.
    pub group: u32,
    /// What it holds.
    pub content: Content,
    /// Address of its block 0.
    pub address: u64,
    /// The allocation that it is a view of: this is registered as a whole, once. A length of 0 is what
    /// the blocks take up.
    pub storage: MemDesc,
    /// Kind of memory.
    pub mem: MemKind,
    /// Length of each dimension and bytes from one index to the next: `[blocks, heads, tokens, cell]`,
    /// or without heads `[blocks, tokens, cell]`; of a state `[blocks, …]`. One dimension is a flat view
    /// of bytes. None: blocks follow each other, arranged as [`KvCache::layout`] says.
    pub dims: Vec<(u64, u64)>,
    /// Bytes of an element.
    pub elem_bytes: u32,
    /// Bytes of one *logical* block of this layer, padding included; 0 is what its content needs.
    pub page_bytes: u64,
    /// Logical blocks of this layer if it has a pool of its own; 0 is [`KvCache::num_blocks`].
    pub num_blocks: u64,
}

/// What a layer's cache holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// K and V of this rank's share of the heads.
    Heads(HeadShape),
    /// One vector per token, whole on every rank: MLA, indexer caches. The number is its elements, and
    /// may be 0 if the tensor has dimensions.
    Latent(u32),
    /// Recurrent state: convolution sub-projections, and the recurrent state behind them.
    State(StateSizes),
}

/// The heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeadShape {
    /// Elements of a K head.
    pub k_size: u32,
    /// Elements of a V head.
    pub v_size: u32,
    /// Heads of this layer in the model; 0 is [`KvCache::kv_heads`].
    pub total: u32,
}

/// Recurrent state of one layer on this rank. Tensor parallelism cuts every piece into equal shares.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateSizes {
    /// Channels of each convolution sub-projection, in their order in memory.
    pub conv_channels: Vec<u32>,
    /// Rows of the convolution state: the kernel's width less one.
    pub conv_rows: u32,
    /// Bytes of an element of the convolution state.
    pub conv_elem_bytes: u32,
    /// Heads of the recurrent state.
    pub ssm_heads: u32,
    /// Bytes of the recurrent state of one head.
    pub ssm_head_bytes: u32,
    /// Bytes of an element of the recurrent state.
    pub ssm_elem_bytes: u32,
}

/// Families of recurrent layers whose convolution state falls into known sub-projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StateKind {
    /// x alone.
    Mamba1 = 1,
    /// x, B, C.
    Mamba2 = 2,
    /// Q, K, V of gated linear attention.
    Gdn = 3,
}

impl StateSizes {
    /// The sub-projections of a family, from the shapes of both states on one rank: convolution
    /// `[channels, rows]` (channels outermost), recurrent `[heads, …]`.
    pub fn of(
        kind: StateKind,
        conv: [u32; 2],
        conv_elem_bytes: u32,
        ssm: &[u32],
        ssm_elem_bytes: u32,
    ) -> Result<StateSizes> {
        let [channels, conv_rows] = conv;
        let (ssm_heads, ssm_head_bytes) = heads_of(ssm, ssm_elem_bytes)?;
        // The piece of the convolution that belongs to the recurrent heads' values.
        let values = u64::from(ssm_heads) * u64::from(ssm.get(1).copied().unwrap_or(1));
        let rest = u64::from(channels).checked_sub(values);
        let conv_channels = match (kind, rest) {
            (StateKind::Mamba1, _) if ssm_heads == channels => vec![channels],
            (StateKind::Mamba2, Some(rest)) if rest > 0 && rest % 2 == 0 => {
                vec![values as u32, (rest / 2) as u32, (rest / 2) as u32]
            }
            (StateKind::Gdn, Some(rest)) if rest > 0 && rest % 2 == 0 => {
                vec![(rest / 2) as u32, (rest / 2) as u32, values as u32]
            }
            _ => bail!(
                Status::InvalidArgument,
                "convolution state [{channels}, {conv_rows}] and recurrent state {ssm:?} are not the \
                 shapes of {kind:?}"
            ),
        };
        Ok(StateSizes {
            conv_channels,
            conv_rows,
            conv_elem_bytes,
            ssm_heads,
            ssm_head_bytes,
            ssm_elem_bytes,
        })
    }

    /// Sub-projections as stated, which must add up to the channels of `conv` (if that is not 0).
    pub fn stated(
        channels: &[u32],
        conv: [u32; 2],
        conv_elem_bytes: u32,
        ssm: &[u32],
        ssm_elem_bytes: u32,
    ) -> Result<StateSizes> {
        let sum: u64 = channels.iter().map(|n| u64::from(*n)).sum();
        if conv[0] != 0 && sum != u64::from(conv[0]) {
            bail!(
                Status::InvalidArgument,
                "conv_channels {channels:?} are {sum}, and the convolution state has {}",
                conv[0]
            );
        }
        let (ssm_heads, ssm_head_bytes) = heads_of(ssm, ssm_elem_bytes)?;
        Ok(StateSizes {
            conv_channels: channels.to_vec(),
            conv_rows: conv[1],
            conv_elem_bytes,
            ssm_heads,
            ssm_head_bytes,
            ssm_elem_bytes,
        })
    }

    /// Bytes of the convolution and of the recurrent state on this rank, as they are told to peers.
    pub fn bytes(&self) -> (u64, u64) {
        let channels: u64 = self.conv_channels.iter().map(|n| u64::from(*n)).sum();
        (
            channels
                .saturating_mul(self.conv_rows.into())
                .saturating_mul(self.conv_elem_bytes.into()),
            u64::from(self.ssm_heads) * u64::from(self.ssm_head_bytes),
        )
    }
}

/// Heads of a recurrent state and bytes of each.
fn heads_of(ssm: &[u32], elem_bytes: u32) -> Result<(u32, u32)> {
    let bytes = ssm.iter().skip(1).try_fold(u64::from(elem_bytes), |n, d| {
        n.checked_mul(u64::from(*d))
            .filter(|n| *n <= u32::MAX.into())
    });
    match (ssm.first(), bytes) {
        (Some(&heads), Some(bytes)) => Ok((heads, bytes as u32)),
        _ => bail!(
            Status::InvalidArgument,
            "recurrent state {ssm:?} with elements of {elem_bytes} bytes"
        ),
    }
}
