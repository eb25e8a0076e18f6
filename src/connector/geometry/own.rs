//! This rank: from tensors to regions, to what peers are told, and to a layout.

use super::content::{Arrangement, Attention};
use super::kv::{Content, KvCache, SlabOrder};
use super::model::{LayerContent, Model, ModelLayer, Slot, Target};
use super::order::PhysicalOrder;
use super::regions::{Layer, RegionRow, Regions, regions};
use super::{Local, SHARED};
use crate::connector::wire::AgentMetadata;
use crate::error::{Error, Result, Status, bail};
use crate::layout::{Group, GroupKind, Parallel, Region};
use crate::memory::MemKind;

/// See [`super::local`].
pub(super) fn local(cache: &KvCache, parallel: Parallel) -> Result<Local> {
    parallel.validate()?;
    let order = PhysicalOrder::from_name(&cache.layout)?;
    if cache.slab == SlabOrder::Halves && order.is_token_major() {
        bail!(
            Status::InvalidArgument,
            "kv_cache_layout {} is token-major, where a head's K and V cannot lie in halves",
            cache.layout
        );
    }
    let found = regions(cache, order, &parallel)?;
    let (slots, slot_of) = slots(&found)?;
    let groups = cache
        .groups
        .iter()
        .map(|g| Group {
            kernel_blocks: cache.blocks_per_logical,
            ..*g
        })
        .collect::<Vec<_>>();
    let layers = found
        .layers
        .iter()
        .zip(slot_of)
        .map(|(layer, slot)| model_layer(&groups, &found, layer, slot))
        .collect::<Result<Vec<_>>>()?;
    let model = Model {
        parallel,
        how: Arrangement {
            order,
            slab: cache.slab,
        },
        groups,
        slots,
        block_tokens: cache.block_tokens,
        blocks_per_logical: cache.blocks_per_logical,
        attn_backend: cache.attn_backend.clone(),
        layout: cache.layout.clone(),
        pcp_size: cache.pcp_size.max(1),
        state: one_state(&layers)?,
        layers,
    };
    let metadata = metadata(cache, &found, &model);
    let layout = model.lay_out(&Target {
        parallel,
        how: model.how,
        groups: model.groups.clone(),
        regions: found.rows.iter().map(region).collect(),
        homes: found.layers.iter().map(|l| l.regions.clone()).collect(),
        name: &|i| found.layers[found.rows[i].layer].tensor.layer.clone(),
        packed: vec![None; found.layers.len()],
        loose: true,
    });
    Ok(Local {
        // Nothing of a peer is in it, whatever the step that went wrong is called there.
        layout: layout.map_err(|e| Error::invalid(e.message().to_owned()))?,
        metadata,
        memory: found.memory,
        model,
    })
}

fn region(row: &RegionRow) -> Region {
    Region {
        base: row.base,
        page_stride: row.stride,
        page_len: row.len,
        page_count: row.blocks,
        mem: row.mem,
        device: row.device,
    }
}

/// Regions that belong together, and for each layer which of them it is in.
fn slots(found: &Regions) -> Result<(Vec<Slot>, Vec<usize>)> {
    let mut slots: Vec<Slot> = Vec::new();
    let mut slot_of_region: Vec<Option<usize>> = vec![None; found.rows.len()];
    let mut slot_of = Vec::with_capacity(found.layers.len());
    for layer in &found.layers {
        let first = layer.regions[0];
        let slot = *slot_of_region[first].get_or_insert_with(|| {
            slots.push(Slot {
                name: layer.tensor.layer.clone(),
                regions: layer.regions.clone(),
            });
            slots.len() - 1
        });
        for &region in &layer.regions {
            slot_of_region[region] = slot_of_region[region].or(Some(slot));
        }
        if slots[slot].regions != layer.regions {
            bail!(
                Status::NotSupported,
                "layer {:?} lies over a part of layer {:?}",
                layer.tensor.layer,
                slots[slot].name
            );
        }
        slot_of.push(slot);
    }
    Ok((slots, slot_of))
}

