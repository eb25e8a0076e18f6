"""kvferry.nixl is NIXL's Python API: the same script of calls gives the same results on both, and
what is said beyond that about the drop-in is true."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import HERE, content, need_nixl

import kvferry
from kvferry import nixl
from kvferry.nixl import _api, _bindings


@pytest.fixture(autouse=True)
def _needs_nixl():
    need_nixl()


def script(package: str) -> dict:
    """What nixl_cases.py finds out about a package."""
    read, write = os.pipe()
    with os.fdopen(read) as results:
        # The script writes to descriptor 3: NIXL and UCX have the other two.
        command = ["bash", "-c", f'exec 3>&{write} {write}>&-; exec "$@"', "_"]
        process = subprocess.Popen(
            [*command, sys.executable, str(HERE / "nixl_cases.py"), package],
            pass_fds=[write], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "NIXL_LOG_LEVEL": "FATAL"},
        )
        os.close(write)
        output, _ = process.communicate(timeout=100)
        text = results.read()
    assert process.returncode == 0 and text, output
    return json.loads(text)


def pytest_generate_tests(metafunc):
    if "case_name" in metafunc.fixturenames:
        import nixl_cases

        metafunc.parametrize("case_name", [c.__name__ for c in nixl_cases.CASES])


@pytest.fixture(scope="session")
def both():
    need_nixl()
    return script("nixl_cu12"), script("kvferry.nixl")


def test_same_as_nixl(both, case_name):
    theirs, ours = both
    assert not str(theirs[case_name]).startswith("case failed"), theirs[case_name]
    assert ours[case_name] == theirs[case_name]


# ---------------------------------------------------------------------------- beyond the comparison


@pytest.fixture
def pair():
    config = nixl.nixl_agent_config(enable_prog_thread=False)
    a, b = nixl.nixl_agent("drop-a", config), nixl.nixl_agent("drop-b", config)
    a.memory, b.memory = np.zeros(1 << 16, np.uint8), content(1, 1 << 16)
    for agent in (a, b):
        agent.register_memory([(agent.memory.ctypes.data, 1 << 16, 0, "")], "DRAM")
    a.add_remote_agent(b.get_agent_metadata())
    return a, b


def lists(a, b, n=16, size=1024):
    make = a.prep_xfer_dlist
    return [
        make(who, [(agent.memory.ctypes.data + i * size, size, 0) for i in range(n)], "DRAM")
        for who, agent in (("", a), (b.name, b))
    ]


def test_two_implementations_talk_to_each_other(tmp_path):
    """A kvferry process reads from a process with NIXL's own bindings: same NIXL, same wire."""
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import sys, numpy as np, time
            from nixl_cu12._api import nixl_agent, nixl_agent_config
            agent = nixl_agent("owner", nixl_agent_config())
            memory = np.frombuffer(np.random.default_rng(5).bytes(65536), np.uint8).copy()
            agent.register_memory([(memory.ctypes.data, 65536, 0, "")], "DRAM")
            with open(sys.argv[1] + ".new", "wb") as f:
                f.write(memory.ctypes.data.to_bytes(8, "little") + agent.get_agent_metadata())
            import os
            os.rename(sys.argv[1] + ".new", sys.argv[1])
            end = time.time() + 60
            while not agent.check_remote_xfer_done("reader", b"thanks"):
                assert time.time() < end
        """), str(tmp_path / "md")],
        env={**os.environ, "NIXL_LOG_LEVEL": "ERROR"},
    )
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "md").exists():
            assert time.monotonic() < end and owner.poll() is None
            time.sleep(0.01)
        blob = (tmp_path / "md").read_bytes()
        address = int.from_bytes(blob[:8], "little")
        reader = nixl.nixl_agent("reader")
        memory = np.zeros(65536, np.uint8)
        reader.register_memory([(memory.ctypes.data, 65536, 0, "")], "DRAM")
        assert reader.add_remote_agent(blob[8:]) == b"owner"
        x = reader.get_xfer_descs
        handle = reader.initialize_xfer(
            "READ", x([(memory.ctypes.data, 65536, 0)], "DRAM"), x([(address, 65536, 0)], "DRAM"), "owner"
        )
        reader.transfer(handle)
        while reader.check_xfer_state(handle) != "DONE":
            assert time.monotonic() < end
        assert (memory == content(5, 65536)).all()
        reader.send_notif("owner", b"thanks")
        assert owner.wait(30) == 0
    finally:
        owner.kill()
        owner.wait()


def test_side_channel_of_an_agent(pair):
    _, b = pair
    c = nixl.nixl_agent("drop-c", nixl.nixl_agent_config(False))
    port = b.start_side_channel_listener()
    assert c.request_remote_metadata("127.0.0.1", port) == b"drop-b"
    assert c.check_remote_metadata("drop-b")
    # After registering more, the same listener gives the new metadata.
    more = np.zeros(4096, np.uint8)
    b.register_memory([(more.ctypes.data, 4096, 0, "")], "DRAM")
    wanted = c.get_xfer_descs([(more.ctypes.data, 4096, 0)], "DRAM")
    assert not c.check_remote_metadata("drop-b", wanted)
    assert b.start_side_channel_listener() == port
    c.request_remote_metadata("127.0.0.1", port)
    assert c.check_remote_metadata("drop-b", wanted)
    b.stop_side_channel_listener()
    b.stop_side_channel_listener()
    with pytest.raises(kvferry.errors.PeerLostError):
        c.request_remote_metadata("127.0.0.1", port, timeout=2)


def test_exceptions_are_ours_too(pair):
    a, b = pair
    with pytest.raises(_bindings.nixlNotFoundError) as caught:
        a.send_notif("nobody", b"x")
    assert isinstance(caught.value, kvferry.Error)
    assert caught.value.status == kvferry.errors.NotFoundError.status
    assert str(caught.value).startswith("NIXL_ERR_NOT_FOUND: ") and "nobody" in str(caught.value)


def test_handles_can_be_keys_and_are_released(pair):
    a, b = pair
    local, remote = lists(a, b)
    first = a.make_prepped_xfer("READ", local, [0], remote, [1])
    second = a.make_prepped_xfer("READ", local, [0], remote, [1])
    assert {first: 1, second: 2}[second] == 2 and first != second and first == first
    assert first._handle != second._handle > 0
    a.release_xfer_handle(first)
    for call in (a.transfer, a.check_xfer_state):
        with pytest.raises(_bindings.nixlInvalidParamError):
            call(first)
    local.release()
    with pytest.raises(_bindings.nixlInvalidParamError, match="released"):
        a.make_prepped_xfer("READ", local, [0], remote, [1])
    # Made from the list while it was there; it lives on.
    a.transfer(second)
    end = time.monotonic() + 30
    while a.check_xfer_state(second) != "DONE":
        b.get_new_notifs()
        assert time.monotonic() < end
    assert (a.memory[:1024] == b.memory[1024:2048]).all()


def test_stale_handles_raise_instead_of_crashing(pair):
    a, b = pair
    raw = a.agent
    local, remote = lists(a, b)
    handle = raw.makeXferReq(_bindings.NIXL_READ, local._handle, [0], remote._handle, [0])
    raw.releaseXferReq(handle)
    for call in (raw.releaseXferReq, raw.postXferReq, raw.getXferStatus, raw.queryXferBackend, raw.getXferTelemetry,
                 raw.releasedDlistH, raw.estimateXferCost):
        with pytest.raises(_bindings.nixlInvalidParamError):
            call(handle)
        with pytest.raises(_bindings.nixlInvalidParamError):
            call(12345)
    with pytest.raises(_bindings.nixlInvalidParamError):
        raw.makeXferReq(_bindings.NIXL_READ, local._handle ^ 1 << 60, [0], remote._handle, [0])
    with pytest.raises(_bindings.nixlInvalidParamError):
        raw.getBackendParams(99)


def test_collected_handles_are_released(pair):
    a, b = pair
    local, remote = lists(a, b)
    for _ in range(200):
        a.transfer(a.make_prepped_xfer("READ", local, [0], remote, [0]))
    del local, remote
    gc.collect()
    # Those that were under way when they were collected wait for the peer; then they go too.
    end = time.monotonic() + 30
    while a.agent.leaked:
        a.get_new_notifs()
        b.get_new_notifs()
        assert time.monotonic() < end


def test_notification_of_any_bytes(pair):
    a, b = pair
    local, remote = lists(a, b)
    for message in (b"\0\xff", bytes(range(256)), b"x" * 100_000, "text \u00e4"):
        handle = a.make_prepped_xfer("READ", local, [0, 1, 2], remote, [2, 1, 0], message)
        a.transfer(handle)
        expected = message.encode() if isinstance(message, str) else message
        end, got = time.monotonic() + 30, []
        while not got:
            a.check_xfer_state(handle)
            got = b.get_new_notifs().get("drop-a", [])
            assert time.monotonic() < end
        assert got == [expected]


def test_memory_views_are_refused(pair):
    a, _ = pair
    assert _bindings.HAVE_UCX_GPU_DEVICE_API is False
    remote = a.get_remote_descs([(1, 2, 3, "drop-b")], "VRAM")
    assert remote[0] == (1, 2, 3, "drop-b") and remote.descCount() == 1
    for call in (lambda: a.prep_mem_view(remote), lambda: a.release_mem_view(1)):
        with pytest.raises(_bindings.nixlNotSupportedError, match="GPU"):
            call()


@pytest.mark.parametrize(("value", "expected"), [(None, 0), ("thread", 0), ("spin", 2)])
def test_progress_thread(monkeypatch, value, expected):
    """enable_prog_thread is a thread that sleeps, unless the environment asks for NIXL's."""
    if value is None:
        monkeypatch.delenv("KVF_NIXL_PROGRESS", raising=False)
    else:
        monkeypatch.setenv("KVF_NIXL_PROGRESS", value)
    seen = []
    from kvferry.nixl import _agent

    real = _agent.lib.kvf_agent_create

    class Spy:
        def __getattr__(self, name):
            return getattr(kvferry._lib, name)

        def kvf_agent_create(self, options, handle):
            seen.append(options.progress)
            return real(options, handle)

    monkeypatch.setattr(_agent, "lib", Spy())
    agent = nixl.nixl_agent("progress", nixl.nixl_agent_config(True))
    idle = nixl.nixl_agent("progress-off", nixl.nixl_agent_config(False))
    assert seen == [expected, 1]
    # However busy the machine is, a thread that spins uses what it gets, and one that sleeps does not.
    begin, before = time.monotonic(), time.process_time()
    limit = 30 if value == "spin" else 1
    while time.process_time() - before < 0.25 and time.monotonic() - begin < limit:
        time.sleep(0.05)
    assert (time.process_time() - before >= 0.25) == (value == "spin")
    del agent, idle


