"""One script of calls against a NIXL Python API; prints what happened as JSON.

``python nixl_cases.py nixl_cu12`` runs it on NIXL's own bindings, ``python nixl_cases.py
kvferry.nixl`` on the drop-in. ``test_nixl_dropin.py`` runs both and compares: the same
values, the same exception types. Nothing here knows which of the two it talks to.

A case is a function that yields or returns plain values. What differs from run to run (addresses,
times) is checked inside the case and not returned.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import socket
import sys
import time

import numpy as np

CASES = []

#: What the drop-in adds to nixl_agent.
OURS = {"start_side_channel_listener", "request_remote_metadata", "stop_side_channel_listener"}


def case(function):
    CASES.append(function)
    return function


def outcome(call, *args, **kwargs):
    """The value of a call, or the class name of what it raised."""
    try:
        return plain(call(*args, **kwargs))
    except Exception as e:
        return f"raises {type(e).__name__}"


def plain(value):
    """Something that JSON can hold and that compares by content and type."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, bytes):
        return f"bytes:{value.hex()}"
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(plain, value)]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in sorted(value.items())}
    if type(value).__name__ in ("nixlXferDList", "nixlRegDList"):
        rows = (plain(value[i]) for i in range(value.descCount()))
        return [type(value).__name__, str(value.getType()), *rows]
    if hasattr(value, "name") and hasattr(value, "value"):
        return f"{type(value).__name__}.{value.name}"
    return f"object:{type(value).__name__}"


class World:
    """Two connected agents with 64 KiB each, and the modules under test."""

    SIZE = 1 << 16

    def __init__(self, package):
        self.api = importlib.import_module(package + "._api")
        self.bind = importlib.import_module(package + "._bindings")
        self.utils = importlib.import_module(package + "._utils")
        self.package = importlib.import_module(package)
        config = self.api.nixl_agent_config(enable_prog_thread=False)
        self.a = self.api.nixl_agent("case-a", config)
        self.b = self.api.nixl_agent("case-b", config)
        self.mem_a = np.zeros(self.SIZE, dtype=np.uint8)
        self.mem_b = (np.arange(self.SIZE) * 7 % 251).astype(np.uint8)
        self.addr_a = self.mem_a.ctypes.data
        self.addr_b = self.mem_b.ctypes.data
        self.reg_a = self.a.register_memory([(self.addr_a, self.SIZE, 0, "")], "DRAM")
        self.reg_b = self.b.register_memory([(self.addr_b, self.SIZE, 0, "")], "DRAM")
        self.name_b = self.a.add_remote_agent(self.b.get_agent_metadata())
        self.name_a = self.b.add_remote_agent(self.a.get_agent_metadata())

    def finish(self, handle, deadline=20.0):
        """Waits for a transfer; both sides make progress meanwhile."""
        end = time.monotonic() + deadline
        while (state := self.a.check_xfer_state(handle)) == "PROC":
            self.b.update_notifs()
            assert time.monotonic() < end, "transfer does not finish"
        return state

    def notification(self, agent, sender, tag, deadline=20.0, **kwargs):
        end = time.monotonic() + deadline
        while not agent.check_remote_xfer_done(sender, tag, **kwargs):
            self.a.update_notifs()
            self.b.update_notifs()
            if time.monotonic() > end:
                return False
        return True


@case
def names_of_agents(w):
    return [w.name_a, w.name_b, w.a.name, type(w.a.agent).__name__]


@case
def empty_name(w):
    return outcome(w.api.nixl_agent, "")


@case
def constants(w):
    b = w.bind
    names = [
        "NIXL_INIT_AGENT", "DEFAULT_COMM_PORT", "DRAM_SEG", "VRAM_SEG", "BLK_SEG", "OBJ_SEG",
        "FILE_SEG", "NIXL_READ", "NIXL_WRITE", "NIXL_COST_ANALYTICAL_BACKEND", "NIXL_IN_PROG",
        "NIXL_SUCCESS", "NIXL_ERR_NOT_POSTED", "NIXL_ERR_INVALID_PARAM", "NIXL_ERR_BACKEND",
        "NIXL_ERR_NOT_FOUND", "NIXL_ERR_MISMATCH", "NIXL_ERR_NOT_ALLOWED",
        "NIXL_ERR_REPOST_ACTIVE", "NIXL_ERR_UNKNOWN", "NIXL_ERR_NOT_SUPPORTED",
        "NIXL_THREAD_SYNC_NONE", "NIXL_THREAD_SYNC_STRICT", "NIXL_THREAD_SYNC_RW",
        "NIXL_THREAD_SYNC_DEFAULT",
    ]
    found = {}
    for name in names:
        value = getattr(b, name)
        number = value if isinstance(value, (int, str)) else int(value)
        found[name] = [plain(value), number]
    return found


