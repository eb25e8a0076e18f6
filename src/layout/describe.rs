//! A layout in words: for people as text, for programs as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::*;

impl Layout {
    /// A description for people. The format may change; programs use [`Layout::describe_json`].
    pub fn describe(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}", self.parallel)?;
        for run in alike(&self.regions, |r| {
            (r.page_len, r.page_stride, r.page_count, r.mem)
        }) {
            let r = &self.regions[run.start];
            write!(
                out,
                "{}: {}, {} pages of {} bytes",
                numbered("region", &run),
                r.mem.name(),
                r.page_count,
                r.page_len
            )?;
            match r.page_stride == r.page_len {
                true => writeln!(out)?,
                false => writeln!(out, ", {} bytes apart", r.page_stride)?,
            }
        }
        for (i, g) in self.groups.iter().enumerate() {
            write!(out, "group {i}: {}", g.kind.name())?;
            if g.window > 0 {
                write!(out, " of {} tokens", g.window)?;
            }
            match g.kind {
                GroupKind::State => write!(out, ", a state per block")?,
                _ => write!(
                    out,
                    ", {} tokens per block in {}",
                    g.tokens_per_block,
                    count(g.kernel_blocks, "page")
                )?,
            }
            let layers = self.layers_of(i as u32);
            writeln!(
                out,
                ", {} blocks, {} layers",
                self.block_count(i),
                layers.len()
            )?;
            for (shape, layers) in self.shapes(i as u32) {
                writeln!(out, "  {}: {shape}", numbered_list("layer", &layers))?;
            }
        }
        Ok(())
    }

    /// Layers of a group, ascending.
    fn layers_of(&self, group: u32) -> Vec<u32> {
        let mut layers: Vec<u32> = self
            .parts
            .iter()
            .filter(|p| p.group == group)
            .map(|p| p.layer)
            .collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// The different parts of a group in words, with the layers that have one like it.
    fn shapes(&self, group: u32) -> Vec<(String, Vec<u32>)> {
        let mut shapes: Vec<(String, Vec<u32>)> = Vec::new();
        for p in self.parts.iter().filter(|p| p.group == group) {
            let text = p.in_words();
            match shapes.iter_mut().find(|s| s.0 == text) {
                Some((_, layers)) => layers.push(p.layer),
                None => shapes.push((text, vec![p.layer])),
            }
        }
        shapes
    }

    /// A description for programs: the tables. Keys are added, never changed or taken away.
    pub fn describe_json(&self) -> String {
        let regions = self.regions.iter().map(|r| {
            json!({
                "base": r.base,
                "page_stride": r.page_stride,
                "page_len": r.page_len,
                "page_count": r.page_count,
                "mem": r.mem.name(),
                "device": r.device,
            })
        });
        let groups = self.groups.iter().enumerate().map(|(i, g)| {
            json!({
                "kind": g.kind.name(),
                "tokens_per_block": g.tokens_per_block,
                "kernel_blocks": g.kernel_blocks,
                "window": g.window,
                "format": g.format,
                "block_count": self.block_count(i),
            })
        });
        let parts = self.parts.iter().map(|p| {
            json!({
                "group": p.group,
                "region": p.region,
                "layer": p.layer,
                "role": p.role.name(),
                "offset": p.offset,
                "heads_total": p.heads_total,
                "head_first": p.head_first,
                "head_count": p.head_count,
                "head_stride": p.head_stride,
                "rows": p.rows,
                "row_stride": p.row_stride,
                "cell_bytes": p.cell_bytes,
                "elem_bytes": p.elem_bytes,
            })
        });
        let p = &self.parallel;
        json!({
            "parallel": {
                "tp_rank": p.tp_rank, "tp_size": p.tp_size,
                "pp_rank": p.pp_rank, "pp_size": p.pp_size,
                "dcp_rank": p.dcp_rank, "dcp_size": p.dcp_size,
                "dcp_interleave": p.dcp_interleave,
            },
            "regions": regions.collect::<Vec<Value>>(),
            "groups": groups.collect::<Vec<Value>>(),
            "parts": parts.collect::<Vec<Value>>(),
        })
        .to_string()
    }
}

impl std::fmt::Display for Parallel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tensor-parallel rank {} of {}",
            self.tp_rank, self.tp_size
        )?;
        if self.pp_size > 1 {
            write!(f, ", pipeline stage {} of {}", self.pp_rank, self.pp_size)?;
        }
        if self.dcp_size > 1 {
            write!(
                f,
                ", share {} of {} of the tokens",
                self.dcp_rank, self.dcp_size
            )?;
        }
        Ok(())
    }
}

