//! Geometry of one rank's KV cache, as data.
//!
//! # The idea: content, and where it lies
//!
//! A KV cache is a set of small values. Each is named by *what it is*:
//!
//! > (layer, role, head, token), where the role is K, V, the MLA latent, ...
//!
//! and this name means the same on every rank of every engine that serves the model. A value is a
//! **cell**: `cell_bytes` bytes that are never taken apart (for K: one head of one token,
//! head size × element size). Engines differ only in *where* a rank keeps a cell, and on which
//! ranks it is. A [`Layout`] states exactly that, for one rank, in three tables:
//!
//! - a [`Region`] is a row of equal pages in memory;
//! - a [`Group`] is a set of layers that share a block table: one block id names one page (or
//!   [`Group::kernel_blocks`] pages) in every region of the group;
//! - a [`Part`] says what a page holds: one role of one layer, a range of the model's heads, and how
//!   far apart heads and tokens are. `part.offset`, `head_stride` and `row_stride` express every
//!   arrangement in use; [`LayoutBuilder`] knows their names.
//!
//! The address of a cell whose token is row `t` of page `p`:
//!
//! ```text
//! region.base + p * region.page_stride
//!   + part.offset + (head - part.head_first) * part.head_stride + t * part.row_stride
//! ```
//!
//! # TP 4 to TP 2, in one picture
//!
//! Eight KV heads. Four prefill ranks hold two heads each, two decode ranks hold four each. One
//! block of one layer, head-major ("HND": a head's tokens lie together), K only:
//!
//! ```text
//!                 P0            P1            P2            P3        prefill, TP 4
//! heads       +---+---+     +---+---+     +---+---+     +---+---+
//!             | 0 | 1 |     | 2 | 3 |     | 4 | 5 |     | 6 | 7 |     page: 2 heads
//!             +---+---+     +---+---+     +---+---+     +---+---+
//!                  \           /               \           /
//!                   v         v                 v         v
//!             +---+---+---+---+             +---+---+---+---+
//!             | 0 | 1 | 2 | 3 |             | 4 | 5 | 6 | 7 |         page: 4 heads
//!             +---+---+---+---+             +---+---+---+---+
//!                    D0                            D1                 decode, TP 2
//!
//! part of P1:  head_first 2, head_count 2, heads_total 8
//! part of D0:  head_first 0, head_count 4, heads_total 8
//! shared:      heads 2..4    -> one lane: whole page of P1 -> second half of the page of D0
//! ```
//!
//! [`crate::plan`] does nothing but intersect such head ranges and turn the two address formulas
//! into strided copies. Nothing in it knows about TP sizes, GQA or MLA as special cases:
//!
//! | case | how the layout says it |
//! |---|---|
//! | tensor parallelism | `head_first`, `head_count` of each rank's parts |
//! | fewer KV heads than ranks | several ranks state the same heads |
//! | MLA, or anything replicated | `heads_total` 1, on every rank |
//! | K and V in two regions, in one page, in one cell | parts with different regions, offsets, strides |
//! | head-major (HND), token-major (NHD) | `row_stride` or `head_stride` is the smaller one |
//! | layers packed in one block row | regions whose `page_stride` is larger than `page_len` |
//! | block size, kernel blocks per block | [`Group::tokens_per_block`], [`Group::kernel_blocks`] |
//! | decode context parallelism | [`Parallel::dcp_size`]: a block id's tokens are spread over ranks |
//! | Mamba state | parts whose "heads" are channels and whose rows are fixed: one state per block id |
//! | a slab whose inner order is the backend's secret | `rows` 1: may be moved whole, never split |
//!
//! # In files
//!
//! This one has the tables, `validate` says what a sound layout is, `builder` makes the common
//! ones, `wire` is the serialised form in which ranks exchange them, `describe` explains.

mod builder;
mod describe;
mod validate;
mod wire;

pub use builder::{
    ConvOrder, DenseShape, KvPlacement, LatentShape, LayoutBuilder, PageOrder, Span, StateShape,
    SubProjection, shard,
};

use crate::error::{Error, Result};
use crate::memory::MemKind;

/// Most regions in one layout.
pub const MAX_REGIONS: usize = 1 << 16;
/// Most groups in one layout.
pub const MAX_GROUPS: usize = 64;
/// Most parts in one layout.
pub const MAX_PARTS: usize = 1 << 18;
/// Most ranks in any direction of parallelism.
pub const MAX_RANKS: u32 = 1 << 12;
/// Most bytes of a serialised layout.
pub const MAX_ENCODED: usize = 16 << 20;