@case
def enums_behave(w):
    b = w.bind
    return [
        str(b.DRAM_SEG), repr(b.DRAM_SEG), b.DRAM_SEG == 0, b.DRAM_SEG == b.DRAM_SEG,
        b.DRAM_SEG != b.VRAM_SEG, b.DRAM_SEG == b.NIXL_READ, hash(b.VRAM_SEG) == hash(b.VRAM_SEG),
        b.NIXL_ERR_NOT_FOUND == -6, isinstance(b.DRAM_SEG, int), int(b.FILE_SEG),
        b.NIXL_THREAD_SYNC_RW == int(b.NIXL_THREAD_SYNC_RW), sorted(b.nixl_mem_t.__members__),
        sorted(b.nixl_status_t.__members__), sorted(b.nixl_thread_sync_t.__members__),
        plain(b.nixl_mem_t(1)), outcome(b.nixl_mem_t, 77), b.DRAM_SEG.name, b.DRAM_SEG.value,
        plain(pickle.loads(pickle.dumps(b.FILE_SEG))), b.DRAM_SEG == None,  # noqa: E711
        {b.DRAM_SEG: 1}[b.DRAM_SEG],
        outcome(lambda: b.DRAM_SEG < b.VRAM_SEG), b.NIXL_THREAD_SYNC_DEFAULT == b.NIXL_THREAD_SYNC_RW,
        outcome(lambda: [10, 20][b.VRAM_SEG]), outcome(lambda: b.VRAM_SEG + 1),
    ]


@case
def exported_names(w):
    wanted = [n for n in dir(w.bind) if n.startswith(("nixl", "NIXL", "DRAM", "VRAM", "HAVE", "DEF"))]
    return [wanted, sorted(w.package.__all__), [n for n in dir(w.api.nixl_agent) if not n.startswith("_") and n not in OURS]]


@case
def exception_classes(w):
    classes = [n for n in dir(w.bind) if n.endswith("Error")]
    return [[n, issubclass(getattr(w.bind, n), Exception), issubclass(getattr(w.bind, n), RuntimeError)] for n in classes]


@case
def exception_text(w):
    try:
        w.a.agent.createBackend("NOPE", {})
    except w.bind.nixlNotFoundError as e:
        return str(e).split(":")[0]


@case
def config_defaults(w):
    c = w.api.nixl_agent_config()
    n = w.bind.nixlAgentConfig()
    full = w.bind.nixlAgentConfig(True, True, 5, w.bind.NIXL_THREAD_SYNC_RW, 3, 7, 9, True)
    fields = ["useProgThread", "useListenThread", "listenPort", "syncMode", "captureTelemetry",
              "pthrDelay", "lthrDelay"]
    return [
        {k: plain(v) for k, v in vars(c).items()},
        [plain(getattr(n, f)) for f in fields],
        [plain(getattr(full, f)) for f in fields],
        outcome(w.api.nixl_agent_config, sync_mode=1),
        str(n.etcdWatchTimeout), str(full.etcdWatchTimeout), plain(list(w.api.nixl_thread_sync_t)),
        outcome(setattr, n, "listenPort", "x"), outcome(setattr, n, "nosuch", 1),
    ]


@case
def xfer_list(w):
    L = w.bind.nixlXferDList
    d = L(w.bind.DRAM_SEG, [(1000, 105, 0), (2000, 30, 0), (1010, 20, 0)])
    out = [plain(d), d.descCount(), d.isEmpty(), str(d.getType()), outcome(d.index, (2000, 30, 0)),
           outcome(d.index, (1, 1, 1)), outcome(d.index, (1000, 105))]
    e = pickle.loads(pickle.dumps(d))
    out += [e == d, e != d, plain(e), d == 5, d == None]  # noqa: E711
    d.remDesc(1)
    out += [plain(d), e == d]
    d.addDesc((7, 8, 9))
    d.append((10, 11, 12))
    d[0] = (1, 2, 3)
    out += [plain(d), outcome(d.addDesc, (1, 2)), outcome(d.addDesc, [1, 2, 3]),
            outcome(d.addDesc, (1, 2, -3)), outcome(d.addDesc, ("a", 2, 3)),
            outcome(d.addDesc, (1.5, 2, 3)), outcome(d.addDesc, (1, 2, 3, 4)),
            outcome(d.addDesc, (2**64, 2, 3)), outcome(d.addDesc, (np.int64(5), np.uint32(6), np.int8(0)))]
    out += [plain(d), outcome(d.__getitem__, -1), outcome(d.remDesc, 99), outcome(d.remDesc, -1)]
    d.clear()
    out += [d.isEmpty(), plain(d), plain(L(w.bind.DRAM_SEG)), L(w.bind.DRAM_SEG) == L(w.bind.VRAM_SEG),
            L(w.bind.DRAM_SEG, [(1, 2, 3)]) == L(w.bind.VRAM_SEG, [(1, 2, 3)]), outcome(len, d)]
    out += [plain(L(w.bind.DRAM_SEG, 2)).__len__(), outcome(hash, d)]
    return out


