//! Simulated engines: ranks with real memory, filled with content that can be recognised.
//!
//! This is the oracle's side of the matter and knows nothing of plans. What a cell contains is a
//! function of its *name* alone ([`value`]); where a cell is, is written here from the definitions of
//! the arrangements ("`[heads][tokens][head size]`, K before V"), by plain indexing, and not from
//! offsets and strides of a `Layout`. The layouts given to the library are made with its builders from
//! the same description, so a mistake in a builder is found like one in the plan.
//!
//! Addresses in the layouts are those of the memory, so the ranges of a plan can be copied with
//! [`copy`] or handed to a real transport.

#![allow(dead_code)] // Each test uses its part.

use kvferry::layout::*;

/// What groups of layers a model has.
#[derive(Clone, Debug)]
pub struct GroupModel {
    pub kind: GroupKind,
    pub window: u32,
    pub layers: Vec<u32>,
    pub content: Content,
    /// Index of an earlier group whose memory this one is laid over.
    pub over: Option<usize>,
}

/// What a layer of a group holds.
#[derive(Clone, Debug)]
pub enum Content {
    Heads {
        heads: u32,
        k: u32,
        v: u32,
        elem: u32,
    },
    Latent {
        size: u32,
        elem: u32,
    },
    State(StateModel),
}

#[derive(Clone, Debug)]
pub struct StateModel {
    /// Units and channels per unit of each sub-projection.
    pub conv: Vec<(u32, u32)>,
    pub rows: u32,
    pub conv_elem: u32,
    pub ssm_heads: u32,
    pub ssm_head_bytes: u32,
}

/// How one engine keeps a group.
#[derive(Clone, Copy, Debug)]
pub struct GroupStyle {
    pub tokens_per_page: u32,
    pub pages_per_block: u32,
    pub order: PageOrder,
    pub kv: KvPlacement,
    pub conv_order: ConvOrder,
    /// Unused bytes behind every page.
    pub padding: u32,
    /// Layers side by side in one row of pages, instead of one behind the other.
    pub packed: bool,
    /// Regions of its own for each head.
    pub by_head: bool,
}

impl GroupStyle {
    pub fn new(tokens_per_page: u32, order: PageOrder, kv: KvPlacement) -> Self {
        GroupStyle {
            tokens_per_page,
            pages_per_block: 1,
            order,
            kv,
            conv_order: ConvOrder::ChannelsFirst,
            padding: 0,
            packed: false,
            by_head: false,
        }
    }

    /// Tokens of a page, pages of a block.
    pub fn shape(&self) -> (u32, u32) {
        (self.tokens_per_page, self.pages_per_block)
    }
}

/// An engine's shape.
#[derive(Clone, Debug)]
pub struct EngineStyle {
    pub tp: u32,
    /// Pipeline stages; layers are dealt out by number.
    pub pp: u32,
    pub dcp: u32,
    /// Tokens per turn; 0 is a block.
    pub interleave: u32,
    /// Blocks of each group's pool.
    pub blocks: u32,
    pub groups: Vec<GroupStyle>,
}

impl EngineStyle {
    pub fn tp(tp: u32, blocks: u32, groups: Vec<GroupStyle>) -> Self {
        EngineStyle {
            tp,
            pp: 1,
            dcp: 1,
            interleave: 0,
            blocks,
            groups,
        }
    }
}

/// One rank: its memory, and the layout that describes it.
pub struct Rank {
    pub layout: Layout,
    pub memory: Vec<u8>,
    pub tp_rank: u32,
    pub pp_rank: u32,
    /// By group and place of the layer in the group: where its pages are, K's and V's if apart.
    places: Vec<Vec<Option<Vec<Place>>>>,
    /// By group: every byte of a page.
    spots: Vec<Vec<Spot>>,
}

/// Pages in a rank's memory: offset of page 0 and bytes between pages.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: usize,
    stride: usize,
}

pub struct Engine {
    pub model: Vec<GroupModel>,
    pub style: EngineStyle,
    pub ranks: Vec<Rank>,
}

