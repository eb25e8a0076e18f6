//! Which of a peer's regions are which of ours, and which of its groups.

use std::collections::HashMap;

use super::model::Model;
use super::order::PhysicalOrder;
use super::own::slot_group;
use super::{Local, SHARED};
use crate::connector::wire::AgentMetadata;
use crate::error::Result;
use crate::layout::Parallel;

/// Which of the peer's regions each layer is in.
pub(super) struct Homes<'a> {
    pub model: &'a Model,
    pub metadata: &'a AgentMetadata,
    pub parallel: &'a Parallel,
    pub order: PhysicalOrder,
}

impl Homes<'_> {
    /// Regions by layer; none of what the peer has not got.
    pub fn find(&self) -> Result<Vec<Vec<usize>>> {
        let staged = self.parallel.pp_size > 1 || self.model.parallel.pp_size > 1;
        if !self.metadata.region_members.is_empty() {
            self.by_member()
        } else if staged {
            self.by_name()
        } else {
            self.by_place()
        }
    }

    /// Regions that a slot has on the peer.
    fn count(&self, slot: usize) -> Result<usize> {
        let layer = self.model.layers.iter().find(|l| l.slot == slot);
        match layer {
            Some(layer) => layer.region_count(self.parallel, self.order),
            None => Ok(1),
        }
    }

    fn counts(&self) -> Result<Vec<usize>> {
        (0..self.model.slots.len()).map(|s| self.count(s)).collect()
    }

    /// Both lists are of the whole model: they correspond one to one.
    fn by_place(&self) -> Result<Vec<Vec<usize>>> {
        let counts = self.counts()?;
        let (theirs, expected) = (self.metadata.base_addrs.len(), counts.iter().sum::<usize>());
        if theirs != expected {
            refuse!(
                "kv_caches_base_addr: {theirs} regions there, and {expected} follow from {} here",
                self.model
                    .slots
                    .iter()
                    .map(|s| s.regions.len())
                    .sum::<usize>()
            );
        }
        let mut next = 0;
        let mut of_slot = Vec::with_capacity(counts.len());
        for (slot, count) in self.model.slots.iter().zip(counts) {
            for region in next..next + count {
                self.check_name(region, &slot.name)?;
            }
            of_slot.push((next..next + count).collect::<Vec<_>>());
            next += count;
        }
        Ok(self.of_layers(|slot| of_slot[slot].clone()))
    }

    fn check_name(&self, region: usize, mine: &str) -> Result<()> {
        match self.metadata.region_names.as_ref().map(|n| &n[region]) {
            Some(theirs) if theirs != mine => {
                refuse!("region_names[{region}]: {mine:?} here, {theirs:?} there")
            }
            _ => Ok(()),
        }
    }

    /// One side is a pipeline stage: regions are found by the name of their first layer.
    fn by_name(&self) -> Result<Vec<Vec<usize>>> {
        let Some(names) = &self.metadata.region_names else {
            refuse!(
                "region_names is missing, which pipeline stages need (pp_size {} here, {} there)",
                self.model.parallel.pp_size,
                self.parallel.pp_size
            );
        };
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, name) in names.iter().enumerate() {
            places.entry(name).or_default().push(i);
        }
        let counts = self.counts()?;
        let mut of_slot = Vec::with_capacity(counts.len());
        for (slot, count) in self.model.slots.iter().zip(counts) {
            let found = places.remove(slot.name.as_str()).unwrap_or_default();
            // A stage of the peer has some of our layers; a whole peer has all of them.
            let absent = found.is_empty() && self.parallel.pp_size > 1;
            if found.len() != count && !absent {
                refuse!(
                    "region_names: {:?} names {} regions there, {count} expected",
                    slot.name,
                    found.len()
                );
            }
            of_slot.push(found);
        }
        if self.model.parallel.pp_size == 1 {
            self.no_surplus(places.keys().min().copied())?;
        }
        Ok(self.of_layers(|slot| of_slot[slot].clone()))
    }

    /// The peer says which layers are in which region.
    fn by_member(&self) -> Result<Vec<Vec<usize>>> {
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, members) in self.metadata.region_members.iter().enumerate() {
            for name in members {
                places.entry(name).or_default().push(i);
            }
        }
        let mut homes = Vec::with_capacity(self.model.layers.len());
        for layer in &self.model.layers {
            let found = places.remove(layer.name.as_str()).unwrap_or_default();
            let expected = layer.region_count(self.parallel, self.order)?;
            let absent = found.is_empty() && self.parallel.pp_size > 1;
            if found.len() != expected && !absent {
                refuse!(
                    "region_members: {:?} is in {} regions there, {expected} expected",
                    layer.name,
                    found.len()
                );
            }
            homes.push(found);
        }
        if self.model.parallel.pp_size == 1 {
            self.no_surplus(places.keys().min().copied())?;
        }
        Ok(homes)
    }

    fn no_surplus(&self, layer: Option<&str>) -> Result<()> {
        match layer {
            Some(layer) => refuse!("region_names: {layer:?} is there and not here"),
            None => Ok(()),
        }
    }

    fn of_layers(&self, of_slot: impl Fn(usize) -> Vec<usize>) -> Vec<Vec<usize>> {
        self.model.layers.iter().map(|l| of_slot(l.slot)).collect()
    }
}

/// Finds the peer's number of each of our groups, from regions that belong to one group on both sides.
pub(super) fn match_groups(
    local: &Local,
    m: &AgentMetadata,
    homes: &[Vec<usize>],
) -> Result<Vec<u32>> {
    let model = &local.model;
    let count = model.groups.len();
    let same: Vec<u32> = (0..count as u32).collect();
    let (Some(theirs), Some(mine)) = (&m.region_group_ids, &local.metadata.region_group_ids) else {
        return Ok(same);
    };
    let mut found: Vec<Option<u32>> = vec![None; count];
    for (layer, home) in model
        .layers
        .iter()
        .zip(homes)
        .filter(|(_, h)| !h.is_empty())
    {
        let slot = &model.slots[layer.slot];
        let (l, r) = (slot_group(mine, &slot.regions), slot_group(theirs, home));
        if r < SHARED || r >= count as i64 {
            refuse!(
                "region_group_ids of {:?}: {r}, and there are {count} groups",
                slot.name
            );
        }
        let one_sided = (l == SHARED) != (r == SHARED);
        let known = found[layer.group as usize];
        let differs = l != SHARED && known.is_some_and(|k| i64::from(k) != r);
        // Told layer by layer, it does not matter what shares a region.
        if one_sided && m.region_members.is_empty() || !one_sided && differs {
            refuse!(
                "region_group_ids of {:?}: {l} here, {r} there{}",
                slot.name,
                known.map_or(String::new(), |k| format!(
                    ", where group {l} was {k} before"
                ))
            );
        }
        if l != SHARED && r != SHARED {
            found[layer.group as usize] = Some(r as u32);
        }
    }
    // What only shared regions have keeps its number, if no other group has taken it.
    for (g, slot) in found.iter_mut().enumerate() {
        slot.get_or_insert(g as u32);
    }
    let out: Vec<u32> = found.into_iter().flatten().collect();
    let mut sorted = out.clone();
    sorted.sort_unstable();
    if sorted != same {
        refuse!(
            "region_group_ids: {theirs:?} there, {mine:?} here; groups do not correspond one to one"
        );
    }
    Ok(out)
}
