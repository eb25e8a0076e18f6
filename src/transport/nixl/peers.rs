//! Metadata, and the agents that it makes reachable.

use std::ffi::{CStr, CString, c_void};
use std::net::{IpAddr, ToSocketAddrs};
use std::ptr;

use super::endpoint::Endpoint;
use super::ffi;
use super::metadata;
use super::objects::{OptArgs, RegDlist, XferDlist, c_string, opt, take_blob};
use crate::error::{Error, Result, Status, bail};
use crate::memory::{MemDesc, MemKind, RegDesc};
use crate::transport::MetadataStore;

impl Endpoint {
    /// Everything a peer needs.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        self.check_open()?;
        let body = self.blob("metadata", |agent, data, len| {
            // SAFETY: the agent is alive and both outputs are valid.
            unsafe { ffi::nixl_capi_get_local_md(agent, data, len) }
        })?;
        Ok(metadata::seal(body))
    }

    /// Metadata of some ranges only. Without ranges it is how to connect, asked for or not, as in
    /// NIXL.
    pub fn partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
    ) -> Result<Vec<u8>> {
        self.check_open()?;
        self.check_registered(kind, descs)?;
        let sections = self.partial(kind, descs, backends)?;
        if descs.is_empty() || !connection_info {
            return Ok(metadata::seal(sections));
        }
        // The C API cannot ask for both at once. Without ranges it gives the connections of all
        // backends; NIXL itself gives those that serve the kind.
        let serving = self.backends.serving(kind);
        let named: Vec<&str> = match backends {
            [] => serving.iter().map(String::as_str).collect(),
            named => named.to_vec(),
        };
        let connections = self.partial(kind, &[], &named)?;
        Ok(metadata::seal(metadata::splice(&connections, &sections)?))
    }

    fn partial(&self, kind: MemKind, descs: &[RegDesc], backends: &[&str]) -> Result<Vec<u8>> {
        let list = RegDlist::from_descs(kind, descs.iter())?;
        let args = self.backends.options(backends)?;
        self.blob("partial metadata", |agent, data, len| {
            // SAFETY: all objects are alive and both outputs are valid.
            unsafe { ffi::nixl_capi_get_local_partial_md(agent, list.raw(), data, len, opt(&args)) }
        })
    }

    fn check_registered(&self, kind: MemKind, descs: &[RegDesc]) -> Result<()> {
        for desc in descs {
            self.registry.backends_of(kind, &desc.range, &[], 1)?;
        }
        Ok(())
    }

    /// Runs a call that gives bytes away.
    fn blob(
        &self,
        what: &str,
        get: impl FnOnce(ffi::Agent, *mut *mut c_void, *mut usize) -> ffi::Code,
    ) -> Result<Vec<u8>> {
        let (mut data, mut len) = (ptr::null_mut(), 0);
        let code = self.call(|agent| get(agent, &mut data, &mut len));
        if code != ffi::SUCCESS {
            bail!(
                Status::NoBackend,
                "{:?} has no {what}: of its backends ({}) none that serves it reaches other agents \
                 (code {code})",
                self.name,
                self.backends.names().join(", ")
            );
        }
        // SAFETY: the call succeeded and allocated this many bytes with malloc.
        Ok(unsafe { take_blob(data, len) })
    }

    /// Loads a peer's metadata.
    pub fn add_remote(&self, bytes: &[u8]) -> Result<String> {
        self.check_open()?;
        let outline = metadata::check(bytes)?;
        let peer = c_string("agent name", outline.agent)?;
        if outline.agent == self.name {
            bail!(
                Status::InvalidArgument,
                "the metadata is that of {:?} itself; transfers within an agent need none",
                self.name
            );
        }
        let ours = self.backends.names();
        if !outline.connections.is_empty()
            && !outline
                .connections
                .iter()
                .any(|b| ours.iter().any(|o| o == b))
        {
            bail!(
                Status::PeerIncompatible,
                "{:?} is reached by {}, and {:?} has only: {}",
                outline.agent,
                outline.connections.join(", "),
                self.name,
                ours.join(", ")
            );
        }
        let known = self.knows(&peer);
        if !known && outline.connections.is_empty() {
            bail!(
                Status::NotFound,
                "the metadata of {:?} does not say how to connect, and nothing of it was loaded \
                 before",
                outline.agent
            );
        }
        let mut name = ptr::null_mut();
        // SAFETY: the bytes are valid for their length and copied, and their form was checked.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_load_remote_md(
                agent,
                outline.body.as_ptr().cast(),
                outline.body.len(),
                &mut name,
            )
        });
        if code != ffi::SUCCESS {
            if known {
                bail!(
                    Status::InvalidState,
                    "the metadata of {:?} contradicts what is loaded of it; if it was restarted, \
                     remove it first (code {code})",
                    outline.agent
                );
            }
            bail!(
                Status::PeerIncompatible,
                "NIXL could not load the metadata of {:?} (code {code})",
                outline.agent
            );
        }
        // SAFETY: the call succeeded and allocated the string with malloc.
        unsafe { libc::free(name.cast()) };
        Ok(outline.agent.to_string())
    }

    /// Forgets a peer.
    pub fn remove_remote(&self, remote: &str) -> Result<()> {
        self.check_open()?;
        let peer = c_string("agent name", remote)?;
        if remote == self.name {
            bail!(
                Status::InvalidArgument,
                "{remote:?} is this agent, which it cannot forget"
            );
        }
        // NIXL frees the keys of the peer's memory, which transfers under way still use.
        let _quiet = self.quiesce(&format!("removing {remote:?}"), |request| {
            request.is_with(&peer)
        })?;
        // SAFETY: the agent is alive and the name a C string.
        let code =
            self.call(|agent| unsafe { ffi::nixl_capi_invalidate_remote_md(agent, peer.as_ptr()) });
        match code {
            ffi::SUCCESS => Ok(()),
            ffi::NOT_FOUND => bail!(Status::NotFound, "no metadata of {remote:?} is loaded"),
            code => bail!(
                Status::Backend,
                "NIXL could not forget {remote:?} (code {code})"
            ),
        }
    }

    /// Whether NIXL has metadata of this peer.
    pub fn knows(&self, peer: &CStr) -> bool {
        // SAFETY: the agent is alive, the name a C string, and null stands for no ranges.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_check_remote_md(agent, peer.as_ptr(), ptr::null_mut())
        });
        code == ffi::SUCCESS
    }

    /// Whether a peer's metadata covers ranges.
    pub fn peer_covers(&self, peer: &CStr, kind: MemKind, descs: &[MemDesc]) -> Result<bool> {
        let list = XferDlist::from_descs(kind, descs.iter().copied())?;
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_check_remote_md(agent, peer.as_ptr(), list.raw())
        });
        Ok(code == ffi::SUCCESS)
    }

    /// Whether metadata is loaded and covers ranges; of this agent itself, whether it has them
    /// registered.
    pub fn check_remote(&self, remote: &str, kind: MemKind, descs: &[MemDesc]) -> Result<bool> {
        self.check_open()?;
        for desc in descs {
            desc.end()?;
        }
        let peer = c_string("agent name", remote)?;
        if remote == self.name {
            // NIXL takes a note of a peer of that name when it is asked.
            return Ok(self.registry.cover(kind, descs.iter().copied()).is_ok());
        }
        match descs {
            [] => Ok(self.knows(&peer)),
            descs => self.peer_covers(&peer, kind, descs),
        }
    }

    /// Connects now.
    pub fn connect(&self, remote: &str, backends: &[&str]) -> Result<()> {
        self.check_open()?;
        let peer = c_string("agent name", remote)?;
        let args = self.backends.options(backends)?;
        if remote == self.name {
            // Backends connect to their own agent when they are made.
            return Ok(());
        }
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_agent_make_connection(agent, peer.as_ptr(), opt(&args))
        });
        match code {
            ffi::SUCCESS => Ok(()),
            _ if !self.knows(&peer) => {
                bail!(Status::NotFound, "no metadata of {remote:?} is loaded")
            }
            ffi::NOT_FOUND => bail!(
                Status::NotFound,
                "the metadata of {remote:?} does not say how to connect with the backends asked for"
            ),
            code => bail!(
                Status::Backend,
                "{remote:?} could not be connected to (code {code})"
            ),
        }
    }

    /// Sends this agent's metadata.
    pub fn send_metadata(&self, to: MetadataStore<'_>) -> Result<()> {
        self.check_open()?;
        let args = self.store(to)?;
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe { ffi::nixl_capi_send_local_md(agent, opt(&args)) });
        stored("send its metadata to", to, code)
    }

    /// Sends part of this agent's metadata.
    pub fn send_partial_metadata(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        connection_info: bool,
        backends: &[&str],
        to: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        self.check_open()?;
        no_label(label)?;
        self.check_registered(kind, descs)?;
        if matches!(to, MetadataStore::Central) {
            bail!(
                Status::NotSupported,
                "a central store keeps partial metadata under a label, which NIXL's C API cannot \
                 give; send it to an address"
            );
        }
        if connection_info && !descs.is_empty() {
            // One message cannot hold both, but the receiver adds up what it is sent.
            let serving = self.backends.serving(kind);
            let named: Vec<&str> = match backends {
                [] => serving.iter().map(String::as_str).collect(),
                named => named.to_vec(),
            };
            self.send_part(kind, &[], &named, to)?;
        }
        self.send_part(kind, descs, backends, to)
    }

    fn send_part(
        &self,
        kind: MemKind,
        descs: &[RegDesc],
        backends: &[&str],
        to: MetadataStore<'_>,
    ) -> Result<()> {
        let list = RegDlist::from_descs(kind, descs.iter())?;
        let args = self.store(to)?;
        if let Some(args) = &args {
            self.backends.add_to(args, backends)?;
        }
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_send_local_partial_md(agent, list.raw(), opt(&args))
        });
        stored("send partial metadata to", to, code)
    }

    /// Asks for a peer's metadata.
    pub fn fetch_metadata(
        &self,
        remote: &str,
        from: MetadataStore<'_>,
        label: Option<&str>,
    ) -> Result<()> {
        self.check_open()?;
        no_label(label)?;
        let peer = c_string("agent name", remote)?;
        let args = self.store(from)?;
        // SAFETY: all objects are alive for the call.
        let code = self.call(|agent| unsafe {
            ffi::nixl_capi_fetch_remote_md(agent, peer.as_ptr(), opt(&args))
        });
        stored("fetch metadata from", from, code)
    }

    /// Tells others that this agent's metadata is void.
    pub fn invalidate_metadata(&self, at: MetadataStore<'_>) -> Result<()> {
        self.check_open()?;
        let args = self.store(at)?;
        // SAFETY: all objects are alive for the call.
        let code =
            self.call(|agent| unsafe { ffi::nixl_capi_invalidate_local_md(agent, opt(&args)) });
        stored("invalidate its metadata at", at, code)
    }
}

