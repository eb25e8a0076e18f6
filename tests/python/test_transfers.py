"""Bytes and messages move, over each transport, by content: within a process and between two."""

from __future__ import annotations

import threading
import time
from array import array

import numpy as np
import pytest
from conftest import content

import kvferry

PAGE = 4096
PAGES = 64
SIZE = PAGE * PAGES


@pytest.fixture
def across(transport, new_agent, new_peer):
    """An agent with zeroed memory, and a peer in another process whose memory has the content of
    seed 1. The peer knows the agent."""
    agent, peer = new_agent(transport), new_peer(transport, SIZE, 1)
    memory = np.zeros(SIZE, np.uint8)
    agent.register([kvferry.range_of(memory)])
    assert agent.add_remote(peer.metadata) == peer.name
    assert peer.ask(do="meet", metadata=agent.metadata().hex())["name"] == agent.name
    return agent, memory, peer


def pages(address: int, numbers) -> np.ndarray:
    rows = np.zeros((len(numbers), 3), np.uint64)
    rows[:, 0] = address + np.asarray(numbers, np.uint64) * PAGE
    rows[:, 1] = PAGE
    return rows


def run(transfer: kvferry.Transfer) -> None:
    with transfer:
        transfer.post()
        transfer.wait(30)
        assert transfer.done and transfer.state() is kvferry.State.DONE


def test_scattered_read_from_another_process(across):
    agent, memory, peer = across
    base = kvferry.range_of(memory)[0]
    local = agent.prepare(pages(base, range(PAGES)))
    remote = agent.prepare(pages(peer.address, range(PAGES)), peer.name)
    assert len(local) == len(remote) == PAGES
    random = np.random.default_rng(5)
    to, of = (random.permutation(PAGES)[:40].astype(np.int32) for _ in range(2))
    run(agent.make_transfer("READ", local, to, remote, of))
    theirs = content(1, SIZE).reshape(PAGES, PAGE)
    expected = np.zeros((PAGES, PAGE), np.uint8)
    expected[to] = theirs[of]
    assert (memory.reshape(PAGES, PAGE) == expected).all()


def test_write_into_another_process(across):
    agent, memory, peer = across
    memory[:] = content(2, SIZE)
    base = kvferry.range_of(memory)[0]
    run(agent.create_transfer(
        kvferry.Op.WRITE, pages(base, [3, 9, 0]), pages(peer.address, [60, 1, 30]), peer.name,
        notification=b"written",
    ))
    # The notification comes after the bytes.
    assert bytes.fromhex(peer.ask(do="wait", prefix=b"writ".hex())["payload"]) == b"written"
    for ours, theirs in [(3, 60), (9, 1), (0, 30)]:
        where = {"at": theirs * PAGE, "of": SIZE, "from": ours * PAGE, "len": PAGE}
        assert peer.ask(do="holds", seed=2, **where)["yes"]
    assert peer.ask(do="holds", seed=1, of=SIZE, at=0, len=PAGE, **{"from": 0})["yes"]


def test_rows_of_equal_ranges(across):
    """Strided lists: numbered row by row, as arrays of five columns and as tuples of five."""
    agent, memory, peer = across
    base = kvferry.range_of(memory)[0]
    ours = np.array([[base, 512, 0, 1024, 4], [base + 32768, 512, 0, 512, 4]], np.uint64)
    theirs = [(peer.address + 256, 512, 0, 2048, 8)]
    local, remote = agent.prepare(ours), agent.prepare(theirs, peer.name)
    assert (len(local), len(remote)) == (8, 8)
    run(agent.make_transfer("read", local, range(8), remote, [7, 6, 5, 4, 3, 2, 1, 0]))
    there, expected = content(1, SIZE), np.zeros(SIZE, np.uint8)
    for i in range(8):
        at = i * 1024 if i < 4 else 32768 + (i - 4) * 512
        source = 256 + (7 - i) * 2048
        expected[at : at + 512] = there[source : source + 512]
    assert (memory == expected).all()