/// The content of a byte, by the name of its cell: never the same for two names, but by chance.
pub fn value(layer: u32, role: Role, head: u32, position: u64, row: u32, byte: u32) -> u8 {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for part in [
        layer.into(),
        role.0.into(),
        head.into(),
        position,
        row.into(),
        byte.into(),
    ] {
        x = (x ^ part).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 29;
    }
    (x >> 56) as u8
}

/// What memory holds before anything is put there.
fn background(seed: u64, at: usize) -> u8 {
    let x = (seed << 32 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 40) as u8
}

/// One byte of one cell as a rank keeps it.
struct Spot {
    /// Layer's place in the group.
    layer: usize,
    /// Region of the layer: 0, or 1 for V kept apart.
    region: usize,
    role: Role,
    head: u32,
    /// Row within the page.
    row: u32,
    byte: u32,
    /// Offset in the page.
    offset: usize,
}

/// Which heads a rank has: dealt out in order; with fewer heads than ranks, neighbours share one.
fn heads_of(total: u32, tp: u32, rank: u32) -> Vec<u32> {
    if total >= tp {
        (0..total).filter(|h| h / (total / tp) == rank).collect()
    } else {
        (0..total).filter(|h| rank / (tp / total) == *h).collect()
    }
}

impl GroupModel {
    /// Every byte of a page of this group on a rank.
    fn spots(&self, style: &GroupStyle, tp: u32, rank: u32) -> Vec<Spot> {
        let mut out = Vec::new();
        for layer in 0..self.layers.len() {
            match &self.content {
                Content::Heads { heads, k, v, elem } => {
                    let held = heads_of(*heads, tp, rank);
                    self.head_spots(
                        style,
                        layer,
                        &held,
                        (k * elem) as usize,
                        (v * elem) as usize,
                        &mut out,
                    );
                }
                Content::Latent { size, elem } => {
                    for row in 0..style.tokens_per_page {
                        for byte in 0..size * elem {
                            let offset = (row * size * elem + byte) as usize;
                            out.push(Spot {
                                layer,
                                region: 0,
                                role: Role::LATENT,
                                head: 0,
                                row,
                                byte,
                                offset,
                            });
                        }
                    }
                }
                Content::State(s) => s.spots(style, layer, tp, rank, &mut out),
            }
        }
        out
    }

    fn head_spots(
        &self,
        style: &GroupStyle,
        layer: usize,
        held: &[u32],
        k: usize,
        v: usize,
        out: &mut Vec<Spot>,
    ) {
        let n = style.tokens_per_page as usize;
        let regions = if style.kv == KvPlacement::Regions {
            2
        } else {
            1
        };
        for (i, head) in held.iter().enumerate() {
            // With regions of its own a head is the only one in its pages.
            let (first_region, i, h) = match style.by_head {
                true => (i * regions, 0, 1),
                false => (0, i, held.len()),
            };
            for row in 0..n {
                for (role, len) in [(Role::K, k), (Role::V, v)] {
                    let is_v = usize::from(role == Role::V);
                    // `a` counts the outer direction, `b` the inner one, of which there are `m`.
                    let (a, b, m) = match style.order {
                        PageOrder::Hnd => (i, row, n),
                        PageOrder::Nhd => (row, i, h),
                    };
                    let start = match style.kv {
                        KvPlacement::Regions => (a * m + b) * len,
                        KvPlacement::Planes => is_v * (h * n * k) + (a * m + b) * len,
                        KvPlacement::Halves => a * m * (k + v) + is_v * (m * k) + b * len,
                        KvPlacement::Cells => (a * m + b) * (k + v) + is_v * k,
                        // The backend's secret: here, all V of a head before all of its K.
                        KvPlacement::Slabs => i * n * (k + v) + (1 - is_v) * (n * v) + row * len,
                    };
                    let region = first_region + is_v * (regions - 1);
                    for byte in 0..len {
                        let offset = start + byte;
                        out.push(Spot {
                            layer,
                            region,
                            role,
                            head: *head,
                            row: row as u32,
                            byte: byte as u32,
                            offset,
                        });
                    }
                }
            }
        }
    }

