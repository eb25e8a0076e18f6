//! The serialised form of a layout, in which ranks exchange theirs.
//!
//! ```text
//! "KVFL"  version  parallel: 7 numbers
//! count  regions: base page_stride page_len page_count mem device
//! count  groups:  kind tokens_per_block kernel_blocks window format
//! count  parts:   group region layer role offset heads_total head_first head_count
//!                 head_stride rows row_stride cell_bytes elem_bytes
//! ```
//!
//! Every number is an unsigned LEB128 of at most 64 bits in its shortest form, so a layout has exactly
//! one encoding, which may be hashed and compared. The decoder accepts that encoding only, followed
//! by nothing; it allocates no more than the bytes before it can fill; and what it returns has passed
//! [`Layout::validate`].

use super::*;
use crate::error::{Result, Status, bail};
use crate::varint::{Reader, Writer};

const MAGIC: [u8; 4] = *b"KVFL";
const VERSION: u64 = 1;
/// Numbers in a record, and so the least bytes that one takes.
const REGION_NUMBERS: usize = 6;
const GROUP_NUMBERS: usize = 5;
const PART_NUMBERS: usize = 13;

impl Layout {
    /// The serialised form. An error if the layout is not sound.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.validate()?;
        let mut out = Writer(Vec::with_capacity(
            64 + self.regions.len() * 24 + self.parts.len() * 24,
        ));
        out.0.extend_from_slice(&MAGIC);
        out.number(VERSION);
        let p = &self.parallel;
        out.numbers(
            [
                p.tp_rank,
                p.tp_size,
                p.pp_rank,
                p.pp_size,
                p.dcp_rank,
                p.dcp_size,
                p.dcp_interleave,
            ]
            .map(u64::from),
        );
        out.number(self.regions.len() as u64);
        for r in &self.regions {
            out.numbers::<REGION_NUMBERS>([
                r.base,
                r.page_stride,
                r.page_len,
                r.page_count,
                r.mem as u64,
                r.device,
            ]);
        }
        out.number(self.groups.len() as u64);
        for g in &self.groups {
            out.numbers::<GROUP_NUMBERS>(
                [
                    g.kind as u32,
                    g.tokens_per_block,
                    g.kernel_blocks,
                    g.window,
                    g.format,
                ]
                .map(u64::from),
            );
        }
        out.number(self.parts.len() as u64);
        for p in &self.parts {
            out.numbers::<PART_NUMBERS>([
                p.group.into(),
                p.region.into(),
                p.layer.into(),
                p.role.0.into(),
                p.offset,
                p.heads_total.into(),
                p.head_first.into(),
                p.head_count.into(),
                p.head_stride,
                p.rows.into(),
                p.row_stride,
                p.cell_bytes.into(),
                p.elem_bytes.into(),
            ]);
        }
        if out.0.len() > MAX_ENCODED {
            bail!(
                Status::ResourceExhausted,
                "the layout takes {} bytes, more than {MAX_ENCODED}",
                out.0.len()
            );
        }
        Ok(out.0)
    }

    /// Reads a serialised layout. Any error is [`Status::PeerIncompatible`] and says at which byte,
    /// or which field of the decoded layout is not sound.
    pub fn decode(bytes: &[u8]) -> Result<Layout> {
        decode(bytes).map_err(|e| {
            Error::new(Status::PeerIncompatible, e.message()).context("serialised layout")
        })
    }
}

fn decode(bytes: &[u8]) -> Result<Layout> {
    if bytes.len() > MAX_ENCODED {
        bail!(
            Status::PeerIncompatible,
            "{} bytes, more than {MAX_ENCODED}",
            bytes.len()
        );
    }
    if !bytes.starts_with(&MAGIC) {
        bail!(Status::PeerIncompatible, "does not begin with KVFL");
    }
    let mut r = Reader::new(bytes, MAGIC.len());
    let version = r.number("version")?;
    if version != VERSION {
        bail!(
            Status::PeerIncompatible,
            "version {version}; this library reads {VERSION}"
        );
    }
    let parallel = Parallel {
        tp_rank: r.small("tp_rank")?,
        tp_size: r.small("tp_size")?,
        pp_rank: r.small("pp_rank")?,
        pp_size: r.small("pp_size")?,
        dcp_rank: r.small("dcp_rank")?,
        dcp_size: r.small("dcp_size")?,
        dcp_interleave: r.small("dcp_interleave")?,
    };
    let regions = r.list("regions", MAX_REGIONS, REGION_NUMBERS, |r| {
        Ok(Region {
            base: r.number("base")?,
            page_stride: r.number("page_stride")?,
            page_len: r.number("page_len")?,
            page_count: r.number("page_count")?,
            mem: MemKind::from_code(r.small("mem")?)?,
            device: r.number("device")?,
        })
    })?;
    let groups = r.list("groups", MAX_GROUPS, GROUP_NUMBERS, |r| {
        Ok(Group {
            kind: GroupKind::from_code(r.small("kind")?)?,
            tokens_per_block: r.small("tokens_per_block")?,
            kernel_blocks: r.small("kernel_blocks")?,
            window: r.small("window")?,
            format: r.small("format")?,
        })
    })?;
    let parts = r.list("parts", MAX_PARTS, PART_NUMBERS, |r| {
        Ok(Part {
            group: r.small("group")?,
            region: r.small("region")?,
            layer: r.small("layer")?,
            role: Role(r.small("role")?),
            offset: r.number("offset")?,
            heads_total: r.small("heads_total")?,
            head_first: r.small("head_first")?,
            head_count: r.small("head_count")?,
            head_stride: r.number("head_stride")?,
            rows: r.small("rows")?,
            row_stride: r.number("row_stride")?,
            cell_bytes: r.small("cell_bytes")?,
            elem_bytes: r.small("elem_bytes")?,
        })
    })?;
    r.end()?;
    let layout = Layout {
        parallel,
        regions,
        groups,
        parts,
    };
    layout.validate()?;
    Ok(layout)
}
