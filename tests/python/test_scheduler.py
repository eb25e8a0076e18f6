"""The scheduler half of the connector in Python: marshalling, and what it costs a step."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from array import array
from types import SimpleNamespace

import numpy as np
import pytest

import kvferry
from kvferry import Finish, Finished, Keep, RequestBlocks, Scheduler, SchedulerStats, TransferGroup, _ffi
from kvferry import scheduler as scheduler_module
from kvferry.errors import InvalidArgumentError, InvalidHandleError, InvalidStateError, NotSupportedError

FULL = TransferGroup("full", 16)
TO_PRODUCER = {"do_remote_decode": True, "do_remote_prefill": False}
FROM_PRODUCER = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": ([1, 2, 3],),
    "remote_engine_id": "prefill", "remote_request_id": "p", "remote_host": "p-host",
    "remote_port": 5700, "tp_size": 2, "remote_num_tokens": 40,
}
NOTHING = SchedulerStats(0, 0, 0, 0, 0, 0)


def make(**options) -> Scheduler:
    return Scheduler("me", "127.0.0.1", options.pop("groups", [FULL]), **options)


def number(value: int) -> bytes:
    """As in a step: LEB128."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def after_clock(step: bytes) -> tuple[int, bytes]:
    """The sections that a step has, as bits, and what follows the clock."""
    assert step[0] == 1
    rest = step[2:]
    while rest[0] & 0x80:
        rest = rest[1:]
    return step[1], rest[1:]


def test_a_request_on_both_sides():
    since = time.time_ns() // 1000
    with make() as s:
        assert s.add("p", TO_PRODUCER, 40) == 0
        assert s.match("p", 40, 0) == 0
        assert s.allocated("p", [[1, 2, 3]]) is False
        end = s.finished("p", "length", [[1, 2, 3]], 40)
        slot, generation = end.params.pop("kvferry_lease")
        assert slot == 0 and since <= generation <= time.time_ns() // 1000
        assert end == Finished(Keep.UNTIL_SENT, {
            "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]],
            "remote_engine_id": "me", "remote_request_id": "p", "remote_host": "127.0.0.1",
            "remote_port": 0, "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 40,
            "remote_blocks_expiry_time": None, "transfer_mode": "pull",
        })
        s.add("d", end.params | {"remote_engine_id": "other"}, 40)
        assert s.match("d", 40, 16) == 24
        assert s.allocated("d", [RequestBlocks([8, 9], 1)], 24) is True
        assert s.stats() == SchedulerStats(1, 1, 1, 1, 1, 1)
        sections, rest = after_clock(s.build_step())
        assert sections == 0b100111  # receives, holds, in_batch, heartbeats
        # local: one group, its first block 1, two blocks: 8 from 0 is +8, 9 is expected
        assert number(1) + number(1) + number(2) + number(16) + number(0) in rest
        s.received(["d"])
        s.sent({"p"})
        assert s.finished("d", Finish.STOP, [[7, 8, 9]], 41) == Finished(Keep.NO, None)
        assert s.stats() == NOTHING
        assert after_clock(s.build_step()) == (0, b"")


@pytest.mark.parametrize("ids", [
    [5, 6, 70000], (5, 6, 70000), array("I", [5, 6, 70000]), np.array([5, 6, 70000], np.uint32),
    np.array([5, 0, 6, 0, 70000], np.uint32)[::2], np.array([5, 6, 70000], np.int64),
])
def test_block_ids_of_every_kind(ids):
    with make() as s:
        s.add("p", TO_PRODUCER, 40)
        end = s.finished("p", "stop", [ids], 40)
        assert end.params["remote_block_ids"] == [[5, 6, 70000]]


@pytest.mark.parametrize("quick", [False, True])
def test_parameters_of_every_kind(quick, monkeypatch):
    # With msgspec in the process and without.
    encode = pytest.importorskip("msgspec").json.encode if quick else None
    loaded = SimpleNamespace(json=SimpleNamespace(encode=encode)) if quick else None
    monkeypatch.setitem(sys.modules, "msgspec", loaded)
    usable = [
        FROM_PRODUCER, json.dumps(FROM_PRODUCER), json.dumps(FROM_PRODUCER).encode(),
        FROM_PRODUCER | {"remote_block_ids": [np.arange(3)]}, FROM_PRODUCER | {"else": object()},
    ]
    local = [None, {}, FROM_PRODUCER | {"remote_host": None}, FROM_PRODUCER | {"tp_size": 1.5},
             FROM_PRODUCER | {"remote_block_ids": object()}, "{", {"do_remote_prefill": True}]
    with make() as s:
        for i, params in enumerate(usable + local):
            assert s.add(str(i), params, 40) == 0
            assert s.match(str(i), 40, 0) == (40 if i < len(usable) else 0), params