/// One rank's KV cache. Plain data; [`Layout::validate`] says whether it is sound.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    /// Which rank of which engine shape this is.
    pub parallel: Parallel,
    /// Memory: rows of pages. Regions may overlap (hybrid models lay groups over each other).
    pub regions: Vec<Region>,
    /// Block tables, in the order in which the engine lists its block ids.
    pub groups: Vec<Group>,
    /// What the pages hold.
    pub parts: Vec<Part>,
}

/// A rank's place in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Tensor-parallel rank, below `tp_size`.
    pub tp_rank: u32,
    /// Tensor-parallel size, at least 1.
    pub tp_size: u32,
    /// Pipeline stage, below `pp_size`. A stage holds some of the layers.
    pub pp_rank: u32,
    /// Number of pipeline stages, at least 1.
    pub pp_size: u32,
    /// Which share of the tokens this rank keeps in its attention groups, below `dcp_size`.
    pub dcp_rank: u32,
    /// Decode-context-parallel size, at least 1. When it is `c`, a block id stands for
    /// `c * tokens_per_block` tokens, of which each of `c` ranks keeps `tokens_per_block`.
    pub dcp_size: u32,
    /// Consecutive tokens that go to one rank before the next rank's turn. It divides
    /// `tokens_per_block`; 0 is one whole block. Without meaning when `dcp_size` is 1.
    pub dcp_interleave: u32,
}

impl Default for Parallel {
    fn default() -> Self {
        Parallel {
            tp_rank: 0,
            tp_size: 1,
            pp_rank: 0,
            pp_size: 1,
            dcp_rank: 0,
            dcp_size: 1,
            dcp_interleave: 0,
        }
    }
}

impl Parallel {
    /// A rank of an engine that is only tensor-parallel.
    pub fn tp(tp_rank: u32, tp_size: u32) -> Self {
        Parallel {
            tp_rank,
            tp_size,
            ..Parallel::default()
        }
    }

    /// The same rank with its tokens spread over `dcp_size` ranks in the usual order
    /// (`tp_rank % dcp_size`), `interleave` tokens at a time (0: a block at a time).
    pub fn with_dcp(mut self, dcp_size: u32, interleave: u32) -> Self {
        self.dcp_rank = self.tp_rank % dcp_size.max(1);
        self.dcp_size = dcp_size;
        self.dcp_interleave = interleave;
        self
    }
}

/// A row of equal pages: page `p` is the `page_len` bytes at `base + p * page_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Address of page 0; see [`MemKind`].
    pub base: u64,
    /// Bytes from the start of one page to the start of the next; at least `page_len`.
    pub page_stride: u64,
    /// Bytes of a page.
    pub page_len: u64,
    /// Number of pages; at most `u32::MAX`.
    pub page_count: u64,
    /// Kind of memory.
    pub mem: MemKind,
    /// Device; see [`MemKind`].
    pub device: u64,
}

/// Which tokens a group's blocks hold, and therefore how lists of block ids are paired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum GroupKind {
    /// Attention over all tokens.
    Full = 0,
    /// Attention over the last [`Group::window`] tokens; block lists may be cut to their end.
    SlidingWindow = 1,
    /// Attention inside chunks of [`Group::window`] tokens; block lists may be cut to their end.
    ChunkedLocal = 2,
    /// Multi-head latent attention. Differs from [`GroupKind::Full`] in name only: that the latent
    /// is on every rank is said by its parts.
    Mla = 3,
    /// Recurrent state (Mamba, SSM, linear attention): a block id is a state, not a range of tokens.
    State = 4,
}

impl GroupKind {
    /// Every kind.
    pub const ALL: [GroupKind; 5] = [
        GroupKind::Full,
        GroupKind::SlidingWindow,
        GroupKind::ChunkedLocal,
        GroupKind::Mla,
        GroupKind::State,
    ];

    /// The kind with this number.
    pub fn from_code(code: u32) -> Result<GroupKind> {
        Self::ALL
            .into_iter()
            .find(|k| *k as u32 == code)
            .ok_or_else(|| Error::invalid(format!("group kind {code} is not known")))
    }