@case
def xfer_list_inputs(w):
    L, M = w.bind.nixlXferDList, w.bind.DRAM_SEG
    rows = [[1, 2, 3], [4, 5, 6]]
    u = np.array(rows, dtype=np.uint64)
    return [
        outcome(L, M, u), outcome(L, M, u.astype(np.int64)), outcome(L, M, u.astype(np.int32)),
        outcome(L, M, u.astype(np.float64)), outcome(L, M, u[:, ::-1]), outcome(L, M, u[0]),
        outcome(L, M, np.zeros((2, 4), np.uint64)), outcome(L, M, np.asfortranarray(u)),
        outcome(L, M, rows), outcome(L, M, [(1, 2)]), outcome(L, M, [(1, 2, 3, 4)]),
        outcome(L, M, [(1, 2, "x")]), outcome(L, M, [(-1, 2, 3)]), outcome(L, M, "abc"),
        outcome(L, 0, [(1, 2, 3)]), outcome(L, M, ((1, 2, 3),)), outcome(L, "DRAM", []),
        outcome(L, M, []), outcome(L, M, np.zeros((0, 3), np.uint64)), outcome(L, M, [(1.0, 2, 3)]),
        outcome(L, type=M, descs=[(1, 2, 3)]), outcome(L), outcome(L, M, None),
    ]


@case
def reg_list(w):
    L, M = w.bind.nixlRegDList, w.bind.DRAM_SEG
    d = L(M, [(1000, 105, 0, "a"), (2000, 30, 0, b"\x00b"), (1010, 20, 0, "")])
    e = pickle.loads(pickle.dumps(d))
    out = [plain(d), d.descCount(), e == d, plain(e), plain(d.trim()), outcome(d.index, (2000, 30, 0, b"\x00b")),
           outcome(d.index, (2000, 30, 0, "zz")), outcome(d.index, (2000, 30, 0))]
    d.remDesc(0)
    d.addDesc((5, 6, 7, "x"))
    d.append((5, 6, 7, b"y"))
    d[0] = (1, 2, 3, "zero")
    out += [plain(d), d == e, outcome(d.addDesc, (1, 2, 3)), outcome(d.addDesc, (1, 2, 3, 4)),
            outcome(d.remDesc, 99)]
    u = np.array([[1, 2, 3]], dtype=np.uint64)
    out += [outcome(L, M, u), outcome(L, M, u.astype(np.int64)), outcome(L, M, u.astype(np.int32)),
            outcome(L, M, [(1, 2, 3)]), outcome(L, M, [(1, 2, 3, 4)]), outcome(L, M, [[1, 2, 3, ""]]),
            outcome(L, M, []), outcome(L, M, np.zeros((0, 3), np.uint64)),
            L(M, [(1, 2, 3, "a")]) == L(M, [(1, 2, 3, "b")]), outcome(L, M, u[0]),
            outcome(L, M, np.zeros((1, 4), np.uint64)), L(M, [(1, 2, 3, "")]) == w.bind.nixlXferDList(M, [(1, 2, 3)])]
    d.clear()
    return out + [plain(d)]


@case
def serialised_lists(w):
    d = w.a.get_xfer_descs([(1, 2, 3)], "DRAM")
    r = w.a.get_reg_descs([(1, 2, 3, "m")], "VRAM")
    back = [w.b.deserialize_descs(w.a.get_serialized_descs(x)) for x in (d, r)]
    return [plain(back), back[0] == d, back[1] == r]


@case
def get_descs(w):
    x, r = w.a.get_xfer_descs, w.a.get_reg_descs
    u = np.array([[1, 2, 3]], dtype=np.uint64)
    xl, rl = w.bind.nixlXferDList(w.bind.DRAM_SEG), w.bind.nixlRegDList(w.bind.DRAM_SEG)
    return [
        outcome(x, [(1, 2, 3)], "DRAM"), outcome(x, [(1, 2, 3)], "cpu"), outcome(x, [(1, 2, 3)], "cuda"),
        outcome(x, [(1, 2, 3)]), outcome(x, [(1, 2, 3, 4)], "DRAM"), outcome(x, [(1, 2, 3)], "V-RAM"),
        outcome(x, u, "DRAM"), outcome(x, u), outcome(x, np.zeros((2, 5), np.uint64), "DRAM"),
        outcome(x, np.zeros((0, 3), np.uint64), "DRAM"), outcome(x, [], "DRAM"), outcome(x, None, "DRAM"),
        outcome(x, xl), outcome(x, rl), outcome(x, [[1, 2, 3]], "DRAM"), outcome(x, 5, "DRAM"),
        outcome(x, "abc", "DRAM"), x(xl) is xl,
        outcome(r, [(1, 2, 3, "")], "DRAM"), outcome(r, [(1, 2, 3)], "DRAM"), outcome(r, [(1, 2, 3, "")]),
        outcome(r, u, "FILE"), outcome(r, u), outcome(r, np.zeros((2, 5), np.uint64), "DRAM"),
        outcome(r, [], "DRAM"), outcome(r, xl), outcome(r, rl), r(rl) is rl, outcome(r, [[1]], "DRAM"),
        outcome(r, [(1, 2, 3, "")], "OBJ"), outcome(r, [(1, 2, 3, "")], "BLOCK"),
    ]