def test_options():
    with make(backoff_tokens=2, lease=12) as s:
        assert s.add("p", TO_PRODUCER, 40) == 2
        assert s.add("q", TO_PRODUCER, 40, reads_prefix_cache=False) == 0
    groups = [FULL, TransferGroup(kvferry.GroupKind.SLIDING_WINDOW, 16, 32), TransferGroup("state", scratch_blocks=1)]
    with make(groups=groups, clip=True) as s:
        s.add("p", TO_PRODUCER, 80)
        end = s.finished("p", "length", [[1, 2, 3, 4, 5], [0, 11, 12, 13, 14], [20, 21, 22]], 80)
        assert end.params["remote_block_ids"] == [[1, 2, 3, 4, 5], [12, 13, 14], [21]]
    with make(mode="push", port=5600) as s:
        assert s.address == ("127.0.0.1", 5600)
        s.add("p", TO_PRODUCER, 40)
        assert s.finished("p", "length", [[1]], 16).params["transfer_mode"] == "push"
        assert s.has_pending()
        s.sent(["p"])
        assert not s.has_pending()
    turn = FROM_PRODUCER | {"do_remote_prefill": False, "do_remote_decode": True}
    for threshold, tokens in ((64, 0), (0, 40), (41, 0)):
        with make(bidirectional=True, recompute_threshold=threshold) as s:
            s.add("p", turn, 100)
            assert s.match("p", 100, 0) == tokens


def test_what_is_refused():
    for options, part in [
        ({"groups": []}, "0 transfer groups"),
        ({"groups": [TransferGroup("sliding_window", 16)]}, "window of 0"),
        ({"groups": [TransferGroup("cubic", 16)]}, "cubic"),
        ({"groups": [TransferGroup("full", -1)]}, "-1"),
        ({"tp_size": 5000}, "tp_size 5000"),
        ({"port": 70000}, "70000"),
        ({"mode": "shove"}, "shove"),
        ({"lease": -1}, "lease is -1"),
    ]:
        with pytest.raises(InvalidArgumentError, match=part):
            make(**options)
    with pytest.raises(NotSupportedError):
        make(mode="push", bidirectional=True)
    with make() as s:
        s.add("p", TO_PRODUCER, 40)
        for blocks in ([[1], [2]], [[-1]], [["a"]], [RequestBlocks([1], -1)]):
            with pytest.raises(InvalidArgumentError):
                s.finished("p", "length", blocks, 16)
        with pytest.raises(InvalidArgumentError):
            s.finished("p", "somehow")
        with pytest.raises(InvalidArgumentError, match="NUL"):
            s.match("p\0q", 1, 0)
        with pytest.raises(InvalidArgumentError, match="request_id .* contains a NUL"):
            s.add("p\0q", TO_PRODUCER, 1)
        s.finished("p", "length", [[1]], 16)
        with pytest.raises(InvalidStateError, match="still kept"):
            s.add("p", TO_PRODUCER, 40)
        s.sent(["p"])
        assert s.add("p", TO_PRODUCER, 40) == 0
        with pytest.raises(TypeError):
            s.sent("p")
    with pytest.raises(InvalidHandleError):
        s.build_step()
    s.close()


def test_block_lists_are_the_structs_of_c():
    where, count, _keep = scheduler_module._blocks([RequestBlocks(array("I", [7, 8]), 3), [9]])
    structs = (_ffi.kvf_request_blocks * count).from_address(where)
    assert [(s.len, s.first, s.reserved) for s in structs] == [(2, 3, 0), (1, 0, 0)]
    assert list((ctypes.c_uint32 * 2).from_address(structs[0].ids)) == [7, 8]


def test_it_ends_with_its_object():
    s = make()
    handle = s.handle
    del s
    gc.collect()
    assert _ffi.lib.kvf_scheduler_destroy(handle) == _ffi.CONSTANTS["KVF_ERR_INVALID_HANDLE"]