    fn builder_shape(&self, style: &GroupStyle) -> DenseShape {
        match self.content {
            Content::Heads { heads, k, v, elem } => DenseShape {
                kv_heads: heads,
                k_head_size: k,
                v_head_size: v,
                elem_bytes: elem,
                order: style.order,
                kv: style.kv,
            },
            _ => unreachable!(),
        }
    }
}

impl StateModel {
    fn spots(&self, style: &GroupStyle, layer: usize, tp: u32, rank: u32, out: &mut Vec<Spot>) {
        // All channels of all sub-projections that the rank has, in order.
        let mut channels = Vec::new();
        for (i, (units, per_unit)) in self.conv.iter().enumerate() {
            for unit in heads_of(*units, tp, rank) {
                channels.extend((0..*per_unit).map(|c| (i as u32, unit * per_unit + c)));
            }
        }
        let (rows, elem) = (self.rows as usize, self.conv_elem as usize);
        for (i, (sub, channel)) in channels.iter().enumerate() {
            for row in 0..rows {
                let element = match style.conv_order {
                    ConvOrder::ChannelsFirst => i * rows + row,
                    ConvOrder::RowsFirst => row * channels.len() + i,
                };
                for byte in 0..elem {
                    out.push(Spot {
                        layer,
                        region: 0,
                        role: Role(Role::CONV.0 + sub),
                        head: *channel,
                        row: row as u32,
                        byte: byte as u32,
                        offset: element * elem + byte,
                    });
                }
            }
        }
        let conv_bytes = channels.len() * rows * elem;
        for (i, head) in heads_of(self.ssm_heads, tp, rank).iter().enumerate() {
            for byte in 0..self.ssm_head_bytes {
                let offset = conv_bytes + i * self.ssm_head_bytes as usize + byte as usize;
                out.push(Spot {
                    layer,
                    region: 0,
                    role: Role::SSM,
                    head: *head,
                    row: 0,
                    byte,
                    offset,
                });
            }
        }
    }
}

impl Engine {
    /// Allocates and describes all ranks; memory is filled with a background that depends on `seed`.
    pub fn new(model: &[GroupModel], style: &EngineStyle, seed: u64) -> Engine {
        let mut ranks = Vec::new();
        for pp_rank in 0..style.pp {
            for tp_rank in 0..style.tp {
                ranks.push(make_rank(
                    model,
                    style,
                    tp_rank,
                    pp_rank,
                    seed + ranks.len() as u64,
                ));
            }
        }
        Engine {
            model: model.to_vec(),
            style: style.clone(),
            ranks,
        }
    }

    pub fn layouts(&self) -> Vec<Layout> {
        self.ranks.iter().map(|r| r.layout.clone()).collect()
    }

    /// Tokens that a block id of a group stands for; 1 for states.
    pub fn span(&self, group: usize) -> u64 {
        if self.model[group].kind == GroupKind::State {
            return 1;
        }
        let s = &self.style.groups[group];
        u64::from(s.tokens_per_page * s.pages_per_block * self.style.dcp)
    }