@case
def plugins(w):
    a = w.a
    return [
        sorted(a.get_plugin_list()), outcome(a.get_plugin_mem_types, "UCX"), outcome(a.get_plugin_params, "UCX"),
        outcome(a.get_plugin_mem_types, "NOPE"), outcome(a.get_plugin_params, "NOPE"),
        outcome(a.get_backend_mem_types, "UCX"), outcome(a.get_backend_params, "UCX"),
        outcome(a.get_backend_mem_types, "NOPE"), outcome(a.get_backend_params, "NOPE"),
        outcome(a.create_backend, "NOPE"), outcome(a.create_backend, "UCX"), list(a.backends),
        outcome(a.agent.getPluginParams, "NOPE"), outcome(a.agent.getBackendParams, a.backends["UCX"]),
        isinstance(a.agent.createBackend("POSIX", {"no_such_key": "1"}), int), sorted(a.agent.getAvailPlugins()),
        isinstance(a.backends["UCX"], int),
    ]


@case
def registration(w):
    a = w.a
    m = np.zeros(8192, np.uint8)
    p = m.ctypes.data
    out = [outcome(a.register_memory, [(p, 4096, 0, "")], "DRAM"),
           outcome(a.register_memory, [(p, 4096, 0, "")], "DRAM"),
           outcome(a.register_memory, [(p, 4096, 0, "")], "DRAM", ["NOPE"]),
           outcome(a.register_memory, [(p, 4096, 0, "")], "DRAM", ["UCX"]),
           outcome(a.register_memory, [(p, 4096)], "DRAM"),
           outcome(a.register_memory, [(1, 2, 3)], "DRAM"),
           outcome(a.register_memory, [(p, 4096, 0, "")], "BLOCK")]
    out = [o if not isinstance(o, list) else o[0] for o in out]
    r = a.get_reg_descs([(p, 4096, 0, "")], "DRAM")
    out += [outcome(a.deregister_memory, r, ["NOPE"]), outcome(a.deregister_memory, r), outcome(a.deregister_memory, None),
            outcome(a.deregister_memory, a.get_reg_descs([(p + 4096, 100, 0, "")], "DRAM")),
            outcome(a.agent.registerMem, r), outcome(a.agent.deregisterMem, r, [])]
    return out


@case
def empty_registration(w):
    empty = w.bind.nixlRegDList(w.bind.DRAM_SEG)
    return [outcome(w.a.agent.registerMem, empty), outcome(w.a.agent.deregisterMem, empty)]


@case
def query(w):
    api = w.api
    agent = api.nixl_agent("query", api.nixl_agent_config(False, backends=[]))
    agent.create_backend("POSIX", agent.get_plugin_params("POSIX"))
    me = os.path.abspath(__file__)
    got = agent.query_memory([(0, 0, 0, me), (0, 0, 0, "/no/such/file")], "POSIX", "FILE")
    return [
        got[0]["size"] == str(os.path.getsize(me)), sorted(got[0]), got[1], type(got).__name__,
        outcome(agent.query_memory, [(0, 0, 0, me)], "NOPE", "FILE"),
        outcome(agent.agent.queryMem, w.bind.nixlRegDList(w.bind.FILE_SEG), agent.backends["POSIX"]),
        sorted(agent.get_backend_mem_types("POSIX")), outcome(agent.get_plugin_params, "POSIX"),
    ]


def prep(w, blocks=16, size=256):
    local = [(w.addr_a + i * size, size, 0) for i in range(blocks)]
    remote = [(w.addr_b + i * size, size, 0) for i in range(blocks)]
    return (w.a.prep_xfer_dlist("NIXL_INIT_AGENT", local, "DRAM"),
            w.a.prep_xfer_dlist("case-b", remote, "DRAM"))


@case
def prepared_read(w):
    w.mem_a[:] = 0
    mine, r = prep(w)
    h = w.a.make_prepped_xfer("READ", mine, [3, 1], r, [0, 5], b"done")
    early = outcome(w.a.check_xfer_state, h)
    first = w.a.transfer(h)
    state = w.finish(h)
    heard = w.notification(w.b, "case-a", b"done")
    ok = (w.mem_a[768:1024] == w.mem_b[0:256]).all() and (w.mem_a[256:512] == w.mem_b[1280:1536]).all()
    rest = w.mem_a.copy()
    rest[768:1024] = 0
    rest[256:512] = 0
    out = [early, first in ("DONE", "PROC"), state, heard, bool(ok), bool((rest == 0).all()),
           outcome(w.a.query_xfer_backend, h), repr(h).startswith("nixl_xfer_handle(0x"),
           repr(h).endswith("released=False)"), repr(mine).startswith("nixl_prepped_dlist_handle(0x")]
    w.a.release_xfer_handle(h)
    out += [repr(h).endswith("released=True)"), outcome(w.a.release_xfer_handle, h), outcome(h.release)]
    w.a.release_dlist_handle(mine)
    r.release()
    return out + [outcome(mine.release), type(h).__name__, type(mine).__name__]


