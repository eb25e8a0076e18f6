"""The two engines, each a process of its own, and how they talk to the program that started them.

Lines of JSON on standard output: ``{"doing": ..., "done": fraction}`` while they work, and facts at
the end of a step. The decode engine is told what to pull by one line on standard input: that is what
a router in front of two real engines would send along with a request.
"""

from __future__ import annotations

import json
import random
import statistics
import struct
import sys
import time

import kvferry

from .cache import LLAMA_3_1_8B, Cache, Model, page_indices, verify

PATIENCE = 120.0  # seconds, for everything that waits for the other engine
REPEATS = 5
# Before the agent's metadata: the length of a JSON text that says where the pages are.
_HEAD = struct.Struct(">I")


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def saying(doing: str):
    """A progress function."""
    return lambda done: say(doing=doing, done=round(done, 2))


def prefill(transport: str, blocks: int, request_blocks: int, corrupt: bool) -> int:
    """Computes a cache, hands out its metadata, and keeps a request's blocks until they are read."""
    model = LLAMA_3_1_8B
    cache = Cache(model, blocks)
    cache.fill(saying("prefill computes the cache"))
    # After hours of service the blocks of a request lie anywhere.
    chosen = random.Random(1).sample(range(blocks), request_blocks)
    if corrupt:
        cache.layers[model.layers // 2][1, chosen[0], 1] ^= 1
    with kvferry.Agent("prefill", transport) as agent:
        agent.register(cache.ranges())
        where = json.dumps({"model": model.as_dict(), "rows": cache.rows(), "blocks": blocks}).encode()
        with kvferry.SideChannel(_HEAD.pack(len(where)) + where + agent.metadata()) as channel:
            say(port=channel.address.port, request="req-7", blocks=chosen)
            freed = agent.wait_notification("decode", b"req-7", PATIENCE)
            say(freed=freed.payload.decode())
            # The other process ends first: it may still be reading for its measurements.
            sys.stdin.readline()
    return 0


def decode(transport: str, blocks: int, copy_threads: int) -> int:
    """Pulls a request's blocks, and looks at every byte."""
    model = LLAMA_3_1_8B
    cache = Cache(model, blocks)
    options = {"copy_threads": copy_threads} if transport == "local" else {}
    with kvferry.Agent("decode", transport, **options) as agent:
        agent.register(cache.ranges())
        say(ready=True)
        order = json.loads(sys.stdin.readline())

        say(doing="decode asks for the metadata", done=0)
        message = kvferry.request_metadata("127.0.0.1", order["port"], PATIENCE)
        (length,) = _HEAD.unpack_from(message)
        theirs = json.loads(message[_HEAD.size : _HEAD.size + length])
        if Model(**theirs["model"]) != model:
            raise SystemExit(f"the prefill engine runs another model: {theirs['model']}")
        peer = agent.add_remote(message[_HEAD.size + length :])
        local = agent.prepare(cache.rows())
        remote = agent.prepare([tuple(row) for row in theirs["rows"]], peer)

        say(doing="decode pulls the blocks", done=0)
        pulled = order["blocks"]
        mine = random.Random(2).sample(range(blocks), len(pulled))
        left = page_indices(model, blocks, mine)
        right = page_indices(model, theirs["blocks"], pulled)

        def pull(notification: str = "") -> float:
            """Milliseconds from nothing but lists of blocks to bytes in their places."""
            begin = time.perf_counter()
            with agent.make_transfer("READ", local, left, remote, right, notification=notification) as read:
                read.post()
                read.wait(PATIENCE)
                return (time.perf_counter() - begin) * 1e3

        first = pull(order["request"])
        wrong = verify(cache, list(zip(mine, pulled)), saying("decode looks at every byte"))
        if wrong:
            say(wrong=wrong)
            return 1
        say(doing="decode pulls them again, to measure", done=0)
        again = [pull() for _ in range(REPEATS)]
        say(
            bytes=len(left) * model.page_bytes,
            descriptors=len(left),
            verified=cache.nbytes,
            first_ms=first,
            again_ms=statistics.median(again),
        )
    return 0