impl Endpoint {
    /// Options that name the other side; none for the central store, which NIXL's environment
    /// names.
    fn store(&self, store: MetadataStore<'_>) -> Result<Option<OptArgs>> {
        let MetadataStore::Address { host, port } = store else {
            return Ok(None);
        };
        if !self.listens {
            // NIXL would accept the call, and its thread that is to do it would not exist.
            bail!(
                Status::InvalidState,
                "metadata can be exchanged with {host:?}, port {port}, only by an agent that has a \
                 listen port of its own, and {:?} has none",
                self.name
            );
        }
        let ip = resolve(host, port)?;
        let args = OptArgs::new()?;
        args.set_address(&ip, port)?;
        Ok(Some(args))
    }
}

/// NIXL's listener takes numbers only, and IPv4 only.
fn resolve(host: &str, port: u16) -> Result<CString> {
    if port == 0 {
        bail!(
            Status::InvalidArgument,
            "port 0 of {host:?} cannot be connected to"
        );
    }
    let addresses = (host, port).to_socket_addrs().map_err(|e| {
        Error::new(
            Status::NotFound,
            format!("the host {host:?} cannot be looked up: {e}"),
        )
    })?;
    let mut seen = Vec::new();
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => return c_string("address", &ip.to_string()),
            ip => seen.push(ip.to_string()),
        }
    }
    bail!(
        Status::NotSupported,
        "the host {host:?} has no IPv4 address ({}), and NIXL's listener knows no other",
        seen.join(", ")
    )
}

fn no_label(label: Option<&str>) -> Result<()> {
    match label {
        Some(label) => bail!(
            Status::NotSupported,
            "NIXL's C API has no metadata labels, so {label:?} cannot be used"
        ),
        None => Ok(()),
    }
}

/// The error of a call that passes metadata on.
fn stored(doing: &str, at: MetadataStore<'_>, code: ffi::Code) -> Result<()> {
    match (code, at) {
        (ffi::SUCCESS | ffi::IN_PROG, _) => Ok(()),
        (code, MetadataStore::Central) => bail!(
            Status::NotSupported,
            "the agent cannot {doing} a central store: NIXL_ETCD_ENDPOINTS or \
             NIXL_TCPSTORE_ENDPOINT must name one before it is made (code {code})"
        ),
        (code, MetadataStore::Address { host, port }) => bail!(
            Status::Backend,
            "the agent cannot {doing} {host:?}, port {port} (code {code})"
        ),
    }
}