@case
def index_inputs(w):
    mine, r = prep(w)
    make = w.a.make_prepped_xfer

    def run(left, right, **kw):
        w.mem_a[:4096] = 0
        h = make("READ", mine, left, r, right, **kw)
        w.a.transfer(h)
        state = w.finish(h)
        h.release()
        return [state, int(w.mem_a[:4096].astype(np.uint64).sum())]

    i32 = np.array([2, 4], dtype=np.int32)
    return [
        outcome(run, [2, 4], [4, 2]), outcome(run, (2, 4), (4, 2)), outcome(run, i32, i32),
        outcome(run, i32.astype(np.uint32), i32.astype(np.int64)), outcome(run, i32, [2, 4]),
        outcome(run, np.array([0, 1, 2, 3], np.int32)[::2], [1, 2]), outcome(run, range(2), [0, 1]),
        outcome(run, i32.reshape(1, 2), [0, 1]), outcome(run, i32.astype(np.float64), [0, 1]),
        outcome(run, [0, 1], [0]), outcome(run, [], []), outcome(run, [16], [0]), outcome(run, [0], [16]),
        outcome(run, [-1], [0]), outcome(run, ["a"], [0]), outcome(run, [1.5], [0]), outcome(run, [2**31], [0]),
        outcome(run, None, [0]), outcome(run, 3, [0]), outcome(run, [np.int64(3)], [np.int32(1)]),
        outcome(run, [0, 1, 2, 3], [4, 5, 6, 7], skip_desc_merge=True), outcome(run, [0], [0], backends=["UCX"]),
        outcome(run, [0], [0], backends=["NOPE"]), outcome(run, [0, 0], [1, 1]), outcome(run, {1, 2}, [0, 1]),
        outcome(run, [True], [False]), outcome(run, np.array([], np.int32), []), outcome(run, b"\x01", [0]),
    ]


@case
def operations(w):
    mine, r = prep(w)
    make = w.a.make_prepped_xfer
    return [outcome(make, "RD", mine, [0], r, [0]), outcome(make, "read", mine, [0], r, [0]),
            outcome(make, "READ", None, [0], r, [0]), outcome(make, "RD", 0, [], 0, []),
            outcome(w.a.initialize_xfer, "WR", None, None, "x"),
            outcome(make, "READ", mine, [0], r, [0], "text"), outcome(make, "READ", mine, [0], r, [0], 5),
            outcome(w.a.agent.makeXferReq, w.bind.NIXL_READ, mine._handle, [0], r._handle, [0]).__class__.__name__,
            outcome(w.a.agent.makeXferReq, 0, mine._handle, [0], r._handle, [0])]


@case
def prepare_inputs(w):
    p, A, B = w.a.prep_xfer_dlist, w.addr_a, w.addr_b
    u = np.array([[A, 256, 0], [A + 256, 256, 0]], dtype=np.uint64)
    s = np.array([[A, 128, 0, 256, 4], [A + 4096, 64, 0, 64, 2]], dtype=np.uint64)
    return [
        outcome(p, "", u, "DRAM"), outcome(p, "NIXL_INIT_AGENT", u.astype(np.int64), "DRAM"),
        outcome(p, "", u), outcome(p, "", [(A, 1, 0)], "DRAM", ["UCX"]), outcome(p, "", [(A, 1, 0)], "DRAM", ["NOPE"]),
        outcome(p, "nobody", u, "DRAM"), outcome(p, "case-a", u, "DRAM"), outcome(p, b"case-b", [(B, 8, 0)], "DRAM"),
        outcome(p, "case-b", [(B, 8, 0)], "DRAM"), outcome(p, "case-b", [(B + w.SIZE, 8, 0)], "DRAM"),
        outcome(p, "", [(A + w.SIZE - 4, 8, 0)], "DRAM"), outcome(p, "", [(1, 8, 0)], "DRAM"),
        outcome(p, "", s, "DRAM"), outcome(p, "", s.astype(np.int64), "DRAM"), outcome(p, "", s),
        outcome(p, "", s, "V-RAM"), outcome(p, "", s.astype(np.int32), "DRAM"), outcome(p, "", s[:, ::-1], "DRAM"),
        outcome(p, "", np.array([[A, 128, 0, 256, 0]], np.uint64), "DRAM"),
        outcome(p, "", np.array([[A, 128, 0, 256, 1000]], np.uint64), "DRAM"),
        outcome(p, "", np.zeros((0, 5), np.uint64), "DRAM"), outcome(p, "", [], "DRAM"),
        outcome(p, "", np.zeros((0, 3), np.uint64), "DRAM"), outcome(p, "", w.a.get_xfer_descs(u, "DRAM")),
        outcome(p, "case-b", [(B, 8, 0)], "VRAM"),
        outcome(p, "", np.asfortranarray(s), "DRAM"), outcome(p, "", [(A, 8, 1)], "DRAM"),
    ]


@case
def strided_read(w):
    w.mem_a[:] = 0
    s = np.array([[w.addr_a, 128, 0, 256, 4], [w.addr_a + 4096, 128, 0, 128, 4]], dtype=np.uint64)
    t = np.array([[w.addr_b + 512, 128, 0, 512, 8]], dtype=np.uint64)
    mine, r = w.a.prep_xfer_dlist("", s, "DRAM"), w.a.prep_xfer_dlist("case-b", t, "DRAM")
    h = w.a.make_prepped_xfer("READ", mine, list(range(8)), r, [7, 6, 5, 4, 3, 2, 1, 0])
    w.a.transfer(h)
    state = w.finish(h)
    good = True
    for i in range(8):
        at = i * 256 if i < 4 else 4096 + (i - 4) * 128
        src = 512 + (7 - i) * 512
        good &= bool((w.mem_a[at:at + 128] == w.mem_b[src:src + 128]).all())
    return [state, good, outcome(w.a.make_prepped_xfer, "READ", mine, [8], r, [0])]