    /// Calls `each` with (memory offset, content) for every byte that a rank keeps of the positions
    /// for which `wanted` is true, when blocks `ids` hold the positions from block `first` on.
    pub fn bytes_of(
        &self,
        rank: usize,
        group: usize,
        ids: &[u32],
        first: u64,
        wanted: impl Fn(u64) -> bool,
        mut each: impl FnMut(usize, u8),
    ) {
        let (model, style, rank) = (
            &self.model[group],
            &self.style.groups[group],
            &self.ranks[rank],
        );
        let state = model.kind == GroupKind::State;
        // Token positions within a block that this rank keeps, in order: row by row, page by page.
        let (dcp, span) = (if state { 1 } else { self.style.dcp }, self.span(group));
        let per_block = span / u64::from(dcp);
        let turn = match self.style.interleave {
            0 => per_block,
            n => n.into(),
        };
        let own = u64::from(rank.tp_rank % dcp);
        let kept: Vec<u64> = (0..span)
            .filter(|t| t / turn % u64::from(dcp) == own)
            .collect();
        let pages_per_block = if state { 1 } else { style.pages_per_block };
        for (i, id) in ids.iter().enumerate() {
            for page in 0..pages_per_block {
                for spot in &rank.spots[group] {
                    let Some(places) = &rank.places[group][spot.layer] else {
                        continue;
                    };
                    let position = if state {
                        first + i as u64
                    } else {
                        let index = page * style.tokens_per_page + spot.row;
                        (first + i as u64) * span + kept[index as usize]
                    };
                    if !wanted(position) {
                        continue;
                    }
                    let place = places[spot.region];
                    let at = place.offset
                        + (id * pages_per_block + page) as usize * place.stride
                        + spot.offset;
                    let row = if state { spot.row } else { 0 };
                    let layer = model.layers[spot.layer];
                    each(
                        at,
                        value(layer, spot.role, spot.head, position, row, spot.byte),
                    );
                }
            }
        }
    }

    /// Writes the content of all positions of these blocks on all ranks.
    pub fn fill(&mut self, group: usize, ids: &[u32], first: u64) {
        for rank in 0..self.ranks.len() {
            let mut writes = Vec::new();
            self.bytes_of(
                rank,
                group,
                ids,
                first,
                |_| true,
                |at, v| writes.push((at, v)),
            );
            for (at, v) in writes {
                self.ranks[rank].memory[at] = v;
            }
        }
    }
}

