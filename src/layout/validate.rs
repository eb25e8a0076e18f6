//! What a sound layout is. Everything that computes with layouts relies on these rules, above all on
//! this one: no address of a sound layout overflows.

use super::*;
use crate::error::{Result, Status, bail};

/// Pairs of parts with overlapping extents that are looked at before giving up.
const MAX_OVERLAP_CHECKS: u32 = 1 << 22;

impl Layout {
    /// Checks every field; the error names the first that is wrong, and its value.
    ///
    /// A layout that passes has no cell outside its page, no page outside the address space, and no
    /// two cells of the same group on top of each other.
    pub fn validate(&self) -> Result<()> {
        self.parallel.validate()?;
        bounded("regions", self.regions.len(), MAX_REGIONS)?;
        bounded("groups", self.groups.len(), MAX_GROUPS)?;
        bounded("parts", self.parts.len(), MAX_PARTS)?;
        for (i, g) in self.groups.iter().enumerate() {
            self.validate_group(g)
                .map_err(|e| e.context(format_args!("groups[{i}]")))?;
        }
        // After the groups: a builder makes regions of what they say.
        for (i, r) in self.regions.iter().enumerate() {
            r.validate()
                .map_err(|e| e.context(format_args!("regions[{i}]")))?;
        }
        for (i, p) in self.parts.iter().enumerate() {
            self.validate_part(p)
                .map_err(|e| e.context(format_args!("parts[{i}]")))?;
        }
        self.validate_heads()?;
        self.validate_overlap()
    }

    fn validate_group(&self, g: &Group) -> Result<()> {
        positive("tokens_per_block", g.tokens_per_block)?;
        positive("kernel_blocks", g.kernel_blocks)?;
        if g.kind == GroupKind::State {
            if g.tokens_per_block != 1 || g.kernel_blocks != 1 {
                bail!(
                    Status::InvalidArgument,
                    "tokens_per_block {} and kernel_blocks {} must both be 1 in a state group",
                    g.tokens_per_block,
                    g.kernel_blocks
                );
            }
        } else {
            divides(
                "kernel_blocks",
                g.kernel_blocks,
                "tokens_per_block",
                g.tokens_per_block,
            )?;
            if self.parallel.dcp_size > 1 {
                divides(
                    "dcp_interleave",
                    self.interleave(g),
                    "tokens_per_block",
                    g.tokens_per_block,
                )?;
            }
        }
        if g.window != 0 && !g.kind.is_windowed() {
            bail!(
                Status::InvalidArgument,
                "window {} in a group of kind {}",
                g.window,
                g.kind.name()
            );
        }
        Ok(())
    }

    fn validate_part(&self, p: &Part) -> Result<()> {
        let Some(group) = self.groups.get(p.group as usize) else {
            bail!(
                Status::InvalidArgument,
                "group {} of {} groups",
                p.group,
                self.groups.len()
            );
        };
        let Some(region) = self.regions.get(p.region as usize) else {
            bail!(
                Status::InvalidArgument,
                "region {} of {} regions",
                p.region,
                self.regions.len()
            );
        };
        if region.page_count < u64::from(group.kernel_blocks) {
            bail!(
                Status::InvalidArgument,
                "region {} has {} pages, fewer than kernel_blocks {}",
                p.region,
                region.page_count,
                group.kernel_blocks
            );
        }
        positive("head_count", p.head_count)?;
        if p.head_first
            .checked_add(p.head_count)
            .is_none_or(|end| end > p.heads_total)
        {
            bail!(
                Status::InvalidArgument,
                "head_first {} and head_count {} exceed heads_total {}",
                p.head_first,
                p.head_count,
                p.heads_total
            );
        }
        positive("cell_bytes", p.cell_bytes)?;
        positive("elem_bytes", p.elem_bytes)?;
        divides("elem_bytes", p.elem_bytes, "cell_bytes", p.cell_bytes)?;
        positive("rows", p.rows)?;
        let tokens = group.tokens_per_page();
        if group.kind != GroupKind::State && p.rows != tokens && p.rows != 1 {
            bail!(
                Status::InvalidArgument,
                "rows {} is neither 1 nor the {tokens} tokens of a page",
                p.rows
            );
        }
        let [outer, inner] = p.dims();
        if inner.count > 1 && inner.stride < u64::from(p.cell_bytes)
            || outer.count > 1 && outer.stride < p.inner_extent()?
        {
            bail!(
                Status::InvalidArgument,
                "head_stride {} and row_stride {} make cells of {} bytes overlap",
                p.head_stride,
                p.row_stride,
                p.cell_bytes
            );
        }
        let end = p.offset.checked_add(p.extent()?);
        if end.is_none_or(|end| end > region.page_len) {
            bail!(
                Status::InvalidArgument,
                "offset {} and {} bytes exceed page_len {} of region {}",
                p.offset,
                p.extent()?,
                region.page_len,
                p.region
            );
        }
        Ok(())
    }