@case
def loopback(w):
    w.mem_a[:] = 0
    w.mem_a[:64] = 9
    mine = w.a.prep_xfer_dlist("", [(w.addr_a, 64, 0)], "DRAM")
    r = w.a.prep_xfer_dlist("case-a", [(w.addr_a + 4096, 64, 0)], "DRAM")
    h = w.a.make_prepped_xfer("WRITE", mine, [0], r, [0], b"self")
    w.a.transfer(h)
    return [w.finish(h), int(w.mem_a[4096:4160].sum()), w.notification(w.a, "case-a", b"self")]


@case
def unequal_lengths(w):
    mine = w.a.prep_xfer_dlist("", [(w.addr_a, 64, 0)], "DRAM")
    r = w.a.prep_xfer_dlist("case-b", [(w.addr_b, 128, 0)], "DRAM")
    x = w.a.get_xfer_descs
    one, two = x([(w.addr_a, 64, 0)], "DRAM"), x([(w.addr_b, 64, 0), (w.addr_b + 64, 64, 0)], "DRAM")
    longer = x([(w.addr_b, 128, 0)], "DRAM")
    return [outcome(w.a.make_prepped_xfer, "READ", mine, [0], r, [0]),
            outcome(w.a.initialize_xfer, "READ", one, two, "case-b"),
            outcome(w.a.initialize_xfer, "READ", one, longer, "case-b")]


@case
def swapped_lists(w):
    mine, r = prep(w)
    return [outcome(w.a.make_prepped_xfer, "READ", r, [0], mine, [0]), outcome(w.a.make_prepped_xfer, "READ", mine, [0], mine, [0])]


@case
def direct(w):
    x, init = w.a.get_xfer_descs, w.a.initialize_xfer
    mine = x([(w.addr_a, 64, 0), (w.addr_a + 128, 64, 0)], "DRAM")
    r = x(np.array([[w.addr_b, 64, 0], [w.addr_b + 1024, 64, 0]], np.uint64), "DRAM")
    w.mem_a[:] = 0
    h = init("READ", mine, r, "case-b", b"direct")
    early = outcome(w.a.check_xfer_state, h)
    w.a.transfer(h)
    state = w.finish(h)
    ok = bool((w.mem_a[:64] == w.mem_b[:64]).all() and (w.mem_a[128:192] == w.mem_b[1024:1088]).all())
    again = w.a.transfer(h, b"second") in ("DONE", "PROC")
    w.finish(h)
    heard = [w.notification(w.b, "case-a", b"direct"), w.notification(w.b, "case-a", b"second")]
    empty = w.bind.nixlXferDList(w.bind.DRAM_SEG)
    return [early, state, ok, again, heard,
            outcome(init, "READ", mine, r, "nobody"), outcome(init, "READ", mine, r, b"case-b"),
            outcome(init, "READ", None, r, "case-b"), outcome(init, "READ", [(1, 2, 3)], r, "case-b"),
            outcome(init, "READ", mine, r, "case-b", backends=["NOPE"]), outcome(init, "READ", empty, empty, "case-b"),
            outcome(init, "READ", x([(5, 6, 0)], "DRAM"), x([(w.addr_b, 6, 0)], "DRAM"), "case-b"),
            outcome(init, "READ", x([(w.addr_a, 6, 0)], "DRAM"), x([(6, 6, 0)], "DRAM"), "case-b"),
            outcome(init, "READ", x([(w.addr_a, 6, 0)], "DRAM"), x([(w.addr_b, 6, 0)], "VRAM"), "case-b"),
            outcome(init, "WRITE", mine, mine, "case-a")]


@case
def notifications(w):
    a, b = w.a, w.b
    for agent in (a, b):
        agent.get_new_notifs()
        agent.notifs.clear()
    a.send_notif("case-b", b"one")
    a.send_notif("case-b", "two")
    a.send_notif("case-b", b"\x00\xff raw")
    got, end = [], time.monotonic() + 20
    while len(got) < 3 and time.monotonic() < end:
        a.get_new_notifs()
        got += b.get_new_notifs().get("case-a", [])
    out = [plain(got), plain(a.get_new_notifs()), outcome(a.send_notif, "nobody", b"x"),
           outcome(a.send_notif, "case-b", 5), outcome(a.send_notif, "case-b", b"x", "NOPE"),
           outcome(a.send_notif, "case-b", b"via"),
           outcome(a.get_new_notifs, ["UCX"]), outcome(a.get_new_notifs, ["NOPE"])]
    a.send_notif("case-b", b"prefix-1")
    a.send_notif("case-b", b"has-tag-inside")
    out += [w.notification(b, "case-a", b"prefix"), w.notification(b, "case-a", b"tag", tag_is_prefix=False),
            outcome(b.check_remote_xfer_done, "case-a", b"absent"), outcome(b.check_remote_xfer_done, "nobody", b""),
            outcome(b.agent.getNotifs, {"case-a": [b"kept"]}), outcome(b.agent.getNotifs, {"x": ["str"]}),
            outcome(b.agent.getNotifs, None), outcome(b.agent.getNotifs, {}, ["x"])]
    return out


