"""What an agent costs while nobody wants anything of it, and that it still answers.

    make bench ARGS=idle            or          python benches/idle.py [--seconds N]

Each agent lives in a process of its own, is connected to a peer, has moved a block, and then does
nothing. Its process's CPU time over the idle time, of all threads, is the cost. Afterwards the peer
reads a block from it and sends it a notification, which must arrive without a call on its side that
drives progress: what does the work is the agent's own thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")

LABELS = {
    "local": "kvferry, local",
    "nixl": "kvferry, nixl",
    "stock": "NIXL's own bindings, as they come",
}
BLOCK = 8192


def stock_agent(name: str):
    from nixl_cu12._api import nixl_agent

    return nixl_agent(name)


def own(kind: str) -> None:
    """The idle process: says where its block is, then obeys `idle SECONDS` and `notified`."""
    block = bytearray(os.urandom(BLOCK))
    import ctypes

    address = ctypes.addressof((ctypes.c_char * BLOCK).from_buffer(block))
    if kind == "stock":
        agent = stock_agent("owner")
        agent.register_memory([(address, BLOCK, 0, "")], "DRAM")
        metadata = agent.get_agent_metadata()
    else:
        import kvferry

        agent = kvferry.Agent("owner", kind)
        agent.register([(address, BLOCK)])
        metadata = agent.metadata()
    print(address, metadata.hex(), bytes(block).hex(), flush=True)
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "idle":
            before = time.process_time()
            time.sleep(float(rest[0]))
            print(time.process_time() - before, flush=True)
        elif command == "notified":
            deadline, got = time.monotonic() + 10, []
            while not got and time.monotonic() < deadline:
                got = agent.get_new_notifs() if kind == "stock" else agent.notifications()
            print(int(bool(got)), flush=True)


def measure(kind: str, seconds: float) -> float:
    """Percent of a core."""
    import numpy as np

    command = [sys.executable, __file__, "--own", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:

        def ask(line: str) -> str:
            owner.stdin.write(line + "\n")
            owner.stdin.flush()
            return owner.stdout.readline()

        address, metadata, content = owner.stdout.readline().split()
        target = np.zeros(BLOCK, dtype=np.uint8)
        read = reader(kind, int(address), bytes.fromhex(metadata), target)
        read()
        used = float(ask(f"idle {seconds}"))
        target[:] = 0
        read()
        assert target.tobytes() == bytes.fromhex(content), "the idle agent's block was not read"
        assert ask("notified").strip() == "1", "the idle agent heard nothing"
        owner.stdin.close()
    return used / seconds * 100


def reader(kind: str, address: int, metadata: bytes, target):
    """A function that reads the owner's block and notifies it."""
    mine, theirs = [(target.ctypes.data, BLOCK, 0)], [(address, BLOCK, 0)]
    if kind == "stock":
        agent = stock_agent("reader")
        agent.register_memory([(*mine[0], "")], "DRAM")
        agent.add_remote_agent(metadata)
        to, of = agent.get_xfer_descs(mine, "DRAM"), agent.get_xfer_descs(theirs, "DRAM")

        def read() -> None:
            handle = agent.initialize_xfer("READ", to, of, "owner", b"read")
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            assert state == "DONE"

        return read
    import kvferry

    agent = kvferry.Agent("reader", kind)
    agent.register(mine)
    agent.add_remote(metadata)

    def read_ours() -> None:
        with agent.create_transfer("READ", mine, theirs, "owner", notification=b"read") as transfer:
            transfer.post()
            transfer.wait(10)

    return read_ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--own", choices=LABELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.own:
        return own(options.own)
    print(f"| idle agent | % of a core over {options.seconds:g} s, all threads |\n|---|---|")
    for kind, label in LABELS.items():
        print(f"| {label} | {measure(kind, options.seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