    /// A head of a role of a layer is in one place only, and all parts of a role agree on its shape.
    fn validate_heads(&self) -> Result<()> {
        let mut order: Vec<u32> = (0..self.parts.len() as u32).collect();
        order.sort_unstable_by_key(|&i| {
            let p = &self.parts[i as usize];
            (p.layer, p.role, p.head_first)
        });
        for pair in order.windows(2) {
            let (i, j) = (pair[0] as usize, pair[1] as usize);
            let (a, b) = (&self.parts[i], &self.parts[j]);
            if (a.layer, a.role) != (b.layer, b.role) {
                continue;
            }
            if a.group != b.group {
                bail!(
                    Status::InvalidArgument,
                    "parts[{j}]: {} of layer {} is in group {}, and in group {} by parts[{i}]",
                    b.role.name(),
                    b.layer,
                    b.group,
                    a.group
                );
            }
            if a.head_first + a.head_count > b.head_first {
                bail!(
                    Status::InvalidArgument,
                    "parts[{j}]: head {} of {} of layer {} is also in parts[{i}]",
                    b.head_first,
                    b.role.name(),
                    b.layer
                );
            }
            for (name, x, y) in [
                ("heads_total", a.heads_total, b.heads_total),
                ("cell_bytes", a.cell_bytes, b.cell_bytes),
                ("elem_bytes", a.elem_bytes, b.elem_bytes),
                ("rows", a.rows, b.rows),
            ] {
                if x != y {
                    bail!(
                        Status::InvalidArgument,
                        "parts[{j}]: {name} {y} differs from {x} in parts[{i}], which is of the \
                         same layer {} and role {}",
                        b.layer,
                        b.role.name()
                    );
                }
            }
        }
        Ok(())
    }

    /// No two parts of a group share bytes of a page.
    fn validate_overlap(&self) -> Result<()> {
        // Honest layouts interleave a page's layers at most; a hostile one must not cost us minutes.
        let mut checks_left = MAX_OVERLAP_CHECKS;
        let mut order: Vec<u32> = (0..self.parts.len() as u32).collect();
        order.sort_unstable_by_key(|&i| {
            let p = &self.parts[i as usize];
            (p.group, p.region, p.offset)
        });
        for (at, &i) in order.iter().enumerate() {
            let a = &self.parts[i as usize];
            let end = a.offset + a.extent()?;
            for &j in &order[at + 1..] {
                let b = &self.parts[j as usize];
                if (a.group, a.region) != (b.group, b.region) || b.offset >= end {
                    break;
                }
                checks_left -= 1;
                if checks_left == 0 {
                    bail!(
                        Status::InvalidArgument,
                        "parts[{j}]: too many parts interleave within a page"
                    );
                }
                if !interleaved(a, b)? {
                    bail!(
                        Status::InvalidArgument,
                        "parts[{j}] (offset {}) lies on top of parts[{i}] (offset {}) in region {}",
                        b.offset,
                        a.offset,
                        a.region
                    );
                }
            }
        }
        Ok(())
    }
}

impl Parallel {
    /// Checks every field, as [`Layout::validate`] does.
    pub fn validate(&self) -> Result<()> {
        for (rank, r, size, s) in [
            ("tp_rank", self.tp_rank, "tp_size", self.tp_size),
            ("pp_rank", self.pp_rank, "pp_size", self.pp_size),
            ("dcp_rank", self.dcp_rank, "dcp_size", self.dcp_size),
        ] {
            if s == 0 || s > MAX_RANKS {
                bail!(
                    Status::InvalidArgument,
                    "{size} {s} is not within 1 and {MAX_RANKS}"
                );
            }
            if r >= s {
                bail!(
                    Status::InvalidArgument,
                    "{rank} {r} is not below {size} {s}"
                );
            }
        }
        Ok(())
    }
}

