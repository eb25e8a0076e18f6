"""Bad input is an exception of the right class that names the value, and nothing else happens.

The table runs over both transports. The calls with foreign handles and wild numbers go through the
raw C functions, as a program could that does not use the classes.
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
from conftest import content

import kvferry
from kvferry import _ffi, errors
from kvferry._ffi import CONSTANTS, lib

E = errors
SIZE = 1 << 16


class World:
    """An agent that knows another; and lists of 4 pages of 4 KiB on either side."""

    def __init__(self, new_agent, transport):
        self.transport = transport
        self.agent, self.other = new_agent(transport), new_agent(transport)
        self.memory, self.theirs = np.zeros(SIZE, np.uint8), content(1, SIZE)
        self.base, self.there = (kvferry.range_of(m)[0] for m in (self.memory, self.theirs))
        self.agent.register([kvferry.range_of(self.memory)])
        self.other.register([kvferry.range_of(self.theirs)])
        self.agent.add_remote(self.other.metadata())
        self.local = self.agent.prepare([(self.base + i * 4096, 4096) for i in range(4)])
        self.remote = self.agent.prepare(
            [(self.there + i * 4096, 4096) for i in range(4)], self.other.name
        )

    def make(self, left, right, op="READ", **kwargs):
        return self.agent.make_transfer(op, self.local, left, self.remote, right, **kwargs)

    def create(self, left, right, **kwargs):
        return self.agent.create_transfer("READ", left, right, kwargs.pop("peer", self.other.name), **kwargs)


@pytest.fixture
def world(new_agent, transport):
    return World(new_agent, transport)


#: What is done, what is raised, what the text must name.
TABLE = [
    # names
    (lambda w: kvferry.Agent("", w.transport), E.InvalidArgumentError, "empty"),
    (lambda w: kvferry.Agent("x" * 1025, w.transport), E.InvalidArgumentError, "1025"),
    (lambda w: kvferry.Agent("a\0b", w.transport), E.InvalidArgumentError, "NUL"),
    (lambda w: kvferry.Agent("\udc80", w.transport), E.InvalidArgumentError, "UTF-8"),
    (lambda w: kvferry.Agent(5, w.transport), TypeError, "int"),
    (lambda w: kvferry.Agent("a", "warp"), E.InvalidArgumentError, "warp"),
    (lambda w: kvferry.Agent("a", w.transport, progress="never"), E.InvalidArgumentError, "never"),
    (lambda w: kvferry.Agent("a", w.transport, progress=99), E.InvalidArgumentError, "99"),
    (lambda w: kvferry.Agent("a", w.transport, sync_mode=77), E.InvalidArgumentError, "77"),
    (lambda w: kvferry.Agent("a", w.transport, worker_threads=-1), E.InvalidArgumentError, "-1"),
    (lambda w: kvferry.Agent("a", w.transport, drain_timeout=-2), E.InvalidArgumentError, "-2"),
    (lambda w: kvferry.Agent("a", w.transport, listen_port=70000), E.InvalidArgumentError, "70000"),
    (lambda w: kvferry.Agent("a", w.transport, backends=["NOPE"]), E.NotFoundError, "NOPE"),
    (lambda w: kvferry.Agent("a", w.transport, backends="UCX"), TypeError, "backends"),
    # memory
    (lambda w: w.agent.register([]), E.InvalidArgumentError, "empty"),
    (lambda w: w.agent.register([(w.base, 0)]), E.InvalidArgumentError, "length 0"),
    (lambda w: w.agent.register([(2**64 - 8, 16)]), E.InvalidArgumentError, "0xfffffffffffffff8"),
    (lambda w: w.agent.register([(16, 4096)]), E.InvalidArgumentError, "0x10"),
    (lambda w: w.agent.register([(w.base, 2**63)]), E.InvalidArgumentError, str(2**63)),
    (lambda w: w.agent.register([(w.base, -1)]), E.InvalidArgumentError, "-1"),
    (lambda w: w.agent.register([(w.base, 2**64)]), E.InvalidArgumentError, str(2**64)),
    (lambda w: w.agent.register([(w.base,)]), E.InvalidArgumentError, "1 fields"),
    (lambda w: w.agent.register([(w.base, 8), (w.base, 8, 0)]), E.InvalidArgumentError, r"ranges\[1\]"),
    (lambda w: w.agent.register([(w.base, 1.5)]), TypeError, "float"),
    (lambda w: w.agent.register((w.base, 8, 0)), TypeError, "sequence"),
    (lambda w: w.agent.register([(w.base, 8)], "marble"), E.InvalidArgumentError, "marble"),
    (lambda w: w.agent.register([(w.base, 8)], 9), E.InvalidArgumentError, "9"),
    (lambda w: w.agent.register([(w.base, 8)], backends=["NOPE"]), E.NotFoundError, "NOPE"),
    (lambda w: w.agent.register([(w.base, 8)], metas=["a", "b"]), E.InvalidArgumentError, "2 metadata"),
    (lambda w: w.agent.register(np.zeros((2, 4), np.uint64)), E.InvalidArgumentError, r"\(2, 4\)"),
    (lambda w: w.agent.register(np.zeros((2, 3), np.int32)), E.InvalidArgumentError, "int32"),
    (lambda w: w.agent.register(np.zeros((2, 3), np.float64)), E.InvalidArgumentError, "float64"),
    (lambda w: w.agent.register(np.zeros((2, 3), ">u8")), E.InvalidArgumentError, "dtype"),
    (lambda w: w.agent.register(np.ones((4, 6), np.uint64)[:, ::2]), E.InvalidArgumentError, "contiguous"),
    (lambda w: w.agent.deregister([(w.base + 1, 8)]), (E.NotFoundError, E.NotRegisteredError), "0x"),
    (lambda w: kvferry.range_of(b"read-only"), E.InvalidArgumentError, "read-only"),
    (lambda w: kvferry.range_of(w.memory[::2]), E.InvalidArgumentError, "contiguous"),
    # peers
    (lambda w: w.agent.add_remote(b""), E.InvalidArgumentError, "empty"),
    (lambda w: w.agent.add_remote(b"\x17" * 100), E.PeerIncompatibleError, "metadata"),
    (lambda w: w.agent.add_remote(w.other.metadata()[:-9]), E.PeerIncompatibleError, "metadata"),
    (lambda w: w.agent.add_remote(5), TypeError, "int"),
    (lambda w: w.agent.remove_remote("nobody"), E.NotFoundError, "nobody"),
    (lambda w: w.agent.connect("nobody"), E.NotFoundError, "nobody"),
    (lambda w: w.agent.notify("nobody", b"x"), E.NotFoundError, "nobody"),
    (lambda w: w.agent.notify(w.other.name, bytes((16 << 20) + 1)), E.InvalidArgumentError, "16777217"),
    (lambda w: w.agent.notify(w.other.name, 5), TypeError, "int"),
    (lambda w: w.agent.notifications(["NOPE"]), E.NotFoundError, "NOPE"),
    (lambda w: w.agent.wait_notification(timeout=-1), E.InvalidArgumentError, "-1"),
    (lambda w: w.agent.send_metadata("127.0.0.1", 65536), E.InvalidArgumentError, "65536"),
    # lists
    (lambda w: w.agent.prepare([]), E.InvalidArgumentError, "empty"),
    (lambda w: w.agent.prepare([(w.base, 0)]), E.InvalidArgumentError, "length 0"),
    (lambda w: w.agent.prepare([(w.base, 8, 0, 8, 0)]), E.InvalidArgumentError, "count 0"),
    (lambda w: w.agent.prepare([(w.base, 8, 0, 2**62, 9)]), E.InvalidArgumentError, "wraps"),
    (lambda w: w.agent.prepare([(w.base, 8, 0, 8, 2**63)]), E.InvalidArgumentError, "9223372036854775808|wraps"),
    (lambda w: w.agent.prepare([(w.base, 8)], "nobody"), E.NotFoundError, "nobody"),
    (lambda w: w.agent.prepare([(w.base + SIZE, 8)]), (E.NotFoundError, E.NotRegisteredError), "0x"),
    (lambda w: w.agent.prepare([(w.there + SIZE, 8)], w.other.name), (E.NotFoundError, E.NotRegisteredError), "0x"),
    (lambda w: w.agent.prepare([(w.base, 8)], backends=["NOPE"]), E.NotFoundError, "NOPE"),
    # transfers
    (lambda w: w.make([4], [0]), E.InvalidArgumentError, "4"),
    (lambda w: w.make([0], [-1]), E.InvalidArgumentError, "-1"),
    (lambda w: w.make([0, 1, 2**31 - 1], [0, 1, 2]), E.InvalidArgumentError, "2147483647"),
    (lambda w: w.make([2**31], [0]), E.InvalidArgumentError, "32 bits"),
    (lambda w: w.make(np.array([2**32], np.int64), [0]), E.InvalidArgumentError, "32 bits"),
    (lambda w: w.make([], []), E.InvalidArgumentError, "empty"),
    (lambda w: w.make(np.zeros(0, np.int32), []), E.InvalidArgumentError, "empty"),
    (lambda w: w.make([0], [0, 1]), E.MismatchError, "1 .*2 "),
    (lambda w: w.make(np.zeros((1, 1), np.int32), [0]), E.InvalidArgumentError, "dimensions"),
    (lambda w: w.make(["a"], [0]), E.InvalidArgumentError, "integers"),
    (lambda w: w.make([0], [0], op="ERASE"), E.InvalidArgumentError, "ERASE"),
    (lambda w: w.make([0], [0], op=7), E.InvalidArgumentError, "7"),
    (lambda w: w.make([0], [0], backends=["NOPE"]), E.NotFoundError, "NOPE"),
    (lambda w: w.make([0], [0], notification=bytes((16 << 20) + 1)), E.InvalidArgumentError, "16777217"),
    (lambda w: w.agent.make_transfer("READ", w.remote, [0], w.local, [0]), E.InvalidArgumentError, "list"),
    (lambda w: w.other.make_transfer("READ", w.local, [0], w.remote, [0]), E.InvalidArgumentError, "agent"),
    (lambda w: w.create([(w.base, 8)], [(w.there, 8)], peer="nobody"), E.NotFoundError, "nobody"),
    (lambda w: w.create([(w.base, 8)], [(w.there, 9)]), E.MismatchError, "8 .*9 "),
    (lambda w: w.create([(w.base, 8)], [(w.there, 8)] * 2), E.MismatchError, "1 .*2 "),
    (lambda w: w.create([], []), E.InvalidArgumentError, "empty"),
    (lambda w: w.create([(w.base, 8, 0, 8, 1)], [(w.there, 8)]), E.InvalidArgumentError, "5 columns"),
    (lambda w: w.create([(w.base + SIZE, 8)], [(w.there, 8)]), (E.NotFoundError, E.NotRegisteredError), "0x"),
    (lambda w: w.create([(w.base, 8)], [(w.there + SIZE, 8)]), (E.NotFoundError, E.NotRegisteredError), "0x"),
    (lambda w: w.make([0], [0]).state(), E.NotPostedError, "posted"),
]


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_table(world, number):
    call, expected, text = TABLE[number]
    with pytest.raises(expected, match=text) as caught:
        call(world)
    error = caught.value
    if isinstance(error, kvferry.Error):
        assert error.status == type(error).status < 0
        assert str(error), "an error says what is wrong"
    # The agent is none the worse.
    transfer = world.make([0], [1])
    transfer.post()
    transfer.wait(30)
    assert (world.memory[:4096] == world.theirs[4096:8192]).all()


def test_use_after_the_end(world):
    agent, other = world.agent, world.other
    transfer = world.make([0], [0])
    transfer.post()
    transfer.wait(30)
    transfer.release()
    transfer.release()
    for call in (transfer.post, transfer.state, transfer.cancel, transfer.telemetry, lambda: transfer.backend):
        with pytest.raises(E.InvalidHandleError):
            call()
    world.local.release()
    world.local.release()
    with pytest.raises(E.InvalidHandleError):
        world.make([0], [0])
    with pytest.raises(E.InvalidHandleError):
        len(world.local)
    left = agent.create_transfer("READ", [(world.base, 8)], [(world.there, 8)], other.name)
    agent.close()
    agent.close()
    for call in (agent.metadata, agent.notifications, agent.plugins, left.post, lambda: len(world.remote)):
        with pytest.raises((E.InvalidHandleError, E.InvalidStateError)):
            call()
    left.release()
    world.remote.release()
    assert repr(agent).endswith("closed>")


def test_every_status_has_a_class():
    for name, status in CONSTANTS.items():
        if name.startswith("KVF_ERR_"):
            made = errors.from_status(status, "text")
            assert type(made) is not kvferry.Error and made.status == status and str(made) == "text"
            assert kvferry.status_name(status) not in ("", "unknown status")
    unknown = errors.from_status(-9999, "newer")
    assert type(unknown) is kvferry.Error and unknown.status == -9999
    assert kvferry.status_name(-9999) == "unknown status"


FUNCTIONS_OF_HANDLES = sorted(
    name for name, (_, arguments) in _ffi.FUNCTIONS.items() if arguments[:1] == (ctypes.c_uint64,)
)


@pytest.mark.parametrize("name", FUNCTIONS_OF_HANDLES)
@pytest.mark.parametrize("handle", [0, 1, 2**64 - 1, 0x0101_0000_0001, "side channel"])
def test_handles_that_are_none(name, handle):
    """Null, invented and foreign handles, with all other arguments null: a status every time."""
    channel = kvferry.SideChannel(b"x") if handle == "side channel" and "side" not in name else None
    if handle == "side channel":
        handle = channel._handle if channel else 0
    _, arguments = _ffi.FUNCTIONS[name]
    rest = [0 if a in (ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint16, ctypes.c_uint8, ctypes.c_uint64)
            else None for a in arguments[1:]]
    status = getattr(lib, name)(handle, *rest)
    assert status in (CONSTANTS["KVF_ERR_INVALID_HANDLE"], CONSTANTS["KVF_ERR_INVALID_ARGUMENT"]), name
    assert errors.last_message()
    if channel:
        assert channel.running
        channel.close()


def test_struct_sizes():
    options = _ffi.kvf_agent_options(name=b"a", transport=b"local")
    handle = ctypes.c_uint64(77)
    for size in (0, 3, 7, 5000, 2**32 - 1):
        options.struct_size = size
        assert lib.kvf_agent_create(options, handle) == CONSTANTS["KVF_ERR_INVALID_ARGUMENT"]
        assert str(size) in errors.last_message()
    assert handle.value == 77, "outputs are written only on success"


def test_a_panic_comes_back_as_an_error(capfd):
    with pytest.raises(E.InternalError, match="for the test"):
        errors.check(lib.kvf_debug_panic(b"for the test"))


def test_messages_belong_to_their_thread():
    seen = []

    def fail(text):
        try:
            kvferry.Agent("a", text)
        except kvferry.Error as e:
            seen.append((text in str(e), text in errors.last_message()))

    threads = [threading.Thread(target=fail, args=(f"warp-{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(True, True)] * 16


def test_random_bytes_are_no_metadata(transport, new_agent):
    """Damaged in any place, or not metadata at all: never a crash, and never a wrong name."""
    agent, other = new_agent(transport), new_agent(transport)
    memory = bytearray(8192)
    other.register([kvferry.range_of(memory)])
    good = other.metadata()
    random = np.random.default_rng(3)
    for turn in range(150):
        damaged = bytearray(good)
        if turn % 3 == 0:
            damaged = bytearray(random.bytes(int(random.integers(1, 400))))
        elif turn % 3 == 1:
            damaged = damaged[: int(random.integers(1, len(good)))]
        else:
            damaged[int(random.integers(len(good)))] ^= 1 << int(random.integers(8))
        try:
            agent.add_remote(bytes(damaged))
        except kvferry.Error as e:
            assert str(e)
    fresh = new_agent(transport)
    assert fresh.add_remote(good) == other.name
