"""Random lives of requests, side by side on stock vLLM's pull scheduler and on kvferry's scheduler half:
the same matches, the same transfers, the same blocks kept, the same parameters.

Stock's ``NixlPullConnectorScheduler`` is driven as it is, over an object with the configuration that it
asks for; requests and block tables are real enough for it. Where the two differ on purpose, the
difference is written down here as a rule (`DIFFERENCES`) and checked as such; nothing is skipped.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")

import torch  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import (  # noqa: E402
    NixlPullConnectorScheduler,
)
from vllm.v1.core.kv_cache_manager import KVCacheBlocks  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import step_bytes  # noqa: E402

import kvferry  # noqa: E402
from kvferry import Keep, RequestBlocks, TransferGroup  # noqa: E402

# Parameters that are not usable are part of the test, and each is worth a line to an operator.
kvferry.set_log_level("error")

DIFFERENCES = """
incomplete  Parameters without all coordinates: stock says that the prompt can be loaded, and the request
            then waits for ever; ours loads nothing.
abort       One of those that ends before it was scheduled: stock's next step raises KeyError, in the engine's
            core; ours says nothing.
no option   A next turn's blocks without `bidirectional_kv_xfer`, or a second match of a turn that has
            fetched: stock says that they can be loaded and never loads them; ours says 0.
stop        A request that ends while it is received: stock reads on; ours empties the transfer that is not
            under way, and cancels the one that is.
in batch    With turns, ours names every request of a decoder, so that a lease can follow; and ours does not name
            one that is aborted in the same step, which stock names and forgets.