fn model_layer(
    groups: &[Group],
    found: &Regions,
    layer: &Layer,
    slot: usize,
) -> Result<ModelLayer> {
    let tensor = layer.tensor;
    let row = &found.rows[layer.regions[0]];
    let ppl = u64::from(groups[tensor.group as usize].kernel_blocks);
    let stride = match layer.view.cells {
        Some(_) => layer.view.stride,
        None => layer.view.stride / ppl,
    };
    if stride != row.stride {
        bail!(
            Status::NotSupported,
            "layer {:?}: kernel blocks {stride} bytes apart, in a region where they are {} apart",
            tensor.layer,
            row.stride
        );
    }
    let content = match (&tensor.content, layer.view.cells) {
        (Content::State(sizes), _) => LayerContent::State(sizes.clone()),
        (_, Some(cells)) => {
            let by_head = layer.regions.len() > 1;
            let Some(offset) = tensor.address.checked_sub(row.base) else {
                bail!(
                    Status::InvalidArgument,
                    "layer {:?}: address {:#x} before its row at {:#x}",
                    tensor.layer,
                    tensor.address,
                    row.base
                );
            };
            let tokens = u64::from(groups[tensor.group as usize].tokens_per_page());
            LayerContent::Attention(Attention {
                cells,
                offset: if by_head { 0 } else { offset },
                len: row.len,
                rows_are_tokens: cells.rows == tokens,
            })
        }
        _ => bail!(Status::Internal, "layer {:?} without cells", tensor.layer),
    };
    Ok(ModelLayer {
        name: tensor.layer.clone(),
        group: tensor.group,
        slot,
        content,
    })
}

/// Peers are told the sizes of one state, so all have to be alike.
fn one_state(layers: &[ModelLayer]) -> Result<Option<super::StateSizes>> {
    let mut states = layers.iter().filter_map(|l| match &l.content {
        LayerContent::State(sizes) => Some((l, sizes)),
        LayerContent::Attention(_) => None,
    });
    let Some((_, first)) = states.next() else {
        return Ok(None);
    };
    if let Some((layer, other)) = states.find(|(_, s)| *s != first) {
        bail!(
            Status::NotSupported,
            "layer {:?}: state of {:?} bytes, and {:?} in other layers",
            layer.name,
            other.bytes(),
            first.bytes()
        );
    }
    Ok(Some(first.clone()))
}

fn metadata(cache: &KvCache, found: &Regions, model: &Model) -> AgentMetadata {
    let rows = &found.rows;
    let name = |layer: usize| found.layers[layer].tensor.layer.clone();
    let mut members = Vec::new();
    if found.tell_layers {
        members = vec![Vec::new(); rows.len()];
        for layer in &found.layers {
            for &region in &layer.regions {
                members[region].push(layer.tensor.layer.clone());
            }
        }
    }
    AgentMetadata {
        base_addrs: rows.iter().map(|r| r.base).collect(),
        device_id: rows
            .iter()
            .find(|r| r.mem != MemKind::Dram)
            .map_or(0, |r| r.device),
        num_blocks: cache.num_blocks * u64::from(cache.blocks_per_logical),
        block_lens: rows.iter().map(|r| r.len).collect(),
        block_strides: rows.iter().map(|r| r.stride).collect(),
        kv_cache_layout: cache.layout.clone(),
        block_size: cache.block_tokens,
        ssm_sizes: model.state.as_ref().map_or((0, 0), |s| s.bytes()),
        attn_backend_name: cache.attn_backend.clone(),
        blocks_per_logical: cache.blocks_per_logical,
        region_num_blocks: Some(rows.iter().map(|r| r.blocks).collect()),
        region_group_ids: Some(rows.iter().map(|r| r.group).collect()),
        region_names: Some(rows.iter().map(|r| name(r.layer)).collect()),
        region_mem_types: Some(rows.iter().map(|r| r.mem.name().to_owned()).collect()),
        dcp_size: model.parallel.dcp_size,
        pcp_size: model.pcp_size,
        region_members: members,
        packed_member_layouts: found
            .packed
            .iter()
            .map(|(layer, offset, len)| (name(*layer), (*offset, *len)))
            .collect(),
        ..AgentMetadata::default()
    }
}

/// Group of each slot as a region list says it: the number that all its regions have.
pub(super) fn slot_group(ids: &[i64], regions: &[usize]) -> i64 {
    let mut of = regions.iter().map(|r| ids[*r]);
    let first = of.next().unwrap_or(SHARED);
    match of.all(|g| g == first) {
        true => first,
        false => SHARED,
    }
}

/// Whether any group of a model holds states.
pub(super) fn has_state(groups: &[Group]) -> bool {
    groups.iter().any(|g| g.kind == GroupKind::State)
}