@case
def empty_notification(w):
    w.a.send_notif("case-b", b"")
    w.a.send_notif("case-b", b"after-empty")
    got, end = [], time.monotonic() + 20
    while b"after-empty" not in got and time.monotonic() < end:
        got += w.b.get_new_notifs().get("case-a", [])
    return plain([g for g in got if g in (b"", b"after-empty")])


@case
def telemetry(w):
    mine, r = prep(w)
    h = w.a.make_prepped_xfer("READ", mine, [0], r, [0])
    w.a.transfer(h)
    w.finish(h)
    config = w.api.nixl_agent_config(False, capture_telemetry=True)
    t = w.api.nixl_agent("telem", config)
    m = np.zeros(4096, np.uint8)
    t.register_memory([(m.ctypes.data, 4096, 0, "")], "DRAM")
    t.add_remote_agent(w.b.get_agent_metadata())
    x = t.get_xfer_descs
    k = t.initialize_xfer("READ", x([(m.ctypes.data, 64, 0), (m.ctypes.data + 512, 64, 0)], "DRAM"),
                          x([(w.addr_b, 64, 0), (w.addr_b + 512, 64, 0)], "DRAM"), "case-b")
    t.transfer(k)
    end = time.monotonic() + 20
    while t.check_xfer_state(k) != "DONE" and time.monotonic() < end:
        w.b.update_notifs()
    got = t.get_xfer_telemetry(k)
    empty = w.bind.nixlXferTelemetry()
    return [outcome(w.a.get_xfer_telemetry, h), got.totalBytes, got.descCount, got.startTime > 0,
            got.xferDuration >= got.postDuration, type(got.startTime).__name__, type(got).__name__,
            outcome(setattr, got, "totalBytes", 1), type(empty.totalBytes).__name__]


@case
def cost(w):
    mine, r = prep(w)
    h = w.a.make_prepped_xfer("READ", mine, [0], r, [0])
    got = w.a.estimate_xfer_cost(h)
    return [type(got).__name__, len(got), got[2], [type(v).__name__ for v in got[:2]], got[0] > 0]


