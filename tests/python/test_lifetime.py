"""Nothing leaks, and nothing depends on the order in which Python lets go of things."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from conftest import content

import kvferry


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def mapped_memory(agent: kvferry.Agent, size: int = 1 << 16) -> np.ndarray:
    memory = np.zeros(size, np.uint8)
    agent.register([kvferry.range_of(memory)])
    return memory


def cycle(transport: str, number: int) -> None:
    """Everything once: two agents, lists, a transfer, messages, a side channel; closed or dropped."""
    a = kvferry.Agent(f"life-a-{number}", transport)
    b = kvferry.Agent(f"life-b-{number}", transport)
    mine, theirs = mapped_memory(a), mapped_memory(b)
    theirs[:] = number % 251
    with kvferry.SideChannel(b.metadata()) as channel:
        a.add_remote(kvferry.request_metadata(*channel.address))
    local = a.prepare([kvferry.range_of(mine)])
    remote = a.prepare([kvferry.range_of(theirs)], b.name)
    transfer = a.make_transfer("READ", local, [0], remote, [0], notification=b"n")
    transfer.post()
    transfer.wait(30)
    assert (mine == number % 251).all()
    assert b.wait_notification(timeout=30).payload == b"n"
    for _ in range(20):
        for bad in (lambda: a.add_remote(b"junk"), lambda: a.prepare([(8, 8)]), lambda: a.notify("x", b"")):
            with pytest.raises(kvferry.Error):
                bad()
    if number % 2:
        transfer.release()
        a.close()
        b.close()


def test_no_leaks(transport):
    """Files, threads and memory stay where they are however often everything is made and dropped."""
    rounds, warm = (60, 15) if transport == "local" else (16, 6)
    for number in range(warm):  # caches and connections of the first rounds
        cycle(transport, number)
    gc.collect()
    before = open_files(), threads(), resident()
    for number in range(rounds):
        cycle(transport, number)
    gc.collect()
    end = time.monotonic() + 10  # the kernel takes a moment to bury threads
    while (open_files(), threads()) > before[:2] and time.monotonic() < end:
        time.sleep(0.01)
    assert open_files() <= before[0]
    assert threads() <= before[1]
    # 64 KiB of memory are registered per round: were anything of the kind kept, it would show.
    assert resident() - before[2] < 3 << 20


def test_transfers_do_not_leak():
    with kvferry.Agent("leak", "local") as agent:
        memory = mapped_memory(agent)
        base = kvferry.range_of(memory)[0]
        rows = [(base + i * 64, 64) for i in range(512)]
        local, remote = agent.prepare(rows), agent.prepare(rows, agent.name)
        indices = list(range(512))

        def some(count: int) -> None:
            for _ in range(count):
                transfer = agent.make_transfer("READ", local, indices, remote, indices, notification=b"x" * 1000)
                transfer.post()
                transfer.wait(30)
                agent.wait_notification(timeout=30)

        some(300)
        before = resident()
        some(3000)
        assert resident() - before < 2 << 20


#: Programs that end in an unusual way; each prints "fine" last and exits with 0, with nothing on stderr.
PROGRAMS = {
    "everything is left to the interpreter": """
        transfer = make()
        transfer.post()
        keep = [a, b, local, remote, transfer, kvferry.SideChannel(b"x")]
    """,
    "cycles": """
        class Node: pass
        for _ in range(50):
            node = Node()
            node.self, node.transfer, node.list = node, make(), a.prepare([kvferry.range_of(mine)])
        gc.collect()
    """,
    "the agent goes first": """
        transfer = make()
        transfer.post()
        a.close()
        del local, remote, transfer
        gc.collect()
    """,
    "only the transfer is left": """
        transfer = make()
        del a, local, remote
        gc.collect()
        transfer.post()
        transfer.wait(30)
        assert (mine == 7).all()
    """,
    "a daemon thread polls": """
        def poll():
            try:
                while True:
                    a.notifications()
                    make()
            except kvferry.Error:
                pass  # agents end before the interpreter does, the peer first
        threading.Thread(target=poll, daemon=True).start()
        time.sleep(0.1)
    """,
    "a child of fork": """
        transfer = make()
        child = os.fork()
        if child == 0:
            # Copies of all objects; none of them may touch the parent's.
            del transfer, local, remote, a, b
            gc.collect()
            with kvferry.Agent("child", TRANSPORT) as own:
                own.register([kvferry.range_of(mine)])
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        transfer.post()
        transfer.wait(30)
        assert (mine == 7).all()
    """,
    "exceptions hold on to things": """
        def inner():
            mine_too = make()
            a.prepare([(8, 8)])
        try:
            inner()
        except kvferry.Error as e:
            kept = e
        a.close()
        assert kept.__traceback__
    """,
    "callbacks make garbage": """
        class Node: pass
        def callback(level, target, message):
            node = Node()
            node.self, node.transfer = node, make_now and make_now()
            del node
            gc.collect()
        make_now = None
        kvferry.set_log_level("trace")
        for _ in range(20):
            node = Node()
            node.self, node.transfer = node, make()
            del node
            kvferry.set_log_callback(callback)
            try:
                a.prepare([(8, 8)])
            except kvferry.Error:
                pass
            kvferry.set_log_callback(None)
            kvferry.set_log_level("off")
    """,
}
PROLOGUE = """
    import gc, os, sys, threading, time
    import numpy as np
    import kvferry
    TRANSPORT = sys.argv[1]
    a, b = kvferry.Agent("one", TRANSPORT), kvferry.Agent("two", TRANSPORT)
    mine, theirs = np.zeros(4096, np.uint8), np.full(4096, 7, np.uint8)
    a.register([kvferry.range_of(mine)])
    b.register([kvferry.range_of(theirs)])
    a.add_remote(b.metadata())
    local = a.prepare([kvferry.range_of(mine)])
    remote = a.prepare([kvferry.range_of(theirs)], "two")
    def make():
        return a.make_transfer("READ", local, [0], remote, [0], notification=b"n")