@pytest.mark.parametrize("kind", [
    list, tuple, lambda i: array("i", i), lambda i: np.array(i, np.int32), lambda i: np.array(i, np.uint32),
    lambda i: np.array(i, np.int64), lambda i: np.repeat(np.array(i, np.int32), 2)[::2], iter,
], ids=["list", "tuple", "array", "int32", "uint32", "int64", "strides", "iterator"])
def test_indices_of_every_kind(kind, new_agent):
    agent = new_agent("local")
    memory = content(3, SIZE)
    base = kvferry.range_of(memory)[0]
    agent.register([kvferry.range_of(memory)])
    local = agent.prepare(pages(base, range(PAGES)))
    remote = agent.prepare(pages(base, range(PAGES)), agent.name)
    run(agent.make_transfer("READ", local, kind([50, 51]), remote, kind([4, 2])))
    expected = content(3, SIZE).reshape(PAGES, PAGE)
    expected[[50, 51]] = expected[[4, 2]]
    assert (memory.reshape(PAGES, PAGE) == expected).all()


@pytest.mark.parametrize("kind", [np.uint64, np.int64, list, tuple])
def test_ranges_of_every_kind(kind, new_agent):
    agent = new_agent("local")
    memory = content(3, SIZE)
    base = kvferry.range_of(memory)[0]
    rows = [(base, 100), (base + 200, 50)] if kind in (list, tuple) else [(base, 100, 0), (base + 200, 50, 0)]
    ranges = kind(rows) if kind in (list, tuple) else np.array(rows, kind)
    agent.register(ranges)
    assert agent.check_remote(agent.name, ranges)
    run(agent.create_transfer("READ", [(base, 50)], [(base + 200, 50)], agent.name))
    assert (memory[:50] == content(3, SIZE)[200:250]).all()
    agent.deregister(ranges)
    with pytest.raises(kvferry.Error):
        agent.prepare(ranges)


def test_loopback(transport, new_agent):
    agent = new_agent(transport)
    memory = content(4, SIZE)
    base = kvferry.range_of(memory)[0]
    agent.register([kvferry.range_of(memory)])
    run(agent.create_transfer("WRITE", pages(base, [1]), pages(base, [9]), agent.name, notification="self"))
    expected = content(4, SIZE)
    expected[9 * PAGE : 10 * PAGE] = expected[PAGE : 2 * PAGE]
    assert (memory == expected).all()
    assert agent.wait_notification(agent.name, "self") == (agent.name, b"self")


def test_posting_again(across):
    agent, memory, peer = across
    base = kvferry.range_of(memory)[0]
    with agent.create_transfer(
        "READ", pages(base, [0]), pages(peer.address, [5]), peer.name, notification=b"first \0 \xff"
    ) as transfer:
        with pytest.raises(kvferry.errors.NotPostedError):
            transfer.state()
        for notification, expected in [(b"", b"first \0 \xff"), (b"second", b"second")]:
            memory[:] = 0
            transfer.post(notification)
            transfer.wait(30)
            assert (memory[:PAGE] == content(1, SIZE)[5 * PAGE : 6 * PAGE]).all()
            got = peer.ask(do="wait", prefix=expected.hex())
            assert (got["sender"], bytes.fromhex(got["payload"])) == (agent.name, expected)
        assert kvferry.states([transfer, transfer]) == [kvferry.State.DONE] * 2
        assert transfer.backend == ("UCX" if agent.transport == "nixl" else "local")
        with pytest.raises(kvferry.errors.NoTelemetryError):
            transfer.telemetry()


def test_telemetry(transport, new_agent):
    agent = new_agent(transport, telemetry=True)
    memory = np.zeros(SIZE, np.uint8)
    base = kvferry.range_of(memory)[0]
    agent.register([kvferry.range_of(memory)])
    with agent.create_transfer("READ", pages(base, [0, 2]), pages(base, [9, 11]), agent.name) as transfer:
        before = time.monotonic_ns() // 1000
        transfer.post()
        transfer.wait(30)
        figures = transfer.telemetry()
        after = time.monotonic_ns() // 1000
        assert figures.total_bytes == 2 * PAGE and figures.descriptors == 2
        # A NIXL clock is its own; ours is the monotonic one.
        if transport == "local":
            assert before - 1 <= figures.start_time_us <= after
        assert figures.post_duration_us <= figures.transfer_duration_us <= after - before + 1
        try:
            cost = transfer.cost()
        except kvferry.errors.NotSupportedError:
            pass
        else:
            assert cost.duration_us >= 0