def test_bad_progress_setting(monkeypatch):
    monkeypatch.setenv("KVF_NIXL_PROGRESS", "warp")
    with pytest.raises(ValueError, match="warp"):
        nixl.nixl_agent("x")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol):
    xfer = _bindings.nixlXferDList(_bindings.VRAM_SEG, [(2**64 - 1, 2, 3), (4, 5, 6)])
    reg = _bindings.nixlRegDList(_bindings.FILE_SEG, [(1, 2, 3, b"\0\xff"), (4, 5, 6, "x")])
    remote = _bindings.nixlRemoteDList(_bindings.DRAM_SEG, [(1, 2, 3, "who")])
    for made in (xfer, reg, remote):
        back = pickle.loads(pickle.dumps(made, protocol))
        assert back == made and type(back) is type(made) and back.getType() == made.getType()


def test_pickles_in_another_process():
    made = _bindings.nixlRegDList(_bindings.DRAM_SEG, [(1, 2, 3, b"m")])
    code = "import pickle, sys; d = pickle.load(sys.stdin.buffer); print(d[0], d.descCount(), d.trim()[0])"
    out = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(made), capture_output=True, check=True)
    assert out.stdout.decode().split("\n")[0] == "(1, 2, 3, b'm') 1 (1, 2, 3)"


