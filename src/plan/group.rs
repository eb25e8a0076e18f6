//! What block ids mean: the geometry of a group on both sides, down to atoms.

use crate::error::{Result, Status, bail};
use crate::layout::{Group, GroupKind, Layout};

/// Most atoms in one block: beyond it a mistake is likelier than a model.
const MAX_PHASES: u64 = 1 << 16;
/// Most atoms until two different spreads of tokens over ranks begin again together.
const MAX_PERIOD: u64 = 1 << 20;

/// One side's block ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideGeometry {
    /// Tokens that a rank keeps of one block.
    pub tokens_per_block: u32,
    /// Pages of one block.
    pub kernel_blocks: u32,
    /// Number of valid block ids.
    pub block_count: u64,
    /// Over how many ranks a block's tokens are spread; 1 is not at all.
    pub dcp_size: u32,
    /// Tokens that go to one rank before the next rank's turn; without meaning if `dcp_size` is 1.
    pub dcp_interleave: u32,
    /// Groups of the same side with the same number draw their block ids from one pool, so that one
    /// id in two of them is the same memory.
    pub pool: u32,
}

impl SideGeometry {
    /// The geometry of a group of a layout. `pool` comes from [`pools`].
    pub(super) fn of(layout: &Layout, index: usize, group: &Group, pool: u32) -> Self {
        let spread = group.kind != GroupKind::State;
        SideGeometry {
            tokens_per_block: group.tokens_per_block,
            kernel_blocks: group.kernel_blocks,
            block_count: layout.block_count(index),
            dcp_size: if spread { layout.parallel.dcp_size } else { 1 },
            dcp_interleave: layout.interleave(group),
            pool,
        }
    }

    /// Tokens that a block id stands for, over all ranks.
    pub fn span(&self) -> u64 {
        u64::from(self.tokens_per_block) * u64::from(self.dcp_size)
    }

    /// Tokens after which it is the first rank's turn again.
    fn turn(&self) -> u64 {
        u64::from(self.dcp_size) * u64::from(self.dcp_interleave)
    }

    fn tokens_per_page(&self) -> u32 {
        self.tokens_per_block / self.kernel_blocks
    }

    fn check(&self, name: &str) -> Result<()> {
        let divides = |a: u32, b: u32| a != 0 && b != 0 && b % a == 0;
        if !divides(self.kernel_blocks, self.tokens_per_block) {
            bail!(
                Status::InvalidArgument,
                "{name} kernel_blocks {} does not divide tokens_per_block {}",
                self.kernel_blocks,
                self.tokens_per_block
            );
        }
        if self.dcp_size == 0
            || self.dcp_size > 1 && !divides(self.dcp_interleave, self.tokens_per_block)
        {
            bail!(
                Status::InvalidArgument,
                "{name} dcp_size {} with dcp_interleave {} and tokens_per_block {}",
                self.dcp_size,
                self.dcp_interleave,
                self.tokens_per_block
            );
        }
        if self.block_count.saturating_mul(self.kernel_blocks.into()) > u64::from(u32::MAX) {
            bail!(
                Status::InvalidArgument,
                "{name} block_count {} of {} pages is more than {} pages",
                self.block_count,
                self.kernel_blocks,
                u32::MAX
            );
        }
        Ok(())
    }
}

/// Where one atom of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The share of the tokens that it belongs to.
    pub shard: u32,
    /// Page within the block.
    pub page: u32,
    /// Atom within the page.
    pub atom: u32,
}

/// A group on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupGeometry {
    /// What the blocks hold.
    pub kind: GroupKind,
    /// Tokens of the window or chunk; see [`Group::window`].
    pub window: u32,
    /// The local side.
    pub local: SideGeometry,
    /// The remote side.
    pub remote: SideGeometry,
    atom: u32,
    local_phases: Vec<Phase>,
    remote_phases: Vec<Phase>,
    dcp_cancels: bool,
    /// Tokens after which both sides' turns begin again together, if both spread them.
    dcp_period: u64,
}

impl GroupGeometry {
    /// Lays the two sides over each other. An error if a size does not divide what it must, or,
    /// unless `uneven` allows it, if neither block size divides the other.
    pub fn new(
        kind: GroupKind,
        window: u32,
        local: SideGeometry,
        remote: SideGeometry,
        uneven: bool,
    ) -> Result<Self> {
        local.check("local")?;
        remote.check("remote")?;
        // Spread alike, a rank's own tokens correspond to those of its counterpart one to one, and
        // neither has to know of the others.
        let dcp_cancels = local.dcp_size == remote.dcp_size
            && (local.dcp_size == 1 || local.dcp_interleave == remote.dcp_interleave);
        if !uneven {
            comparable(
                "tokens per kernel block",
                local.tokens_per_page(),
                remote.tokens_per_page(),
            )?;
            comparable("tokens per block id", local.span(), remote.span())?;
        }
        let mut dcp_period = 1;
        if !dcp_cancels && local.dcp_size > 1 && remote.dcp_size > 1 {
            if !uneven {
                comparable(
                    "tokens per turn of all dcp ranks",
                    local.turn(),
                    remote.turn(),
                )?;
            }
            // A turn is at most 2^48 tokens, so the product of two needs care.
            let turns = local.turn() / gcd(local.turn(), remote.turn());
            dcp_period = turns.saturating_mul(remote.turn());
        }
        let mut atom = gcd(local.tokens_per_page(), remote.tokens_per_page());
        for side in [&local, &remote] {
            if !dcp_cancels && side.dcp_size > 1 {
                atom = gcd(atom, side.dcp_interleave);
            }
        }
        if dcp_period / u64::from(atom) > MAX_PERIOD {
            bail!(
                Status::Mismatch,
                "turns of {} local and {} remote tokens begin together only every {dcp_period} tokens",
                local.turn(),
                remote.turn()
            );
        }
        Ok(GroupGeometry {
            kind,
            window,
            atom,
            local_phases: phases("local", &local, atom, dcp_cancels)?,
            remote_phases: phases("remote", &remote, atom, dcp_cancels)?,
            dcp_cancels,
            dcp_period,
            local,
            remote,
        })
    }