def test_messages_between_processes(across):
    agent, _, peer = across
    for payload in [b"one", b"two \0\xff", b"three" * 1000]:
        agent.notify(peer.name, payload)
    for payload in [b"three", b"one", b"two"]:  # each is found by its beginning, the rest stays
        assert bytes.fromhex(peer.ask(do="wait", prefix=payload.hex())["payload"]).startswith(payload)
    for n in range(5):
        peer.ask(do="notify", to=agent.name, payload=f"n{n}".encode().hex())
    assert agent.wait_notification(peer.name, "n3", 30) == kvferry.Notification(peer.name, b"n3")
    end = time.monotonic() + 30
    while agent.notification_count() < 4 and time.monotonic() < end:
        pass
    assert agent.notification_count() == 4
    got = agent.notifications()
    assert agent.notification_count() == 0
    assert got == [(peer.name, f"n{n}".encode()) for n in (0, 1, 2, 4)]
    begin = time.monotonic()
    with pytest.raises(kvferry.errors.TimeoutError, match="nobody-else"):
        agent.wait_notification("nobody-else", timeout=0.3)
    assert 0.3 <= time.monotonic() - begin < 20
    with pytest.raises(TimeoutError):  # it is also Python's own
        agent.wait_notification(timeout=0)


def test_waiting_can_be_interrupted(new_agent):
    """Ctrl-C reaches a program that waits for a message for ever."""
    import _thread

    agent = new_agent("local")
    waiting = threading.Event()

    def interrupt():
        waiting.wait(30)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        waiting.set()
        agent.wait_notification(timeout=60)
    thread.join()


def test_part_of_the_metadata(transport, new_agent):
    owner, reader = new_agent(transport), new_agent(transport)
    memory = content(6, SIZE)
    base = kvferry.range_of(memory)[0]
    first, second = [(base, PAGE)], [(base + 8 * PAGE, PAGE)]
    owner.register(first)
    owner.register(second)
    target = np.zeros(PAGE, np.uint8)
    mine = [kvferry.range_of(target)]
    reader.register(mine)
    assert not reader.check_remote(owner.name)
    assert reader.add_remote(owner.partial_metadata(first, connection_info=True)) == owner.name
    assert reader.check_remote(owner.name) and reader.check_remote(owner.name, first)
    assert not reader.check_remote(owner.name, second)
    with pytest.raises((kvferry.errors.NotFoundError, kvferry.errors.NotRegisteredError)):
        reader.create_transfer("READ", mine, second, owner.name)
    reader.add_remote(owner.partial_metadata(second))
    assert reader.check_remote(owner.name, second)
    transfer = reader.create_transfer("READ", mine, second, owner.name)
    transfer.post()
    end = time.monotonic() + 30
    while not transfer.done and time.monotonic() < end:
        owner.notifications()
    assert (target == content(6, SIZE)[8 * PAGE : 9 * PAGE]).all()
    transfer.release()
    reader.remove_remote(owner.name)
    assert not reader.check_remote(owner.name)
    with pytest.raises(kvferry.errors.NotFoundError):
        reader.remove_remote(owner.name)


def test_peer_that_is_gone(across):
    agent, memory, peer = across
    base = kvferry.range_of(memory)[0]
    local = agent.prepare(pages(base, [0]))
    remote = agent.prepare(pages(peer.address, [0]), peer.name)
    run(agent.make_transfer("READ", local, [0], remote, [0]))
    peer.kill()
    end = time.monotonic() + 60
    with pytest.raises(kvferry.Error) as caught:  # a status, and not a hang
        while time.monotonic() < end:
            transfer = agent.make_transfer("READ", local, [0], remote, [0])
            transfer.post()
            transfer.wait(end - time.monotonic())
    assert isinstance(caught.value, (kvferry.errors.PeerLostError, kvferry.errors.BackendError)), caught.value
    assert peer.name in str(caught.value)


