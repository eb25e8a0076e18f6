"""Layouts and plans: the worked example of docs/plan.md and what Python adds to C. Expected addresses are
worked out beside them."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

import kvferry
from kvferry import (
    DenseLayers, Direction, Group, GroupBlocks, GroupGeometry, GroupKind, GroupSide, KvPlacement, Lane,
    LaneInner, LaneSide, LatentLayers, Layout, PageOrder, Parallel, Part, Peer, PeerRole, Plan, Range,
    Region, Role, StateLayers, SubProjection,
)
from kvferry.errors import InvalidArgumentError, MismatchError, PeerIncompatibleError


def rank(tp_rank: int, tp: int, base: int, heads: int = 8, tokens: int = 2, pages: int = 32) -> Layout:
    """K and V of one layer, K before V in a page, head-major, heads of 8 bytes."""
    return Layout(
        Parallel(tp_rank, tp),
        [Group("full", tokens)],
        dense=[DenseLayers(heads, 8, 1, [Region(base, pages)], order="hnd", kv="planes")],
    )


def four_to_two(tp_rank: int = 0, **options) -> Plan:
    """Prefill TP 4 at 0x100000 and on, decode TP 2 at 0x10000."""
    return Plan(rank(tp_rank, 2, 0x10000), [rank(r, 4, 0x100000 * (r + 1)) for r in range(4)], **options)


# ---------------------------------------------------------------------------- layouts


def test_a_dense_layout_has_the_tables_that_its_shape_says():
    layout = rank(1, 4, 0x1000, tokens=16)
    assert layout.parallel == Parallel(1, 4)
    assert layout.groups == [Group(GroupKind.FULL, 16)]
    # 2 heads of 16 tokens of 8 bytes, for K and for V.
    assert layout.regions == [Region(0x1000, 32, 512, 512)]
    k = Part(0, 0, 0, Role.K, 0, 8, 2, 2, 16, 128, 8, 8, 1)
    assert layout.parts == [k, k._replace(role=Role.V, offset=256)]


def test_every_kind_of_layer():
    groups = [Group(GroupKind.FULL, 16), Group("mla", 32, kernel_blocks=2), Group("state")]
    layout = Layout(
        Parallel(1, 2), groups,
        dense=[DenseLayers(4, 8, 2, [Region(0x1000, 9), Region(0x9000, 9)], layers=[0, 3], v_head_size=6,
                           order=PageOrder.NHD, kv=KvPlacement.CELLS)],
        latent=[LatentLayers(576, 2, [Region(0x20000, 4)], group=1, first_layer=1)],
        state=[StateLayers(4, 40, 4, [Region(0x50000, 5)], [SubProjection(8), (2, 4)], 3, 2,
                           conv_order="rows_first", group=2, first_layer=2)],
    )
    parts = {(p.layer, p.role): p for p in layout.parts}
    assert parts[3, Role.V].offset == 16 and parts[3, Role.V].cell_bytes == 12
    assert parts[1, Role.LATENT].rows == 16 and parts[1, Role.LATENT].cell_bytes == 1152
    assert parts[2, Role.CONV + 1].head_first == 4 and parts[2, Role.CONV + 1].row_stride == 16
    assert parts[2, Role.SSM].offset == 48 and parts[2, Role.SSM].head_first == 2
    assert layout.groups[2] == Group(GroupKind.STATE, 1)
    # The same layout from its own tables.
    again = Layout(layout.parallel, layout.groups, regions=layout.regions, parts=layout.parts)
    assert again.encode() == layout.encode()
    assert Layout.decode(layout.encode()).encode() == layout.encode()
    assert layout.to_dict()["parts"] == again.to_dict()["parts"]
    assert "rank 1 of 2" in layout.describe()


def test_layouts_travel_as_bytes():
    data = rank(0, 2, 0x1000).encode()
    for cut in range(len(data)):
        with pytest.raises(PeerIncompatibleError):
            Layout.decode(data[:cut])
    with pytest.raises(PeerIncompatibleError):
        Layout.decode(data + b"\0")


@pytest.mark.parametrize(("make", "names"), [
    (lambda: rank(4, 4, 0), "tp_rank 4"),
    (lambda: rank(0, 3, 0), "heads 8 and tp_size 3"),
    (lambda: rank(0, 1, 0, tokens=0), "tokens_per_block"),
    (lambda: rank(0, 1, 2**64 - 8), "wraps around"),
    (lambda: rank(0, 1, 2**64), "base is 18446744073709551616"),
    (lambda: rank(0, 1, -1), "base is -1"),
    (lambda: rank(0, 2**32, 0), "tp_size is 4294967296"),
    (lambda: rank(0, 1, 0, pages="9"), "page_count is '9'"),
    (lambda: Layout(groups=[Group("round")]), "GroupKind 'round' is not known"),
    (lambda: Layout(groups=[Group(9, 16)]), "group kind 9"),
    (lambda: Layout(dense=[DenseLayers(8, 8, 1, [Region(0, 1)])]), "regions_len is 1"),
    (lambda: Layout(dense=[DenseLayers(8, 8, 1, [Region(0, 1)], layers=[-1])]), "layers [-1]"),
    (lambda: kvferry.shard(6, 4, 0), "neither divides"),
    (lambda: kvferry.shard(-6, 4, 0), "heads_total is -6"),
])
def test_bad_layouts(make, names):
    with pytest.raises(InvalidArgumentError) as e:
        make()
    assert names in str(e.value)


def test_shard():
    assert [kvferry.shard(8, 4, r) for r in range(4)] == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert [kvferry.shard(2, 4, r) for r in range(4)] == [(0, 1), (0, 1), (1, 1), (1, 1)]


# ---------------------------------------------------------------------------- plans


def test_four_to_two():
    """Pages of 64 bytes there (2 heads of 2 tokens of 8 bytes, K and V) and 128 here."""
    plan = four_to_two()
    assert [p.role for p in plan.peers] == [PeerRole.TRANSFER] * 2 + [PeerRole.IDLE] * 2
    assert [p.notifiers for p in plan.peers] == [1] * 4
    moved = plan.expand([([5], [3])])
    # K of rank r is 32 bytes into 32 * r of the page; V the same 64 further (and 32 further there).
    wanted = {
        (r, 0x10000 + 5 * 128 + kv * 64 + r * 32, 0x100000 * (r + 1) + 3 * 64 + kv * 32, 32)
        for r in range(2) for kv in range(2)
    }
    assert {(x.peer, x.local, x.remote, x.len) for x in moved.ranges} == wanted
    assert moved.stats.bytes == 128 and moved.stats.ranges == 4
    assert moved.coverage == [(0, 2, 0, 0)]
    assert plan.stats([([5], [3])]) == moved.stats
    assert "rank 0 of 2 reads from an engine of TP 4" in plan.describe()


def test_the_json_says_what_the_tables_say():
    plan = four_to_two(1)
    told = plan.to_dict()
    assert [p["role"] for p in told["peers"]] == ["idle", "idle", "transfer", "transfer"]
    assert told["peers"][2]["shares"][0]["head_first"] == 4
    assert [x["len"] for x in told["lanes"]] == [x.len for x in plan.lanes]
    assert [x["local"]["base"] for x in told["lanes"]] == [x.local.base for x in plan.lanes]
    assert told["groups"][0]["local"]["block_count"] == plan.groups[0].local.block_count == 32
    assert told["lanes_before_merging"] == plan.lanes_before


@pytest.mark.parametrize("kind", [
    list, tuple, iter, range, np.int32, np.uint32, np.int64, np.uint16, "strided",
])
def test_block_ids_in_many_forms(kind):
    plan = four_to_two()
    local, remote = [4, 5, 6], [10, 11, 12]
    wanted = plan.expand([([4, 5, 6], [10, 11, 12])])
    if isinstance(kind, str):
        local, remote = (np.repeat(np.array(x, np.int32), 2)[::2] for x in (local, remote))
    elif kind in (np.int32, np.uint32, np.int64, np.uint16):
        local, remote = np.array(local, kind), np.array(remote, kind)
    elif kind is range:
        local, remote = range(4, 7), range(10, 13)
    else:
        local, remote = kind(local), kind(remote)
    assert plan.expand([GroupBlocks(local, remote)]) == wanted


@pytest.mark.parametrize(("blocks", "error", "names"), [
    ([], InvalidArgumentError, "0 groups"),
    ([([1], [2]), ([1], [2])], InvalidArgumentError, "2 groups"),
    ([([32], [2])], InvalidArgumentError, "32"),
    ([([1, 1], [2, 3])], InvalidArgumentError, "twice"),
    ([([-1], [2])], InvalidArgumentError, "block ids of group 0"),
    ([([2**32], [2])], InvalidArgumentError, "block ids of group 0"),
    ([(np.array([-1], np.int32), [2])], InvalidArgumentError, "4294967295"),
    ([(np.array([[1]], np.int32), [2])], InvalidArgumentError, "dimensions"),
    ([(["1"], [2])], InvalidArgumentError, "block ids of group 0"),
    ([([1, 2, 3], [2, 3])], MismatchError, "3 local blocks"),
    ([GroupBlocks([1], [2], local_first=-1)], InvalidArgumentError, "first block -1"),
    ([GroupBlocks([1], [2], remote_first=2**32)], InvalidArgumentError, "first block 4294967296"),
])
def test_bad_block_ids(blocks, error, names):
    with pytest.raises(error) as e:
        four_to_two().expand(blocks)
    assert names in str(e.value)


def test_positions():
    plan = four_to_two()
    tail = plan.expand([([7], [1, 2, 3])])
    assert tail.ranges == plan.expand([([7], [3])]).ranges
    assert tail.coverage == [(4, 6, 0, 0)]  # the third block of two tokens
    assert plan.expand([GroupBlocks([7], [1, 2, 3], local_first=1)]).ranges == plan.expand([([7], [2])]).ranges
    assert plan.expand([([7], [1, 2, 3])], tokens=6).ranges == tail.ranges
    assert plan.expand([GroupBlocks([7], [2, 3], remote_first=1, local_first=2)]).ranges == tail.ranges
    with pytest.raises(MismatchError):
        plan.expand([([7], [1, 2, 3])], tokens=3)
    for tokens in (0, -1, 2**64):
        with pytest.raises(InvalidArgumentError, match="tokens"):
            plan.expand([([7], [1])], tokens=tokens)
    assert plan.expand([([], [1, 2, 3])]).ranges == []


def test_options():
    kept = four_to_two(keep_lanes=True)
    assert len(kept.lanes) >= len(four_to_two().lanes)
    pushed = Plan(rank(1, 4, 0x200000), [rank(r, 2, 0x10000 * (r + 1)) for r in range(2)], direction="push")
    assert pushed.direction is Direction.PUSH
    assert pushed.expand([([3], [5])]).ranges[0] == Range(0, 0, 0x200000 + 3 * 64, 0x10000 + 5 * 128 + 32, 32)
    with pytest.raises(MismatchError, match="neither divides"):
        Plan(rank(0, 1, 0, tokens=4), [rank(0, 1, 0, tokens=6)])
    uneven = Plan(rank(0, 1, 0, tokens=4), [rank(0, 1, 0, tokens=6)], uneven_blocks=True)
    assert uneven.groups[0].atom_tokens == 2
    with pytest.raises(InvalidArgumentError, match="no remote layouts"):
        Plan(rank(0, 1, 0), [])


def test_own_lanes():
    side = GroupSide(16, 10)
    lane = Lane(0, 0, 24, LaneSide(0x1000, 100), LaneSide(0x2000, 200),
                (LaneInner(), LaneInner(2, 30, 40)))
    plan = Plan.custom([GroupGeometry("full", side, side)], [Peer(3)], [lane])
    assert plan.expand([([2], [9])]).ranges == [
        Range(0, 0, 0x1000 + 200, 0x2000 + 1800, 24), Range(0, 0, 0x1000 + 230, 0x2000 + 1840, 24)]
    assert plan.peers == [Peer(3, 0, PeerRole.TRANSFER, 0)]
    assert plan.lanes == [lane]
    copy = Plan.custom(plan.groups, plan.peers, plan.lanes)
    assert copy.expand([([2], [9])]) == plan.expand([([2], [9])])
    for bad, names in [
        (lane._replace(peer=1), "peer 1 of 1"), (lane._replace(len=0), "len is 0"),
        (lane._replace(len=-1), "len is -1"), (lane._replace(local=LaneSide(2**64, 0)), "local.base"),
    ]:
        with pytest.raises(InvalidArgumentError, match=names):
            Plan.custom(plan.groups, plan.peers, [bad])


def test_a_plan_outlives_its_layouts_and_serves_threads():
    plan = four_to_two()
    wanted = plan.expand([(list(range(20)), list(range(12, 32)))])
    found = []

    def work():
        for _ in range(50):
            found.append(plan.expand([(list(range(20)), list(range(12, 32)))]) == wanted)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 200


def test_records_are_plain_tuples():
    expansion = four_to_two().expand([([5], [3])])
    assert pickle.loads(pickle.dumps(expansion)) == expansion