impl Part {
    fn in_words(&self) -> String {
        let mut out = self.role.name();
        match self.heads_total {
            1 => out.push_str(", whole"),
            n => {
                let end = self.head_first + self.head_count;
                let _ = write!(out, ", heads {}..{end} of {n}", self.head_first);
            }
        }
        let _ = write!(out, ", cells of {} bytes", self.cell_bytes);
        if self.head_count > 1 {
            let _ = write!(out, ", heads {} bytes apart", self.head_stride);
        }
        match self.rows {
            1 => out.push_str(", one row"),
            n => {
                let _ = write!(out, ", {n} rows {} bytes apart", self.row_stride);
            }
        }
        let _ = write!(out, ", from byte {} of the page", self.offset);
        out
    }
}

/// Runs of neighbours with the same key.
fn alike<T, K: PartialEq>(items: &[T], key: impl Fn(&T) -> K) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if key(&items[run.start]) == key(item) => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// `1 page`, `4 pages`.
fn count(n: u32, noun: &str) -> String {
    match n {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// `region 3`, `regions 3 to 8`.
fn numbered(noun: &str, range: &std::ops::Range<usize>) -> String {
    match range.len() {
        1 => format!("{noun} {}", range.start),
        _ => format!("{noun}s {} to {}", range.start, range.end - 1),
    }
}

/// `layer 3`, `layers 0 to 31`, `layers 0, 2 to 4, 6`.
fn numbered_list(noun: &str, numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for n in &sorted {
        match spans.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*n) => *last = *n,
            _ => spans.push((*n, *n)),
        }
    }
    let spans: Vec<String> = spans
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first} to {last}"),
        })
        .collect();
    let plural = if sorted.len() == 1 { "" } else { "s" };
    format!("{noun}{plural} {}", spans.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_put_together() {
        assert_eq!(numbered_list("layer", &[3]), "layer 3");
        assert_eq!(numbered_list("layer", &[0, 1, 2, 3]), "layers 0 to 3");
        assert_eq!(
            numbered_list("layer", &[6, 0, 2, 3, 4, 4]),
            "layers 0, 2 to 4, 6"
        );
        assert_eq!(
            numbered_list("layer", &[u32::MAX, 0, 1]),
            "layers 0, 1, 4294967295"
        );
    }

    /// Two layers, the second rank of four, 8 heads of 4 elements of 2 bytes, blocks of 16 tokens.
    #[test]
    fn text_and_json_say_what_the_layout_is() {
        let mut b = LayoutBuilder::new(Parallel::tp(1, 4));
        let g = b.attention(GroupKind::Full, 16, 1);
        let shape = DenseShape {
            kv_heads: 8,
            k_head_size: 4,
            v_head_size: 4,
            elem_bytes: 2,
            order: PageOrder::Hnd,
            kv: KvPlacement::Planes,
        };
        for layer in 0..2 {
            let base = 0x1000 * (u64::from(layer) + 1);
            b.dense(g, layer, shape, &[Span::host(base, 5)]).unwrap();
        }
        let layout = b.finish().unwrap();
        let text = layout.describe();
        // 2 heads of 16 tokens of 8 bytes are 256 bytes, for K and again for V.
        for line in [
            "tensor-parallel rank 1 of 4",
            "regions 0 to 1: DRAM, 5 pages of 512 bytes",
            "group 0: full attention, 16 tokens per block in 1 page, 5 blocks, 2 layers",
            "  layers 0, 1: K, heads 2..4 of 8, cells of 8 bytes, heads 128 bytes apart, 16 rows 8 \
             bytes apart, from byte 0 of the page",
            "  layers 0, 1: V, heads 2..4 of 8, cells of 8 bytes, heads 128 bytes apart, 16 rows 8 \
             bytes apart, from byte 256 of the page",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
        }
        let json: Value = serde_json::from_str(&layout.describe_json()).unwrap();
        assert_eq!(json["parallel"]["tp_rank"], 1);
        assert_eq!(json["regions"][1]["base"], 0x2000);
        assert_eq!(json["groups"][0]["block_count"], 5);
        assert_eq!(json["parts"][1]["role"], "V");
        assert_eq!(json["parts"][1]["offset"], 256);
        assert_eq!(json["parts"][3]["layer"], 1);
    }
}
