"""The ranks of the two engines, each a process of its own.

They talk to the program that started them, which stands for the router in front of two real engines:
orders come as lines of JSON on standard input, answers go as lines of JSON to standard output, with
``{"doing": ..., "done": fraction}`` between them while there is work. The end of standard input, which
is also the end of that program, is the end of a rank.
"""

from __future__ import annotations

import json
import statistics
import struct
import sys
import time
from argparse import Namespace
from collections.abc import Iterator

import kvferry

from .cache import LLAMA_3_1_8B, PATTERNS, Cache

PATIENCE = 60.0  # seconds, for everything that waits for the other engine
STEP = 0.010  # seconds of a decode step, between two polls
# Before the agent's metadata: the length of the rank's layout.
_HEAD = struct.Struct(">I")


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def saying(doing: str):
    """A progress function."""
    return lambda done: say(doing=doing, done=round(done, 2))


def orders() -> Iterator[dict]:
    """What the router wants, one after the other; ends with it."""
    return (json.loads(line) for line in iter(sys.stdin.readline, ""))


def prefill(args: Namespace) -> None:
    """Computes a cache, hands out where it is, and hears which requests it may forget."""
    cache = Cache(LLAMA_3_1_8B, args.blocks, args.rank, args.ranks)
    cache.fill(saying("prefill computes the cache"))
    if args.corrupt and args.rank == 0:
        block = PATTERNS["scattered"](args.blocks, args.request, args.seed)[0]
        cache.layers[LLAMA_3_1_8B.layers // 2][block, 0, 1, 0, 1] ^= 1
    with kvferry.Agent(args.name, args.transport) as agent:
        agent.register(cache.ranges())
        layout = cache.layout().encode()
        with kvferry.SideChannel(_HEAD.pack(len(layout)) + layout + agent.metadata()) as channel:
            say(port=channel.address.port)
            for order in orders():
                # Once every reader has said so, and not before, the blocks are free.
                for reader in order["readers"]:
                    agent.wait_notification(reader, order["freed"], PATIENCE)
                say(freed=order["freed"])


def decode(args: Namespace) -> None:
    """Pulls the blocks of requests, and looks at every byte."""
    cache = Cache(LLAMA_3_1_8B, args.blocks, args.rank, args.ranks)
    options = {"copy_threads": args.copy_threads} if args.transport == "local" else {}
    with kvferry.Agent(args.name, args.transport, **options) as agent:
        agent.register(cache.ranges())
        say(ready=True)
        todo = orders()
        peers, layouts = [], []
        for port in next(todo, {"ports": []})["ports"]:
            message = kvferry.request_metadata("127.0.0.1", port, PATIENCE)
            metadata = _HEAD.size + _HEAD.unpack_from(message)[0]
            layouts.append(kvferry.Layout.decode(message[_HEAD.size : metadata]))
            peers.append(agent.add_remote(message[metadata:]))
        if not peers:
            return
        # For every request to come: who holds which heads, and where their bytes belong.
        plan = kvferry.Plan(cache.layout(), layouts)
        apart = kvferry.Plan(cache.layout(), layouts, keep_lanes=True)
        with kvferry.Queue(agent) as queue:
            say(tells=[name for name, peer in zip(peers, plan.peers) if peer.role != kvferry.PeerRole.IDLE])
            for order in todo:
                if order["do"] == "clear":
                    cache.clear()
                    say(cleared=True)
                    continue
                blocks = order["mine"], order["theirs"]
                if order["do"] == "pull":
                    done = pull(queue, plan, peers, blocks, order["request"])
                    say(pulled=done | {"apart": apart.stats([blocks]).ranges_before})
                else:
                    wrong = cache.verify(*blocks, saying("decode looks at every byte"))
                    say(wrong=wrong) if wrong else say(verified=cache.nbytes)


def pull(queue: kvferry.Queue, plan: kvferry.Plan, peers: list[str], blocks, request: str) -> dict:
    """One request, as an engine's main loop makes it: submitted, and polled for between steps."""
    begin = time.perf_counter_ns()
    ticket = queue.submit(plan, peers, [blocks], notification=request, deadline=PATIENCE)
    submit_ns = time.perf_counter_ns() - begin
    polls = []
    completions: list[kvferry.Completion] = []
    while not completions:
        time.sleep(STEP)  # the model works; the bytes move meanwhile
        begin = time.perf_counter_ns()
        completions = queue.poll()
        polls.append((time.perf_counter_ns() - begin) / 1e3)
    (done,) = completions
    if done.error:
        raise done.error
    assert done.ticket == ticket
    return {
        "bytes": done.bytes,
        "before": done.descriptors_before,
        "ranges": done.descriptors,
        "begin_ns": done.submitted_ns,
        "end_ns": done.submitted_ns + done.finished_ns,
        "submit_us": submit_ns / 1e3,
        "poll_us": statistics.median(polls),
        "polls": len(polls),
    }