def test_memory_that_the_peer_has_not_registered(new_agent, new_peer):
    agent, peer = new_agent("local"), new_peer("local", SIZE, 1)
    memory = np.zeros(SIZE, np.uint8)
    agent.register([kvferry.range_of(memory)])
    agent.add_remote(peer.metadata)
    base = kvferry.range_of(memory)[0]
    run(agent.create_transfer("READ", pages(base, [0]), pages(peer.address, [0]), peer.name))
    outside = [(peer.address + SIZE, PAGE)]
    with pytest.raises(kvferry.errors.NotRegisteredError, match=hex(peer.address + SIZE)):
        agent.create_transfer("READ", pages(base, [0]), outside, peer.name)


def test_backends_and_plugins(transport, new_agent):
    agent = new_agent(transport)
    plugins = agent.plugins()
    name = "UCX" if transport == "nixl" else "local"
    assert name in plugins and agent.backends() == [name]
    assert kvferry.MemKind.DRAM in agent.backend_info(name).mem_kinds
    assert kvferry.MemKind.DRAM in agent.plugin_info(name).mem_kinds
    for asking in (agent.plugin_info, agent.backend_info, agent.create_backend):
        with pytest.raises(kvferry.errors.NotFoundError, match="NOPE"):
            asking("NOPE")
    with pytest.raises(kvferry.Error):
        agent.create_backend(name)


def test_query_of_files(nixl, new_agent, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1234)
    agent = new_agent("nixl", backends=[])
    assert agent.backends() == []
    agent.create_backend("POSIX", {})
    found = agent.query_memory([(0, 0), (0, 0)], "POSIX", "file", metas=[str(file), "/no/such/file"])
    assert found[0]["size"] == "1234" and found[1] is None


def test_backends_with_parameters(nixl, new_agent):
    agent = new_agent("nixl", backends={"UCX": {"num_workers": "2"}})
    assert agent.backends() == ["UCX"]


def test_listener_of_nixl(nixl, new_agent):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    one, two = new_agent("nixl", listen_port=port), new_agent("nixl", listen_port=0)
    two.send_metadata("127.0.0.1", port)
    two.fetch_metadata(one.name, "127.0.0.1", port)
    end = time.monotonic() + 30
    while not (one.check_remote(two.name) and two.check_remote(one.name)):
        assert time.monotonic() < end
        time.sleep(0.005)
    two.invalidate_metadata("127.0.0.1", port)
    while one.check_remote(two.name):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_many_threads(transport, new_agent):
    """One agent, used from several threads at once; each checks its own bytes and messages."""
    owner, reader = new_agent(transport), new_agent(transport)
    memory, target = content(8, SIZE), np.zeros(SIZE, np.uint8)
    owner.register([kvferry.range_of(memory)])
    reader.register([kvferry.range_of(target)])
    reader.add_remote(owner.metadata())
    there, here = kvferry.range_of(memory)[0], kvferry.range_of(target)[0]
    remote = reader.prepare(pages(there, range(PAGES)), owner.name)
    local = reader.prepare(pages(here, range(PAGES)))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            random = np.random.default_rng(number)
            mine = np.arange(number * 8, number * 8 + 8, dtype=np.int32)
            for turn in range(50):
                of = random.permutation(PAGES)[:8].astype(np.int32)
                tag = f"{number}/{turn}/"
                run(reader.make_transfer("READ", local, mine, remote, of, notification=tag))
                assert owner.wait_notification(reader.name, tag, 30).payload == tag.encode()
                got = target.reshape(PAGES, PAGE)[mine]
                assert (got == memory.reshape(PAGES, PAGE)[of]).all()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_copy_threads_move_the_same_bytes(new_agent, new_peer):
    agent, peer = new_agent("local", copy_threads=2), new_peer("local", SIZE, 1)
    memory = np.zeros(SIZE, np.uint8)
    agent.register([kvferry.range_of(memory)])
    agent.add_remote(peer.metadata)
    base = kvferry.range_of(memory)[0]
    run(agent.create_transfer("READ", pages(base, range(PAGES)), pages(peer.address, range(PAGES)), peer.name))
    assert (memory == content(1, SIZE)).all()