@case
def metadata(w):
    a, b = w.a, w.b
    blob = b.get_agent_metadata()
    out = [type(blob).__name__, outcome(a.add_remote_agent, blob), outcome(a.add_remote_agent, b""),
           outcome(a.add_remote_agent, b"garbage"), outcome(a.add_remote_agent, blob[: len(blob) // 2]),
           outcome(a.add_remote_agent, 5), outcome(a.add_remote_agent, a.get_agent_metadata()),
           outcome(a.add_remote_agent, blob[:10])]
    return out


@case
def partial_metadata(w):
    api = w.api
    config = api.nixl_agent_config(False)
    c, d = api.nixl_agent("part-c", config), api.nixl_agent("part-d", config)
    m = np.zeros(8192, np.uint8)
    p = m.ctypes.data
    one = d.register_memory([(p, 1024, 0, "")], "DRAM")
    two = d.register_memory([(p + 4096, 1024, 0, "")], "DRAM")
    c.register_memory([(w.addr_a, 4096, 0, "")], "DRAM")
    blob = d.get_partial_agent_metadata(one, inc_conn_info=True)
    out = [type(blob).__name__, outcome(c.check_remote_metadata, "part-d"), outcome(c.add_remote_agent, blob),
           outcome(c.check_remote_metadata, "part-d"), outcome(c.check_remote_metadata, "part-d", one.trim()),
           outcome(c.check_remote_metadata, "part-d", two.trim())]
    x = c.get_xfer_descs
    src = x([(w.addr_a, 64, 0)], "DRAM")
    out += [outcome(c.initialize_xfer, "READ", src, x([(p, 64, 0)], "DRAM"), "part-d"),
            outcome(c.initialize_xfer, "READ", src, x([(p + 4096, 64, 0)], "DRAM"), "part-d"),
            outcome(c.add_remote_agent, d.get_partial_agent_metadata(two)),
            outcome(c.initialize_xfer, "READ", src, x([(p + 4096, 64, 0)], "DRAM"), "part-d"),
            outcome(d.get_partial_agent_metadata, one, True, ["UCX"]).startswith("bytes:"),
            outcome(d.get_partial_agent_metadata, one, True, ["NOPE"])]
    e = api.nixl_agent("part-e", config)
    empty = w.bind.nixlRegDList(w.bind.DRAM_SEG)
    conn = outcome(d.get_partial_agent_metadata, empty, True)
    out += [conn.startswith("bytes:"), outcome(e.add_remote_agent, d.get_partial_agent_metadata(empty, True)),
            outcome(e.check_remote_metadata, "part-d"), outcome(e.send_notif, "part-d", b"hi"),
            outcome(d.get_partial_agent_metadata, d.get_reg_descs([(1, 2, 0, "")], "DRAM"), True),
            outcome(d.get_partial_agent_metadata, empty, False)[:6], outcome(d.get_partial_agent_metadata, None)]
    return out


@case
def removing(w):
    api = w.api
    config = api.nixl_agent_config(False)
    c, d = api.nixl_agent("rem-c", config), api.nixl_agent("rem-d", config)
    c.add_remote_agent(d.get_agent_metadata())
    return [outcome(c.remove_remote_agent, "nobody"), outcome(c.remove_remote_agent, "rem-d"),
            outcome(c.remove_remote_agent, "rem-d"), outcome(c.check_remote_metadata, "rem-d"),
            outcome(c.send_notif, "rem-d", b"x"), outcome(c.check_remote_metadata, "nobody"),
            outcome(c.remove_remote_agent, b"rem-d"), outcome(c.agent.invalidateRemoteMD, "nobody"),
            outcome(c.agent.checkRemoteMD, "nobody", w.bind.nixlXferDList(w.bind.DRAM_SEG)),
            outcome(c.remove_remote_agent, "rem-c"), outcome(c.check_remote_metadata, "rem-c")]


@case
def connecting(w):
    return [outcome(w.a.make_connection, "case-b"), outcome(w.a.make_connection, "nobody"),
            outcome(w.a.make_connection, "case-b", ["UCX"]), outcome(w.a.make_connection, "case-b", ["NOPE"])]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@case
def listener(w):
    api = w.api
    port = free_port()
    d = api.nixl_agent("listen-d", api.nixl_agent_config(True, True, port))
    c = api.nixl_agent("listen-c", api.nixl_agent_config(True, True, 0))
    out = [outcome(c.fetch_remote_metadata, "listen-d", "127.0.0.1", port),
           outcome(c.send_local_metadata, "127.0.0.1", port)]
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if c.check_remote_metadata("listen-d") and d.check_remote_metadata("listen-c"):
            break
        time.sleep(0.005)
    out += [c.check_remote_metadata("listen-d"), d.check_remote_metadata("listen-c"),
            outcome(c.send_local_metadata), outcome(c.fetch_remote_metadata, "listen-d"),
            outcome(c.invalidate_local_metadata), outcome(c.invalidate_local_metadata, "127.0.0.1", port)]
    while d.check_remote_metadata("listen-c") and time.monotonic() < end:
        time.sleep(0.005)
    out += [d.check_remote_metadata("listen-c"), outcome(w.a.send_local_metadata, "127.0.0.1", port),
            outcome(w.a.fetch_remote_metadata, "x", "127.0.0.1", port), outcome(w.a.send_local_metadata)]
    return out


@case
def reposting(w):
    mine, r = prep(w)
    h = w.a.make_prepped_xfer("READ", mine, [0], r, [0], b"rp")
    out = []
    for _ in range(3):
        w.a.transfer(h)
        out += [w.finish(h), w.notification(w.b, "case-a", b"rp")]
    w.a.transfer(h, b"other")
    out += [w.finish(h), w.notification(w.b, "case-a", b"other")]
    return out


@case
def deregister_then_use(w):
    m = np.zeros(4096, np.uint8)
    reg = w.a.register_memory([(m.ctypes.data, 4096, 0, "")], "DRAM")
    w.a.deregister_memory(reg)
    return [outcome(w.a.prep_xfer_dlist, "", [(m.ctypes.data, 64, 0)], "DRAM")]


@case
def handles_alone(w):
    H = w.api.nixl_xfer_handle
    return [H.__slots__ is not None, outcome(w.a.check_xfer_state, None), outcome(w.a.transfer, 5),
            outcome(w.a.release_xfer_handle, None)]


@case
def tensors(w):
    torch = install_fake_torch()
    t = torch.Tensor(w.mem_a[:1024], -1)
    u = torch.Tensor(w.mem_a[1024:2048], -1)
    odd = torch.Tensor(w.mem_a[::2], -1, contiguous=False)
    gpu = torch.Tensor(w.mem_a[:64], 0)
    base = w.addr_a

    def shifted(value):
        """Addresses differ between runs; offsets do not."""
        if value is None:
            return None
        rows = [value[i] for i in range(value.descCount())]
        return [str(value.getType()), *([d[0] - base, *map(plain, d[1:])] for d in rows)]

    x, r = w.a.get_xfer_descs, w.a.get_reg_descs
    inputs = [t, [t, u], odd, [t, odd], gpu, [gpu, gpu], [t, gpu]]
    return [shifted(make(tensors)) for make in (x, r) for tensors in inputs]


def install_fake_torch():
    """As much of torch as NIXL looks at, so that tensors can be tested without 200 MB of it."""
    import types

    torch = types.ModuleType("torch")

    class Tensor:
        def __init__(self, array, device, contiguous=True):
            self.array, self.index, self.contiguous = array, device, contiguous
            self.device = "cpu" if device < 0 else f"cuda:{device}"

        def is_contiguous(self):
            return self.contiguous

        def data_ptr(self):
            return self.array.ctypes.data

        def numel(self):
            return self.array.size

        def element_size(self):
            return self.array.itemsize

        def get_device(self):
            return self.index

        def __getitem__(self, i):
            return self.array[i]

    torch.Tensor = Tensor
    sys.modules["torch"] = torch
    return torch


def main(package):
    world = World(package)
    results = {}
    for function in CASES:
        try:
            results[function.__name__] = plain(function(world))
        except Exception as e:
            results[function.__name__] = f"case failed: {type(e).__name__}: {e}"
    sys.stdout.flush()
    with os.fdopen(3, "w") as out:
        json.dump(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