"""

BLOCK = 16
HEADS = dict(block_size=BLOCK, num_kv_heads=2, head_size=16, dtype=torch.float16)
FULL = (FullAttentionSpec(**HEADS), TransferGroup("full", BLOCK))
WINDOW = (SlidingWindowSpec(**HEADS, sliding_window=40), TransferGroup("sliding_window", BLOCK, 40))
STATE = (
    MambaSpec(block_size=BLOCK, shapes=((8, 3), (4, 8, 8)), dtypes=(torch.float16, torch.float16),
              num_speculative_blocks=2),
    TransferGroup("state", BLOCK, 0, 2),
)
CASES = {
    "full": dict(groups=[FULL]),
    "window": dict(groups=[FULL, WINDOW]),
    "state": dict(groups=[FULL, STATE], backoff=1),
    "unclipped": dict(groups=[FULL, WINDOW], hybrid=False),
    "lookahead": dict(groups=[FULL], lookahead=4, backoff=3),
    "turns": dict(groups=[FULL], extra={"bidirectional_kv_xfer": True}),
    "turns, any": dict(groups=[FULL, WINDOW],
                       extra={"bidirectional_kv_xfer": True, "kv_recompute_threshold": 0}),
}
HOW = {
    "length": RequestStatus.FINISHED_LENGTH_CAPPED,
    "stop": RequestStatus.FINISHED_STOPPED,
    "abort": RequestStatus.FINISHED_ABORTED,
    "error": RequestStatus.FINISHED_ERROR,
}


def stock_scheduler(case) -> NixlPullConnectorScheduler:
    extra = case.get("extra", {})
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            tensor_parallel_size=2, decode_context_parallel_size=1, pipeline_parallel_size=1,
            data_parallel_index=0),
        cache_config=SimpleNamespace(block_size=BLOCK),
        kv_transfer_config=SimpleNamespace(get_from_extra_config=extra.get, kv_buffer_device="cpu"),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=not case.get("hybrid", True)),
        num_prefill_lookahead_tokens=case.get("lookahead", 1),
    )
    groups = [KVCacheGroupSpec([f"l{i}"], spec) for i, (spec, _) in enumerate(case["groups"])]
    cache = KVCacheConfig(num_blocks=1000, kv_cache_tensors=[], kv_cache_groups=groups)
    return NixlPullConnectorScheduler(config, "me", cache)


def our_scheduler(case, stock) -> kvferry.Scheduler:
    extra = case.get("extra", {})
    hybrid = case.get("hybrid", True) and len(case["groups"]) > 1
    return kvferry.Scheduler(
        "me", stock.side_channel_host, [group for _, group in case["groups"]],
        port=stock.side_channel_port, tp_size=2, clip=hybrid, backoff_tokens=case.get("backoff", 0),
        bidirectional=extra.get("bidirectional_kv_xfer", False),
        recompute_threshold=extra.get("kv_recompute_threshold", 64),
    )


class Request:
    """One request twice: as stock changes it, and as an engine around kvferry would."""

    def __init__(self, rng, name, params):
        self.name, self.prompt = name, rng.randrange(1, 140)
        self.logprobs = rng.random() < 0.1
        tokens = list(range(self.prompt))
        self.stock = SimpleNamespace(
            request_id=name, kv_transfer_params=copy.deepcopy(params), prompt_token_ids=tokens[:],
            _all_token_ids=tokens[:], prompt_embeds=None, num_prompt_tokens=self.prompt,
            num_computed_tokens=0, max_tokens=5, status=RequestStatus.WAITING,
            get_skip_reading_prefix_cache=lambda: self.logprobs,
        )
        self.params = copy.deepcopy(params)
        self.state = "waiting"
        self.told = False
        self.table = None


def parameters(rng, name):
    """What may come from a router."""
    producer = {"do_remote_decode": True, "do_remote_prefill": False, "remote_block_ids": None}
    remote = {
        "remote_block_ids": [list(range(100, 100 + rng.randrange(1, 6)))],
        "remote_engine_id": rng.choice(["A", "B"]), "remote_request_id": f"there-{name}",
        "remote_host": "h", "remote_port": 5, "remote_num_tokens": rng.randrange(0, 200),
    }
    if rng.random() < 0.8:
        remote |= {"tp_size": 2, "pp_size": 1, "dcp_size": 1}
    if rng.random() < 0.3:
        remote["remote_blocks_expiry_time"] = rng.randrange(10**6) / 4
    if rng.random() < 0.1:
        del remote[rng.choice(["remote_engine_id", "remote_request_id", "remote_host", "remote_port"])]
    consumer = {"do_remote_prefill": True, "do_remote_decode": False}
    return rng.choice([None, {}, {"x": 1}, producer, consumer | remote, consumer | remote, producer | remote])


class Pair:
    def __init__(self, case, seed):
        self.rng = random.Random(seed)
        self.case = case
        self.stock = stock_scheduler(case)
        self.ours = our_scheduler(case, self.stock)
        self.turns = self.stock.is_bidirectional_kv_xfer_enabled
        self.requests: dict[str, Request] = {}
        self.made = 0
        self.stopped: set[str] = set()
        self.cancelled: list[str] = []
        self.leaving: list[str] = []
        self.counts = dict.fromkeys(("loads", "told", "holds", "pins", "stopped", "drops"), 0)

    def complete(self, params) -> bool:
        return all(f"remote_{k}" in params for k in ("engine_id", "request_id", "host", "port"))

    def add(self):
        self.made += 1
        name = f"r{self.made}"
        r = self.requests[name] = Request(self.rng, name, parameters(self.rng, name))
        self.stock.on_new_request(r.stock)
        drop = self.ours.add(name, r.params, r.prompt, reads_prefix_cache=not r.logprobs)
        assert r.prompt - drop == r.stock.num_prompt_tokens == len(r.stock.prompt_token_ids)
        self.counts["drops"] += bool(drop)
        if drop:
            r.prompt -= drop
            r.params["_p_side_truncated"] = True
        assert r.params == r.stock.kv_transfer_params

    def match(self, r, computed):
        tokens, asynchronous = self.stock.get_num_new_matched_tokens(r.stock, computed)
        p = r.params or {}
        if p.get("do_remote_prefill") and not self.complete(p):
            tokens = 0  # incomplete
        turn = p.get("do_remote_decode") and not p.get("do_remote_prefill")
        if turn and (not self.turns or p.get("_remote_blocks_processed")):
            tokens = 0  # no option
        assert self.ours.match(r.name, r.prompt, computed) == tokens
        assert asynchronous or not tokens
        return tokens

    def block_tables(self, r, cached, total):
        """A block table per group: null blocks, cached ones, new ones."""
        tables = []
        for spec, _ in self.case["groups"]:
            table = []
            nulls = self.rng.randrange(0, cached + 1) if not isinstance(spec, FullAttentionSpec) else 0
            for i in range(total):
                table.append(SimpleNamespace(
                    block_id=0 if i < nulls else self.rng.randrange(1, 900), is_null=i < nulls,
                    block_hash=b"h" if nulls <= i < cached else None))
            tables.append(table)
        return tables

    def schedule(self, r):
        total = -(-r.prompt // BLOCK)
        cached = self.rng.choice([0, 0, self.rng.randrange(0, total + 1)])
        computed = min(cached * BLOCK, r.prompt)
        for _ in range(self.rng.randrange(1, 3)):
            external = self.match(r, computed)
        r.table = self.block_tables(r, cached, total)
        self.allocate(r, external)
        r.state = "parked" if external else "running"
        self.counts["loads"] += bool(external)

    def allocate(self, r, external):
        self.stock.update_state_after_alloc(r.stock, KVCacheBlocks(tuple(r.table)), external)
        lists = []
        if external:
            for table in r.table:
                new = [(i, b.block_id) for i, b in enumerate(table) if b.block_hash is None and not b.is_null]
                lists.append(RequestBlocks([b for _, b in new], new[0][0] if new else 0))
        if self.ours.allocated(r.name, lists, external):
            r.params["do_remote_prefill"] = False
            r.params["_remote_blocks_processed"] = True
        assert r.params == r.stock.kv_transfer_params

    def step(self):
        meta = self.stock.build_connector_meta(SimpleNamespace())
        step = step_bytes.read(self.ours.build_step())
        assert abs(meta.scheduler_clock - step.clock) < 5.0
        ours = {r.request_id: r for r in step.receives}
        assert set(meta.reqs_to_recv) == set(ours) and len(ours) == len(step.receives)
        for name, theirs in meta.reqs_to_recv.items():
            r, remote = ours[name], theirs.remote
            local = [list(ids) for ids in theirs.local_block_ids]
            if name in self.stopped:
                local = []  # stop
            assert r.local == local
            self.check_positions(r, self.requests.get(name))
            assert r.awaited == theirs.awaiting_kvs
            assert r.remote == [list(ids) for ids in remote.block_ids]
            assert (r.peer.engine_id, r.peer.host, r.peer.port) == (remote.engine_id, remote.host, remote.port)
            assert (r.peer.tp_size, r.peer.pp_size, r.peer.dcp_size) == (
                theirs.tp_size, theirs.pp_size, theirs.dcp_size)
            assert (r.remote_request_id, r.expiry) == (remote.request_id, remote.blocks_expiry_time)
            assert r.tokens == (remote.num_tokens or 0)
            self.counts["told"] += not local
            if name in self.requests:
                self.requests[name].told = True
        holds = {h.request_id: h for h in step.holds}
        assert set(meta.reqs_to_send) == set(holds)
        for name, deadline in meta.reqs_to_send.items():
            assert abs(deadline - meta.scheduler_clock - holds[name].remaining) < 5.0
        assert set(step.forget) == meta.reqs_not_processed
        more = set(step.in_batch) - meta.reqs_in_batch
        theirs = meta.reqs_in_batch - meta.reqs_not_processed
        assert theirs <= set(step.in_batch) and (self.turns or not more)  # in batch
        assert step.cancel == self.cancelled
        self.cancelled, self.stopped = [], set()
        assert not step.registrations and not step.pushes

    def check_positions(self, r, request):
        """The list is the table from the position that is said on."""
        if request is None:
            return
        for table, first, ids in zip(request.table or [], r.local_first, r.local):
            assert [b.block_id for b in table[first : first + len(ids)]] == ids

    def report(self, name):
        self.stock.update_connector_output(KVConnectorOutput(finished_recving={name}))
        self.ours.received([name])

    def received(self, r):
        self.report(r.name)
        r.state = "running"
        self.allocate(r, 0)

    def finish(self, r):
        how = self.rng.choice(list(HOW)) if r.state == "running" else self.rng.choice(["abort", "error"])
        computed = self.rng.randrange(0, r.prompt + 30)
        r.stock.status, r.stock.num_computed_tokens = HOW[how], computed
        ids = tuple([b.block_id for b in t] for t in r.table or [[]] * len(self.case["groups"]))
        incomplete = (r.params or {}).get("do_remote_prefill") and not self.complete(r.params)
        keep, params = self.stock.request_finished(r.stock, ids)
        if incomplete:
            del self.stock._reqs_need_recv[r.name]  # abort
        end = self.ours.finished(r.name, how, ids, computed)
        assert (end.keep == Keep.UNTIL_SENT) == keep
        assert (end.keep == Keep.UNTIL_RECEIVED) == (r.state == "parked")
        if params is None:
            assert end.params is None
        else:
            lease = end.params.pop("kvferry_lease", None)
            assert (lease is not None) == keep
            expiry, theirs = end.params["remote_blocks_expiry_time"], params["remote_blocks_expiry_time"]
            assert (expiry is None) == (theirs is None)
            if theirs is not None:
                assert abs(expiry - theirs) < 5.0
                self.counts["pins"] += 1
            params["remote_block_ids"] = [list(ids) for ids in params["remote_block_ids"]]
            assert list(end.params) == list(params), "keys in stock's order"
            assert end.params | {"remote_blocks_expiry_time": None} == params | {"remote_blocks_expiry_time": None}
            self.counts["holds"] += keep
        if r.state == "parked":
            self.leaving.append(r.name)
            (self.cancelled.append if r.told else self.stopped.add)(r.name)
            self.counts["stopped"] += 1
        del self.requests[r.name]
        if keep:
            self.kept = getattr(self, "kept", []) + [r.name]

    def run(self, events):
        for _ in range(events):
            by_state = {s: [r for r in self.requests.values() if r.state == s] for s in ("waiting", "parked", "running")}
            event = self.rng.choice(["add", "add", "schedule", "schedule", "step", "received", "finish", "again"])
            if event == "add":
                self.add()
            elif event == "step":
                self.step()
            elif event == "schedule" and by_state["waiting"]:
                self.schedule(self.rng.choice(by_state["waiting"]))
            elif event == "received" and any(r.told for r in by_state["parked"]):
                self.received(self.rng.choice([r for r in by_state["parked"] if r.told]))
            elif event == "again" and by_state["running"]:
                # Preempted: matched and allocated again.
                r = self.rng.choice(by_state["running"])
                self.match(r, 0)
                self.allocate(r, 0)
            elif event == "finish" and self.requests:
                self.finish(self.rng.choice(list(self.requests.values())))
        for r in list(self.requests.values()):
            self.finish(r)
        self.step()
        self.ours.received(self.leaving)
        self.ours.sent(getattr(self, "kept", []))
        assert self.ours.stats() == (0,) * 6
        assert not self.stock._heartbeat_by_engine


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_stock(name):
    counts = {}
    start = time.monotonic()
    for seed in range(80):
        pair = Pair(CASES[name], seed)
        try:
            pair.run(120)
        except AssertionError as e:
            raise AssertionError(f"seed {seed}") from e
        finally:
            pair.ours.close()
        for key, n in pair.counts.items():
            counts[key] = counts.get(key, 0) + n
    # The lives were eventful enough to mean something.
    for key in ("loads", "told", "holds", "stopped"):
        assert counts[key] > 50, counts
    assert (counts["pins"] > 50) == ("turns" in name)
    assert (counts["drops"] > 50) == bool(CASES[name].get("backoff"))
    print(name, counts, f"{time.monotonic() - start:.1f} s")