    /// A short lower-case name, such as `sliding window`.
    pub fn name(self) -> &'static str {
        match self {
            GroupKind::Full => "full attention",
            GroupKind::SlidingWindow => "sliding window",
            GroupKind::ChunkedLocal => "chunked local",
            GroupKind::Mla => "MLA",
            GroupKind::State => "state",
        }
    }

    /// Whether older tokens may be missing from the block lists.
    pub fn is_windowed(self) -> bool {
        matches!(self, GroupKind::SlidingWindow | GroupKind::ChunkedLocal)
    }
}

/// Layers that share a block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// What the blocks hold.
    pub kind: GroupKind,
    /// Tokens of one block on this rank (a *logical* block: what the scheduler counts and what block
    /// ids name). 1 for state groups.
    pub tokens_per_block: u32,
    /// Pages that one block id stands for in each region: block `b` is pages `b * kernel_blocks` and
    /// following. Divides `tokens_per_block`; 1 for state groups.
    pub kernel_blocks: u32,
    /// Tokens of the window or chunk; 0 for other kinds, and for windowed ones whose lists are never
    /// cut.
    pub window: u32,
    /// A number chosen by the caller for what the cells mean (element type, quantisation). Two sides
    /// must state the same; 0 if the caller checks this elsewhere.
    pub format: u32,
}

impl Group {
    /// Tokens of one page, or 1 for state groups.
    pub fn tokens_per_page(&self) -> u32 {
        self.tokens_per_block / self.kernel_blocks.max(1)
    }
}

/// What a part is. Numbers from [`Role::OTHER`] on are the caller's to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Role(pub u32);

impl Role {
    /// Keys.
    pub const K: Role = Role(0);
    /// Values.
    pub const V: Role = Role(1);
    /// Keys and values of a head in an order that only the attention backend knows.
    pub const KV: Role = Role(2);
    /// The latent of MLA, with its rotary part.
    pub const LATENT: Role = Role(3);
    /// Recurrent state of an SSM.
    pub const SSM: Role = Role(4);
    /// The first of the convolution sub-projections (x, B, C of Mamba 2; Q, K, V of linear
    /// attention); sub-projection `i` is `Role(CONV.0 + i)`, up to 255.
    pub const CONV: Role = Role(16);
    /// First number free for the caller: indexer caches, scales, draft heads.
    pub const OTHER: Role = Role(256);

    /// A short name, such as `K` or `conv 1`.
    pub fn name(self) -> String {
        match self.0 {
            0 => "K".into(),
            1 => "V".into(),
            2 => "KV".into(),
            3 => "latent".into(),
            4 => "SSM".into(),
            n @ 16..256 => format!("conv {}", n - 16),
            n => format!("role {n}"),
        }
    }
}

/// One role of one layer, or some heads of it, inside the pages of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the group whose block ids select the pages.
    pub group: u32,
    /// Index of the region that has the pages.
    pub region: u32,
    /// Layer number in the model: the same on every rank and engine.
    pub layer: u32,
    /// What it is.
    pub role: Role,
    /// Byte offset of its first cell in the page.
    pub offset: u64,
    /// Heads of this role in the model; 1 for what every rank has whole; channels for state.
    pub heads_total: u32,
    /// First head held here.
    pub head_first: u32,
    /// Number of heads held here, at least 1.
    pub head_count: u32,
    /// Bytes from one head to the next.
    pub head_stride: u64,
    /// Rows in a page: the page's tokens, or 1 if the page may not be split by token. For state: any
    /// number, the same on both sides.
    pub rows: u32,
    /// Bytes from one row to the next.
    pub row_stride: u64,
    /// Bytes of one cell: one head of one row.
    pub cell_bytes: u32,
    /// Bytes of one element; divides `cell_bytes`.
    pub elem_bytes: u32,
}

impl Layout {
    /// Tokens per stripe of decode context parallelism in `group`, the default filled in.
    pub fn interleave(&self, group: &Group) -> u32 {
        match self.parallel.dcp_interleave {
            0 => group.tokens_per_block,
            n => n,
        }
    }

    /// Number of valid block ids of a group: what its smallest region can hold. As many as can be
    /// named if the group has no parts here (another pipeline stage has them).
    pub fn block_count(&self, group: usize) -> u64 {
        let pages = self
            .parts
            .iter()
            .filter(|p| p.group as usize == group)
            .filter_map(|p| self.regions.get(p.region as usize))
            .map(|r| r.page_count)
            .min()
            .unwrap_or(u64::from(u32::MAX));
        pages
            / self
                .groups
                .get(group)
                .map_or(1, |g| u64::from(g.kernel_blocks.max(1)))
    }
}