impl Region {
    fn validate(&self) -> Result<()> {
        if self.page_len == 0 {
            bail!(Status::InvalidArgument, "page_len is 0");
        }
        if self.page_count == 0 || self.page_count > u64::from(u32::MAX) {
            bail!(
                Status::InvalidArgument,
                "page_count {} is not within 1 and {}",
                self.page_count,
                u32::MAX
            );
        }
        if self.page_stride < self.page_len {
            bail!(
                Status::InvalidArgument,
                "page_stride {} is smaller than page_len {}",
                self.page_stride,
                self.page_len
            );
        }
        let end = self
            .page_stride
            .checked_mul(self.page_count)
            .and_then(|span| self.base.checked_add(span));
        if end.is_none() {
            bail!(
                Status::InvalidArgument,
                "base {:#x} with {} pages of page_stride {} wraps around",
                self.base,
                self.page_count,
                self.page_stride
            );
        }
        Ok(())
    }
}

/// One of the two directions in which cells repeat.
#[derive(Clone, Copy)]
struct Dim {
    count: u32,
    stride: u64,
}

impl Dim {
    /// Bytes from the first to the last start, or an error when that cannot be counted.
    fn reach(self) -> Result<u64> {
        self.stride
            .checked_mul(u64::from(self.count - 1))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{} strides of {} bytes wrap around",
                    self.count, self.stride
                ))
            })
    }
}

impl Part {
    /// Heads and rows, the one with the larger stride first; a direction with one step counts as
    /// the larger.
    fn dims(&self) -> [Dim; 2] {
        let heads = Dim {
            count: self.head_count,
            stride: self.head_stride,
        };
        let rows = Dim {
            count: self.rows,
            stride: self.row_stride,
        };
        let heads_outside = rows.count > 1 && (heads.count == 1 || heads.stride >= rows.stride);
        if heads_outside {
            [heads, rows]
        } else {
            [rows, heads]
        }
    }

    /// Bytes from the first to the end of the last cell along the inner direction.
    fn inner_extent(&self) -> Result<u64> {
        let reach = self.dims()[1].reach()?;
        reach
            .checked_add(u64::from(self.cell_bytes))
            .ok_or_else(|| Error::invalid(format!("{reach} bytes and a cell wrap around")))
    }

    /// Bytes from the first to the end of the last cell along directions with strides below `step`;
    /// `None` if a larger stride is not a multiple of it.
    fn within(&self, step: u64) -> Result<Option<u64>> {
        let mut len = u64::from(self.cell_bytes);
        for dim in self.dims().into_iter().filter(|d| d.count > 1) {
            if dim.stride < step {
                len = len.saturating_add(dim.reach()?);
            } else if step == 0 || dim.stride % step != 0 {
                return Ok(None);
            }
        }
        Ok((step > 0).then_some(len))
    }

    /// Bytes from the first to the end of the last cell.
    fn extent(&self) -> Result<u64> {
        let (reach, inner) = (self.dims()[0].reach()?, self.inner_extent()?);
        reach
            .checked_add(inner)
            .ok_or_else(|| Error::invalid(format!("{reach} and {inner} bytes wrap around")))
    }
}

/// Whether two parts whose extents overlap still keep out of each other's cells. `a` starts first.
///
/// They do if there is a step of which all their larger strides are multiples, and modulo which what
/// is left of `a` ends before what is left of `b` begins.
fn interleaved(a: &Part, b: &Part) -> Result<bool> {
    for step in [a.head_stride, a.row_stride, b.head_stride, b.row_stride] {
        let (Some(a_len), Some(b_len)) = (a.within(step)?, b.within(step)?) else {
            continue;
        };
        let delta = (b.offset - a.offset) % step;
        if delta >= a_len && delta.checked_add(b_len).is_some_and(|end| end <= step) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn positive(name: &str, value: u32) -> Result<()> {
    if value == 0 {
        bail!(Status::InvalidArgument, "{name} is 0");
    }
    Ok(())
}

fn divides(small_name: &str, small: u32, big_name: &str, big: u32) -> Result<()> {
    if small == 0 || big % small != 0 {
        bail!(
            Status::InvalidArgument,
            "{small_name} {small} does not divide {big_name} {big}"
        );
    }
    Ok(())
}

fn bounded(name: &str, len: usize, max: usize) -> Result<()> {
    if len > max {
        bail!(Status::InvalidArgument, "{len} {name}, more than {max}");
    }
    Ok(())
}
