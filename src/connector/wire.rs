//! Stock vLLM's bytes: the handshake payload, the handshake request, the notifications, the hash by which
//! two engines tell that they are of a kind.

/// What one rank tells the ranks of other engines about itself: the map that vLLM calls
/// `NixlAgentMetadata` (connector version 14, vLLM 0.32), and what kvferry adds to it. `R` is the number
/// of regions.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AgentMetadata {
    /// The engine's id.
    pub engine_id: String,
    /// The transport agent's own metadata, opaque.
    pub agent_metadata: Vec<u8>,
    /// Address of block 0 of each region.
    pub base_addrs: Vec<u64>,
    /// Device of the memory.
    pub device_id: u64,
    /// Kernel blocks in the pool.
    pub num_blocks: u64,
    /// Bytes of one kernel block in each region.
    pub block_lens: Vec<u64>,
    /// Bytes between the starts of consecutive kernel blocks in each region.
    pub block_strides: Vec<u64>,
    /// Physical order in a block, such as `LBHNC`.
    pub kv_cache_layout: String,
    /// Tokens of one kernel block.
    pub block_size: u32,
    /// Bytes of convolution and of recurrent state on this rank; zeros without Mamba.
    pub ssm_sizes: (u64, u64),
    /// Name of the first attention backend.
    pub attn_backend_name: String,
    /// Kernel blocks per logical block.
    pub blocks_per_logical: u32,
    /// Kernel blocks of each region; `None` is `num_blocks` for all.
    pub region_num_blocks: Option<Vec<u64>>,
    /// Transfer group of each region, -1 where several share it.
    pub region_group_ids: Option<Vec<i64>>,
    /// First layer in each region.
    pub region_names: Option<Vec<String>>,
    /// `VRAM` or `DRAM` for each region.
    pub region_mem_types: Option<Vec<String>>,
    /// Decode-context-parallel size.
    pub dcp_size: u32,
    /// Prefill-context-parallel size.
    pub pcp_size: u32,
    /// Page bytes of a replicated short-convolution state.
    pub ple_block_len: Option<u64>,
    /// Layers of each region, where listed.
    pub region_members: Vec<Vec<String>>,
    /// Offset and bytes of layers inside packed block rows.
    pub packed_member_layouts: Vec<(String, (u64, u64))>,
    /// kvferry only (key `kvferry_lease_table`): address and number of 64-bit lease words in host
    /// memory; see [`LeaseRef`](super::LeaseRef).
    pub lease_table: Option<(u64, u64)>,
}