fn make_rank(
    model: &[GroupModel],
    style: &EngineStyle,
    tp_rank: u32,
    pp_rank: u32,
    seed: u64,
) -> Rank {
    let parallel = Parallel {
        pp_rank,
        pp_size: style.pp,
        ..Parallel::tp(tp_rank, style.tp)
    }
    .with_dcp(style.dcp, style.interleave);
    let spots: Vec<Vec<Spot>> = model
        .iter()
        .zip(&style.groups)
        .map(|(m, s)| m.spots(s, style.tp, tp_rank))
        .collect();
    // Lay out memory first: for each group the bytes of a page of each region of each layer.
    let mut places: Vec<Vec<Option<Vec<Place>>>> = Vec::new();
    let mut end = 64;
    let pages_per_block = |g: usize| match model[g].kind {
        GroupKind::State => 1,
        _ => style.groups[g].pages_per_block as usize,
    };
    let page_lens = |g: usize| {
        let spots = &spots[g];
        let regions = 1 + spots.iter().map(|s| s.region).max().unwrap_or(0);
        (0..regions)
            .map(|r| {
                spots
                    .iter()
                    .filter(|s| s.region == r)
                    .map(|s| s.offset + 1)
                    .max()
                    .unwrap()
            })
            .collect::<Vec<usize>>()
    };
    for (g, group) in model.iter().enumerate() {
        let here = |l: u32| l % style.pp == pp_rank;
        if let Some(base) = group.over {
            // The same pages, of the group below; state steps over all pages of a block.
            let mut below = places[base].iter().flatten().flatten().copied();
            places.push(
                group
                    .layers
                    .iter()
                    .map(|l| {
                        here(*l).then(|| {
                            let p = below.next().expect("a layer below for each layer");
                            let factor = pages_per_block(base) / pages_per_block(g);
                            vec![Place {
                                offset: p.offset,
                                stride: p.stride * factor,
                            }]
                        })
                    })
                    .collect(),
            );
            continue;
        }
        // Pages must also hold what groups laid over this one keep in them.
        let mut lens = page_lens(g);
        for (o, _) in model.iter().enumerate().filter(|(_, m)| m.over == Some(g)) {
            let needed = page_lens(o)[0] * pages_per_block(o);
            lens.iter_mut()
                .for_each(|l| *l = (*l).max(needed.div_ceil(pages_per_block(g))));
        }
        let padding = style.groups[g].padding as usize;
        let pages = style.blocks as usize * pages_per_block(g);
        let layers_here = group.layers.iter().filter(|l| here(**l)).count();
        let row: usize = lens.iter().sum::<usize>() * layers_here + padding;
        let mut at = end;
        let packed = style.groups[g].packed;
        places.push(
            group
                .layers
                .iter()
                .map(|l| {
                    here(*l).then(|| {
                        lens.iter()
                            .map(|len| {
                                let stride = if packed { row } else { len + padding };
                                let place = Place { offset: at, stride };
                                at += if packed { *len } else { stride * pages };
                                place
                            })
                            .collect()
                    })
                })
                .collect(),
        );
        end = if packed { end + row * pages } else { at } + 64;
    }
    let memory: Vec<u8> = (0..end).map(|i| background(seed, i)).collect();
    let base = memory.as_ptr() as u64;
    let mut b = LayoutBuilder::new(parallel);
    for (g, group) in model.iter().enumerate() {
        let s = &style.groups[g];
        let state = group.kind == GroupKind::State;
        let index = b.group(Group {
            kind: group.kind,
            tokens_per_block: if state {
                1
            } else {
                s.tokens_per_page * s.pages_per_block
            },
            kernel_blocks: if state { 1 } else { s.pages_per_block },
            window: group.window,
            format: 0,
        });
        for (i, layer) in group.layers.iter().enumerate() {
            let Some(places) = &places[g][i] else {
                continue;
            };
            let spans: Vec<Span> = places
                .iter()
                .map(|p| Span {
                    page_stride: p.stride as u64,
                    ..Span::host(
                        base + p.offset as u64,
                        style.blocks as u64 * pages_per_block(g) as u64,
                    )
                })
                .collect();
            match &group.content {
                Content::Heads { .. } if s.by_head => b
                    .dense_by_head(index, *layer, group.builder_shape(s), &spans)
                    .map(drop),
                Content::Heads { .. } => b
                    .dense(index, *layer, group.builder_shape(s), &spans)
                    .map(drop),
                Content::Latent { size, elem } => {
                    let shape = LatentShape {
                        size: *size,
                        elem_bytes: *elem,
                        role: Role::LATENT,
                    };
                    b.latent(index, *layer, shape, spans[0]).map(drop)
                }
                Content::State(m) => {
                    let shape = StateShape {
                        conv: m
                            .conv
                            .iter()
                            .map(|(units, channels_per_unit)| SubProjection {
                                units: *units,
                                channels_per_unit: *channels_per_unit,
                            })
                            .collect(),
                        conv_rows: m.rows,
                        conv_elem_bytes: m.conv_elem,
                        conv_order: s.conv_order,
                        ssm_heads: m.ssm_heads,
                        ssm_head_bytes: m.ssm_head_bytes,
                        ssm_elem_bytes: 1,
                    };
                    b.state(index, *layer, &shape, spans[0]).map(drop)
                }
            }
            .expect("the simulated layer is sound");
        }
    }
    let layout = b.finish().expect("the simulated layout is sound");
    Rank {
        layout,
        memory,
        tp_rank,
        pp_rank,
        places,
        spots,
    }
}

/// Copies `len` bytes from one rank's memory to another's, by address; both must lie inside.
pub fn copy(src: &Rank, from: u64, dst: &mut Rank, to: u64, len: u64) {
    let inside = |rank: &Rank, at: u64| {
        let start = at
            .checked_sub(rank.memory.as_ptr() as u64)
            .expect("below the memory") as usize;
        assert!(
            start + len as usize <= rank.memory.len(),
            "beyond the memory"
        );
        start
    };
    let (from, to, len) = (inside(src, from), inside(dst, to), len as usize);
    dst.memory[to..to + len].copy_from_slice(&src.memory[from..from + len]);
}
