#!/usr/bin/env python3
"""Blocks of a KV cache move from one process to another.

    move_block.py prefill [local|nixl] [PORT]      in one terminal: owns the blocks
    move_block.py decode  [local|nixl] [PORT]      in another: reads some of them

The same program is in examples/c, examples/cpp and examples/rust; they speak one format.
"""

import mmap
import struct
import sys

import kvferry

BLOCK_BYTES, BLOCKS = 64 * 1024, 32
PATIENCE = 60.0  # seconds
# What the decoder has to know besides the agent's metadata: where the blocks are.
ANNOUNCEMENT = struct.Struct("<QQQ")  # address, bytes of a block, number of blocks


def content(block: int) -> bytes:
    """What prefill puts into a block, so that decode can check it."""
    return bytes((block * 31 + i * 7 + i // 256) & 0xFF for i in range(BLOCK_BYTES))


def create_cache(agent: kvferry.Agent) -> mmap.mmap:
    """2. Memory that takes part in transfers is registered."""
    cache = mmap.mmap(-1, BLOCKS * BLOCK_BYTES)
    agent.register([kvferry.range_of(cache)])
    return cache


def prefill(transport: str, port: int) -> int:
    # 1. An agent is one process's endpoint; the transport is chosen by name.
    with kvferry.Agent("prefill", transport) as agent:
        cache = create_cache(agent)
        for block in range(BLOCKS):
            cache[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content(block)

        # 3. The side channel hands where the blocks are, and the agent's metadata, to whoever asks.
        address, _, _ = kvferry.range_of(cache)
        where = ANNOUNCEMENT.pack(address, BLOCK_BYTES, BLOCKS)
        with kvferry.SideChannel(where + agent.metadata(), port) as channel:
            print(
                f"prefill: {BLOCKS} blocks of {BLOCK_BYTES} bytes, metadata on port {channel.address.port}",
                flush=True,
            )

            # 7. The reader's notification says that its blocks may be used again.
            done = agent.wait_notification("decode", timeout=PATIENCE)
            print(f'prefill: {done.sender} says "{done.payload.decode()}"')
    return 0


def decode(transport: str, port: int) -> int:
    with kvferry.Agent("decode", transport) as agent:
        cache = create_cache(agent)

        # 3. Ask for the metadata, and load it.
        message = kvferry.request_metadata("127.0.0.1", port)
        address, block_bytes, blocks = ANNOUNCEMENT.unpack_from(message)
        peer = agent.add_remote(message[ANNOUNCEMENT.size :])

        # 4. Prepare both sides once: every block by its index.
        mine, _, _ = kvferry.range_of(cache)
        local = agent.prepare([(mine, BLOCK_BYTES, 0, BLOCK_BYTES, BLOCKS)])
        remote = agent.prepare([(address, block_bytes, 0, block_bytes, blocks)], peer)

        # 5. Read scattered blocks into scattered places, and tell the owner when they are here.
        source, target = [7, 3, 21, 12], [0, 9, 4, 30]
        thanks = "blocks 7 3 21 12 are here"
        with agent.make_transfer("READ", local, target, remote, source, notification=thanks) as read:
            read.post()
            read.wait(PATIENCE)

        # 6. Every byte is where it belongs.
        for where, block in zip(target, source):
            if cache[where * BLOCK_BYTES : (where + 1) * BLOCK_BYTES] != content(block):
                print(f"move_block: block {block} is wrong", file=sys.stderr)
                return 1
        print(f"decode: {len(source)} blocks of {BLOCK_BYTES} bytes from {peer} are here and correct")
    return 0


def main() -> int:
    role, transport, port = (sys.argv[1:] + ["", "local", "7070"][len(sys.argv) - 1 :])[:3]
    roles = {"prefill": prefill, "decode": decode}
    if role not in roles:
        print(f"usage: {sys.argv[0]} prefill|decode [local|nixl] [PORT]", file=sys.stderr)
        return 2
    try:
        return roles[role](transport, int(port))
    except kvferry.Error as error:
        print(f"move_block: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
