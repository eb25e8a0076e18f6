//! Making memory available, and asking backends about it.

use std::collections::BTreeMap;
use std::ptr;

use super::endpoint::Endpoint;
use super::ffi;
use super::objects::{ParamMap, QueryResponses, RegDlist, opt};
use super::regions::describe;
use crate::error::{Result, Status, bail};
use crate::memory::{MemKind, RegDesc};
use crate::transport::Params;

impl Endpoint {
    /// Registers ranges with the named backends, or with all that serve the kind.
    pub fn register(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.check_open()?;
        check(kind, descs)?;
        let serving = match backends {
            [] => self.backends.serving(kind),
            named => {
                for name in named {
                    if !self.backends.kinds(name)?.contains(&kind) {
                        bail!(
                            Status::NotSupported,
                            "the backend {name:?} does not serve {} memory",
                            kind.name()
                        );
                    }
                }
                let mut names: Vec<String> = named.iter().map(|n| n.to_string()).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        if serving.is_empty() {
            bail!(
                Status::NoBackend,
                "no backend of {:?} serves {} memory; created are: {}",
                self.name,
                kind.name(),
                self.backends.names().join(", ")
            );
        }
        let list = RegDlist::from_descs(kind, descs.iter())?;
        // One backend at a time: NIXL calls a registration good when any backend took it, and does
        // not tell which.
        let mut took = Vec::new();
        let mut codes = Vec::new();
        for name in serving {
            let args = self.backends.options(&[&name])?;
            // SAFETY: all objects are alive for the call, which copies the ranges. That they are
            // mapped is the concern of the room above.
            let code = self.call(|agent| unsafe {
                ffi::nixl_capi_register_mem(agent, list.raw(), opt(&args))
            });
            match code {
                ffi::SUCCESS => took.push(name),
                code => codes.push(format!("{name} (code {code})")),
            }
        }
        if took.is_empty() || (!backends.is_empty() && !codes.is_empty()) {
            for name in &took {
                // The usual way: if a range was registered before, NIXL may take back either of
                // its registrations, so lists in it are void.
                for desc in descs {
                    self.registry
                        .add(kind, &desc.range, std::slice::from_ref(name));
                }
                self.deregister(kind, descs, &[name])?;
            }
            bail!(
                Status::Backend,
                "{} range(s), the first {}, could not be registered with: {}",
                descs.len(),
                describe(kind, &descs[0].range),
                codes.join(", ")
            );
        }
        for desc in descs {
            self.registry.add(kind, &desc.range, &took);
        }
        Ok(())
    }

    /// Takes ranges back.
    pub fn deregister(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<()> {
        self.check_open()?;
        check(kind, descs)?;
        self.backends.check(backends)?;
        // NIXL frees a registration twice when a range stands twice in one call, so each call gets
        // each range once.
        let mut times: BTreeMap<(u64, u64, u64), (usize, &RegDesc)> = BTreeMap::new();
        for desc in descs {
            let r = desc.range;
            times
                .entry((r.device, r.addr, r.len))
                .or_insert((0, desc))
                .0 += 1;
        }
        let find_all = || -> Result<Vec<_>> {
            times
                .values()
                .map(|(n, desc)| {
                    let names = self.registry.backends_of(kind, &desc.range, backends, *n)?;
                    Ok((*n, *desc, names))
                })
                .collect()
        };
        find_all()?;
        let regions: Vec<_> = times
            .values()
            .filter_map(|(_, d)| self.registry.region(kind, &d.range))
            .collect();
        let _quiet = self.quiesce("deregistering memory", |request| request.touches(&regions))?;
        // Another thread may have been quicker.
        let all = find_all()?;
        let mut failed = Vec::new();
        for round in 0..all.iter().map(|(n, _, _)| *n).max().unwrap_or(0) {
            let mut by_backend: BTreeMap<&str, Vec<&RegDesc>> = BTreeMap::new();
            for (n, desc, names) in &all {
                if round < *n {
                    for name in names {
                        by_backend.entry(name).or_default().push(desc);
                    }
                }
            }
            for (name, descs) in by_backend {
                for desc in &descs {
                    self.registry.remove(kind, &desc.range, name);
                }
                let list = RegDlist::from_descs(kind, descs.into_iter())?;
                let args = self.backends.options(&[name])?;
                // SAFETY: all objects are alive; nothing under way uses the ranges, and lists in
                // them are void by now.
                let code = self.call(|agent| unsafe {
                    ffi::nixl_capi_deregister_mem(agent, list.raw(), opt(&args))
                });
                if code != ffi::SUCCESS {
                    failed.push(format!("{name} (code {code})"));
                }
            }
        }
        if !failed.is_empty() {
            bail!(
                Status::Backend,
                "{} memory could not be deregistered from: {}",
                kind.name(),
                failed.join(", ")
            );
        }
        Ok(())
    }

    /// What a backend knows about ranges.
    pub fn query_memory(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backend: &str,
    ) -> Result<Vec<Option<Params>>> {
        self.check_open()?;
        if descs.is_empty() {
            return Ok(Vec::new());
        }
        let kinds = self.backends.kinds(backend)?;
        let list = RegDlist::from_descs(kind, descs.iter())?;
        let args = self.backends.options(&[backend])?;
        let responses = QueryResponses::new()?;
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_query_mem(agent, list.raw(), responses.raw(), opt(&args))
        });
        if code != ffi::SUCCESS {
            // Storage backends answer; those for memory alone do not have the call.
            let storage = kinds
                .iter()
                .any(|k| !matches!(k, MemKind::Dram | MemKind::Vram));
            if !storage {
                bail!(
                    Status::NotSupported,
                    "the backend {backend:?} cannot be asked about memory"
                );
            }
            bail!(
                Status::Backend,
                "the backend {backend:?} could not answer about {} {} range(s) (code {code})",
                descs.len(),
                kind.name()
            );
        }
        let mut size = 0;
        // SAFETY: the list is alive.
        unsafe { ffi::nixl_capi_query_resp_list_size(responses.raw(), &mut size) };
        (0..descs.len())
            .map(|i| {
                if i < size {
                    response(&responses, i)
                } else {
                    Ok(None)
                }
            })
            .collect()
    }
}

/// One answer.
fn response(responses: &QueryResponses, index: usize) -> Result<Option<Params>> {
    let mut has = false;
    let mut raw = ptr::null_mut();
    // SAFETY: the list is alive and the calls check the index; on success `raw` is ours.
    unsafe {
        ffi::nixl_capi_query_resp_list_has_value(responses.raw(), index, &mut has);
        if !has {
            return Ok(None);
        }
        let code = ffi::nixl_capi_query_resp_list_get_params(responses.raw(), index, &mut raw);
        if code != ffi::SUCCESS || raw.is_null() {
            bail!(
                Status::Backend,
                "NIXL could not give answer {index} (code {code})"
            );
        }
        Ok(Some(ParamMap::from_raw(raw).to_pairs()?))
    }
}

/// Refuses what no registration can be.
fn check(kind: MemKind, descs: &[RegDesc]) -> Result<()> {
    if descs.is_empty() {
        bail!(Status::InvalidArgument, "there are no ranges");
    }
    for (i, desc) in descs.iter().enumerate() {
        desc.range.end()?;
        if desc.range.len == 0 && matches!(kind, MemKind::Dram | MemKind::Vram) {
            bail!(
                Status::InvalidArgument,
                "{} (number {i}) is empty",
                describe(kind, &desc.range)
            );
        }
    }
    Ok(())
}
