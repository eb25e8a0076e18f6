//! Blocks of a KV cache move from one process to another.
//!
//!   cargo run --example move_block prefill [local|nixl] [PORT]      owns the blocks
//!   cargo run --example move_block decode  [local|nixl] [PORT]      reads some of them
//!
//! The same program is in examples/c, examples/cpp and examples/python; they speak one format.

use std::error::Error;
use std::time::Duration;

use kvferry::agent::{Agent, NotificationFilter};
use kvferry::memory::{MemDesc, MemKind, StridedDesc};
use kvferry::side_channel::{ListenOptions, RequestOptions, listen, request};
use kvferry::transport::{AgentOptions, Descs, Op, Side, TransferOptions, TransferState};

const BLOCK_BYTES: u64 = 64 * 1024;
const BLOCKS: u64 = 32;
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the decoder has to know besides the agent's metadata: where the blocks are. Three numbers
/// of 64 bits, as the processor has them.
const ANNOUNCEMENT: usize = 3 * 8;

/// The byte that prefill puts at a place of a block, so that decode can check it.
fn content(block: u64, i: u64) -> u8 {
    (block * 31 + i * 7 + i / 256) as u8
}

/// 1. An agent is one process's endpoint; the transport is chosen by name.
fn create_agent(name: &str, transport: &str) -> Outcome<Agent> {
    Ok(Agent::create(&AgentOptions {
        name: name.to_owned(),
        transport: transport.to_owned(),
        ..Default::default()
    })?)
}

/// 2. Memory that takes part in transfers is registered.
fn create_cache(agent: &Agent) -> Outcome<Vec<u8>> {
    let mut cache = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
    let range = MemDesc {
        addr: cache.as_mut_ptr() as u64,
        len: cache.len() as u64,
        device: 0,
    };
    agent.register(MemKind::Dram, &[range.into()], &[])?;
    Ok(cache)
}

fn prefill(transport: &str, port: u16) -> Outcome<()> {
    let agent = create_agent("prefill", transport)?;
    let mut cache = create_cache(&agent)?;
    for (at, byte) in (0u64..).zip(cache.iter_mut()) {
        *byte = content(at / BLOCK_BYTES, at % BLOCK_BYTES);
    }

    // 3. The side channel hands where the blocks are, and the agent's metadata, to whoever asks.
    let mut message = Vec::new();
    for number in [cache.as_ptr() as u64, BLOCK_BYTES, BLOCKS] {
        message.extend(number.to_ne_bytes());
    }
    message.extend(agent.metadata()?);
    let options = ListenOptions {
        port,
        ..Default::default()
    };
    let channel = listen("tcp", &options, message)?;
    let port = channel.local_addr().port();
    println!("prefill: {BLOCKS} blocks of {BLOCK_BYTES} bytes, metadata on port {port}");

    // 7. The reader's notification says that its blocks may be used again.
    let filter = NotificationFilter {
        from: Some("decode"),
        prefix: b"",
    };
    let done = agent.wait_notification(filter, PATIENCE)?;
    let text = String::from_utf8_lossy(&done.payload);
    println!("prefill: {} says \"{text}\"", done.from);

    agent.close()?;
    Ok(())
}

fn decode(transport: &str, port: u16) -> Outcome<()> {
    let agent = create_agent("decode", transport)?;
    let mut cache = create_cache(&agent)?;

    // 3. Ask for the metadata, and load it.
    let message = request("tcp", "127.0.0.1", port, &RequestOptions::default())?.metadata;
    let (announcement, metadata) = message
        .split_at_checked(ANNOUNCEMENT)
        .ok_or("the announcement is too short")?;
    let mut numbers = announcement
        .chunks_exact(8)
        .map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()));
    let mut number = || numbers.next().unwrap_or_default();
    let (address, block_bytes, blocks) = (number(), number(), number());
    let peer = agent.add_remote(metadata)?;

    // 4. Prepare both sides once: every block by its index.
    let row = |addr, len, count| StridedDesc {
        addr,
        len,
        device: 0,
        stride: len,
        count,
    };
    let mine = [row(cache.as_mut_ptr() as u64, BLOCK_BYTES, BLOCKS)];
    let theirs = [row(address, block_bytes, blocks)];
    let local = agent.prepare(Side::Local, MemKind::Dram, Descs::Strided(&mine), &[])?;
    let remote = agent.prepare(
        Side::Remote(&peer),
        MemKind::Dram,
        Descs::Strided(&theirs),
        &[],
    )?;

    // 5. Read scattered blocks into scattered places, and tell the owner when they are here.
    let (from, to) = ([7, 3, 21, 12], [0, 9, 4, 30]);
    let options = TransferOptions {
        notification: Some(b"blocks 7 3 21 12 are here"),
        ..Default::default()
    };
    let transfer = agent.make_transfer(Op::Read, (&local, &to), (&remote, &from), options)?;
    let mut state = transfer.post(None)?;
    while state == TransferState::InProgress {
        std::thread::yield_now();
        state = transfer.state()?;
    }

    // 6. Every byte is where it belongs.
    for (&mine, &theirs) in to.iter().zip(&from) {
        let start = mine as u64 * BLOCK_BYTES;
        for i in 0..BLOCK_BYTES {
            if cache[(start + i) as usize] != content(theirs as u64, i) {
                return Err(format!("block {theirs} is wrong at byte {i}").into());
            }
        }
    }
    println!(
        "decode: {} blocks of {BLOCK_BYTES} bytes from {peer} are here and correct",
        from.len()
    );

    agent.close()?;
    Ok(())
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let role = args.next().unwrap_or_default();
    let transport = args.next().unwrap_or("local".to_owned());
    let port = args.next().map_or(Ok(7070), |text| text.parse())?;
    match role.as_str() {
        "prefill" => prefill(&transport, port),
        "decode" => decode(&transport, port),
        _ => Err("usage: move_block prefill|decode [local|nixl] [PORT]".into()),
    }
}