"""


# UCX itself does not survive fork(), so that one is for our transport only.
ENDINGS = [(t, n) for t in ("local", "nixl") for n in PROGRAMS if (t, n) != ("nixl", "a child of fork")]


@pytest.mark.parametrize(("transport", "name"), ENDINGS, indirect=["transport"])
def test_programs_that_end(transport, name):
    program = textwrap.dedent(PROLOGUE) + textwrap.dedent(PROGRAMS[name]) + "\nprint('fine', flush=True)\n"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, transport],
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fine" in done.stdout  # UCX writes to standard output too
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_callback_of_the_log():
    """Records arrive with Python's levels, from any thread, and stop when they should."""
    seen: list[tuple[int, str, str]] = []
    kvferry.set_log_callback(lambda *record: seen.append(record))
    kvferry.set_log_level("debug")
    try:
        def fail():
            with pytest.raises(kvferry.Error):
                kvferry.Agent("x", "warp")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    finally:
        kvferry.set_log_callback(None)
        kvferry.set_log_level("warn")
    assert any("warp" in message for _, _, message in seen)
    assert {level for level, _, _ in seen} <= {10, 20, 30, 40}
    count = len(seen)
    with pytest.raises(kvferry.Error):
        kvferry.Agent("x", "warp")
    assert len(seen) == count
    with pytest.raises(ValueError, match="loud"):
        kvferry.set_log_level("loud")


def test_memory_may_go_after_close(new_agent):
    """After close() no byte of a buffer is touched, so it may be freed: the content stays."""
    owner, reader = new_agent("local"), new_agent("local")
    source, target = content(1, 1 << 20), np.zeros(1 << 20, np.uint8)
    owner.register([kvferry.range_of(source)])
    reader.register([kvferry.range_of(target)])
    reader.add_remote(owner.metadata())
    transfer = reader.create_transfer(
        "READ", [kvferry.range_of(target)], [kvferry.range_of(source)], owner.name
    )
    transfer.post()
    reader.close()
    after = target.copy()
    source[:] = 0
    time.sleep(0.05)
    assert (target == after).all()