    /// Tokens of an atom.
    pub fn atom_tokens(&self) -> u32 {
        self.atom
    }

    /// Atoms in a local page.
    pub fn local_atoms(&self) -> u32 {
        self.local.tokens_per_page() / self.atom
    }

    /// Atoms in a remote page.
    pub fn remote_atoms(&self) -> u32 {
        self.remote.tokens_per_page() / self.atom
    }

    /// Where the atoms of a local block are, in the order of their tokens.
    pub fn local_phases(&self) -> &[Phase] {
        &self.local_phases
    }

    /// Where the atoms of a remote block are, in the order of their tokens.
    pub fn remote_phases(&self) -> &[Phase] {
        &self.remote_phases
    }

    /// Whether both sides spread tokens over ranks in the same way, so that each rank deals only with
    /// ranks of its own share, and shares count as 0 in lanes.
    pub fn dcp_cancels(&self) -> bool {
        self.dcp_cancels
    }

    /// Steps that [`GroupGeometry::matching_shards`] takes.
    pub(super) fn matching_steps(&self) -> u64 {
        self.dcp_period / u64::from(self.atom)
    }

    /// The shares of the other side that have tokens of share `shard` of this side.
    pub(super) fn matching_shards(&self, shard: u32, this_is_local: bool) -> Vec<u32> {
        let (this, other) = match this_is_local {
            true => (&self.local, &self.remote),
            false => (&self.remote, &self.local),
        };
        if self.dcp_cancels || other.dcp_size == 1 {
            return vec![0];
        }
        if this.dcp_size == 1 {
            return (0..other.dcp_size).collect();
        }
        let owner = |s: &SideGeometry, token: u64| {
            (token / u64::from(s.dcp_interleave) % u64::from(s.dcp_size)) as u32
        };
        let mut found: Vec<u32> = (0..self.dcp_period)
            .step_by(self.atom as usize)
            .filter(|&token| owner(this, token) == shard)
            .map(|token| owner(other, token))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Where the atoms of one block are. Token `t` of a block belongs to share `(t / i) % c` and is that
/// share's token `t / (i * c) * i + t % i`, for interleave `i` and `c` shares.
fn phases(name: &str, side: &SideGeometry, atom: u32, dcp_cancels: bool) -> Result<Vec<Phase>> {
    let (shares, interleave) = match dcp_cancels || side.dcp_size == 1 {
        true => (1, u64::from(side.tokens_per_block)),
        false => (u64::from(side.dcp_size), u64::from(side.dcp_interleave)),
    };
    let (atom, page) = (u64::from(atom), u64::from(side.tokens_per_page()));
    let count = u64::from(side.tokens_per_block) * shares / atom;
    if count > MAX_PHASES {
        bail!(
            Status::Mismatch,
            "a {name} block of {} tokens would fall into {count} pieces of {atom} tokens, more than \
             {MAX_PHASES}",
            side.span()
        );
    }
    let at = |token: u64| {
        let own = token / (interleave * shares) * interleave + token % interleave;
        Phase {
            shard: (token / interleave % shares) as u32,
            page: (own / page) as u32,
            atom: (own % page / atom) as u32,
        }
    };
    Ok((0..count).map(|i| at(i * atom)).collect())
}

/// Numbers the groups of a layout by the memory that their block ids name.
///
/// Hybrid models lay groups over each other: block 5 of the attention group and block 5 of the state
/// group are the same bytes. That is so when regions of both have the same base and the same number
/// of bytes per block.
pub(super) fn pools(layout: &Layout) -> Vec<u32> {
    let mut pool: Vec<u32> = (0..layout.groups.len() as u32).collect();
    if pool.len() < 2 {
        return pool;
    }
    let mut rows: Vec<(u64, u64, u64, u32)> = layout
        .parts
        .iter()
        .map(|p| {
            let region = &layout.regions[p.region as usize];
            let pages = u64::from(layout.groups[p.group as usize].kernel_blocks);
            (
                region.base,
                region.device,
                region.page_stride.saturating_mul(pages),
                p.group,
            )
        })
        .collect();
    rows.sort_unstable();
    rows.dedup();
    for pair in rows.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if (a.0, a.1, a.2) == (b.0, b.1, b.2) {
            let (keep, drop) = (pool[a.3 as usize], pool[b.3 as usize]);
            pool.iter_mut()
                .filter(|p| **p == drop)
                .for_each(|p| *p = keep);
        }
    }
    pool
}

fn comparable<T: Into<u64> + Copy>(what: &str, local: T, remote: T) -> Result<()> {
    let (l, r) = (local.into(), remote.into());
    if l != 0 && r != 0 && (l % r == 0 || r % l == 0) {
        return Ok(());
    }
    bail!(
        Status::Mismatch,
        "{what}: local {l}, remote {r}: neither divides the other"
    )
}

fn gcd<T: Copy + PartialEq + From<u8> + std::ops::Rem<Output = T>>(mut a: T, mut b: T) -> T {
    while b != T::from(0) {
        (a, b) = (b, a % b);
    }
    a
}