def test_a_program_that_imports_nixl():
    """install() puts the drop-in where ``import nixl`` finds it."""
    code = textwrap.dedent("""
        import kvferry.nixl
        kvferry.nixl.install()
        import nixl
        from nixl import nixl_agent
        from nixl._api import nixl_agent_config
        from nixl._bindings import nixlNotFoundError
        import nixl._utils, nixl.logging
        agent = nixl_agent("x", nixl_agent_config(backends=[]))
        try:
            agent.create_backend("NOPE")
        except nixlNotFoundError:
            print("right")
    """)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "right" in out.stdout


def test_numpy_is_not_needed():
    """Nothing of the package imports numpy; the drop-in works without it."""
    code = textwrap.dedent("""
        import sys
        sys.modules["numpy"] = None  # an import would fail now
        from kvferry.nixl import nixl_agent, nixl_agent_config, _utils
        agent = nixl_agent("x", nixl_agent_config(False))
        address = _utils.malloc_passthru(4096)
        _utils.ba_buf(address, 4096)
        agent.register_memory([(address, 4096, 0, "")], "DRAM")
        local = agent.prep_xfer_dlist("", [(address, 64, 0)], "DRAM")
        remote = agent.prep_xfer_dlist("x", [(address + 64, 64, 0)], "DRAM")
        handle = agent.make_prepped_xfer("READ", local, [0], remote, [0])
        agent.transfer(handle)
        while agent.check_xfer_state(handle) != "DONE":
            pass
        _utils.verify_transfer(address, address + 64, 64)
        print("right")
    """)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "right" in out.stdout, out.stderr


def test_signatures_are_nixls():
    """Names, order, kinds and defaults of all parameters of the public methods."""
    import inspect

    from nixl_cu12 import _api as theirs

    def shape(function):
        # Enumerations and classes of the two packages differ in identity, not in text.
        return [(p.name, p.kind, str(p.default)) for p in inspect.signature(function).parameters.values()]

    compared = 0
    for name, method in inspect.getmembers(theirs.nixl_agent, inspect.isfunction):
        if name == "__init__" or not name.startswith("_"):
            assert shape(getattr(_api.nixl_agent, name)) == shape(method), name
            compared += 1
    assert compared > 35
    assert shape(_api.nixl_agent_config.__init__) == shape(theirs.nixl_agent_config.__init__)
