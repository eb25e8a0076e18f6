"""What goes wrong between two engines: clients that leave, engines that die, leases that end.

After each the blocks of both engines are free again, and both go on serving. The tests build on one
another: a first contact between two processes, when a read can be held up, exists once per process.
"""

from __future__ import annotations

import itertools

import pytest
from harness.engine import RequestFailed, read_completion, wait_for
from harness.prompts import prompt
from harness.router import Pair

TOKENS = 16
LEASE = 6  # seconds; heartbeats come every second
PATIENCE = 60.0  # for what should take a second or two on an idle machine
EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"
FAILED = "vllm:nixl_num_failed_transfers_total"

_seeds = itertools.count(1000)


@pytest.fixture(scope="module")
def pair(fleet) -> Pair:
    lease = {"kv_lease_duration": LEASE}
    engines = fleet(
        ("prefill", {"role": "kv_producer", "connector": "ours", "extra": lease, "blocks": 80}),
        (
            "decode",
            {
                "role": "kv_consumer",
                "connector": "ours",
                "extra": lease,
                # Two requests at a time, so that others have to queue.
                "args": ("--max-num-seqs", "2"),
            },
        ),
    )
    return Pair(*engines)


@pytest.fixture(autouse=True)
def nothing_is_left(pair):
    """After every test no block is in use, and a request goes through both engines."""
    yield
    for engine in (pair.prefill, pair.decode):
        idle(engine)
    text = prompt(300, next(_seeds))
    assert pair.complete(text, TOKENS).tokens == pair.alone(text, TOKENS).tokens


def idle(engine) -> None:
    def settled() -> bool:
        values = engine.metrics()
        return not any(
            values.get(f"vllm:{name}", 0)
            for name in ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
        )

    wait_for(f"{engine.settings.name} without blocks in use", settled, PATIENCE)


class Busy:
    """Keeps both places of the decode engine taken: whatever comes next has to queue."""

    def __init__(self, pair: Pair):
        self._engine = pair.decode

    def __enter__(self) -> None:
        self._requests = [
            self._engine.open_completion(prompt(20, next(_seeds)), 7000, limit=600) for _ in range(2)
        ]
        wait_for(
            "decode engine busy",
            lambda: self._engine.metric("vllm:num_requests_running") == 2,
            PATIENCE,
        )

    def __exit__(self, *_: object) -> None:
        for request in self._requests:
            request.close()


def waiting(pair: Pair) -> None:
    wait_for(
        "request waits in the decode engine",
        lambda: pair.decode.metric("vllm:num_requests_waiting") == 1,
        PATIENCE,
    )


def test_client_leaves_during_the_transfer(pair):
    """First contact: the read cannot go on while the prefill engine's worker stands still."""
    text = prompt(1000, next(_seeds))
    params = pair.prefill_leg(text)
    pair.prefill.freeze()
    try:
        request = pair.decode.open_completion(text, TOKENS, params=params)
        waiting(pair)
        request.close()
        wait_for(
            "abort noticed",
            lambda: pair.decode.metric("vllm:num_requests_waiting") == 0,
            PATIENCE,
        )
    finally:
        pair.prefill.thaw()


def test_client_leaves_after_the_transfer(pair):
    text = prompt(1000, next(_seeds))
    params = pair.prefill_leg(text)
    request = pair.decode.open_completion(text, 7000, params=params)
    wait_for(
        "decode engine runs the request",
        lambda: pair.decode.metric("vllm:num_requests_running") == 1,
        PATIENCE,
    )
    request.close()


def test_client_leaves_before_the_transfer(pair):
    """The prefill engine is told, and does not have to wait for the lease to end."""
    expired = pair.prefill.metric(EXPIRED)
    params = pair.prefill_leg(prompt(1000, next(_seeds)))
    with Busy(pair):
        request = pair.decode.open_completion(prompt(1000, next(_seeds)), TOKENS, params=params)
        waiting(pair)
        request.close()
        idle(pair.prefill)
    assert pair.prefill.metric(EXPIRED) == expired


def test_prefill_alone(pair):
    """No decode engine ever asks: the lease ends, and the blocks are free."""
    expired = pair.prefill.metric(EXPIRED)
    pair.prefill_leg(prompt(500, next(_seeds)))
    assert pair.prefill.metric("vllm:kv_cache_usage_perc") > 0
    wait_for("lease over", lambda: pair.prefill.metric(EXPIRED) == expired + 1, PATIENCE)


def test_slow_decode_engine_keeps_its_lease(pair):
    """A request that queues three leases long is served from the prefill engine's blocks."""
    expired, failed = pair.prefill.metric(EXPIRED), pair.decode.metric(FAILED)
    moved = pair.decode.metric("vllm:nixl_bytes_transferred_sum")
    text = prompt(700, next(_seeds))
    params = pair.prefill_leg(text)
    with Busy(pair):
        request = pair.decode.open_completion(text, TOKENS, params=params)
        waiting(pair)
        # Something else whose lease is not extended tells that three leases have gone by.
        for gone in range(1, 4):
            pair.prefill_leg(prompt(100, next(_seeds)))
            wait_for(
                "another lease over",
                lambda n=expired + gone: pair.prefill.metric(EXPIRED) >= n,
                PATIENCE,
            )
    answer = read_completion(request, 0)
    assert answer.tokens == pair.alone(text, TOKENS).tokens
    assert pair.prefill.metric(EXPIRED) == expired + 3
    assert pair.decode.metric(FAILED) == failed
    wait_for(
        "bytes in the decode engine's metrics",
        lambda: pair.decode.metric("vllm:nixl_bytes_transferred_sum") > moved,
        PATIENCE,
    )


def test_expired_lease_is_refused(pair):
    """Blocks that were used again are never served as the prompt's."""
    expired, failed = pair.prefill.metric(EXPIRED), pair.decode.metric(FAILED)
    text = prompt(900, next(_seeds))
    params = pair.prefill_leg(text)
    wait_for("lease over", lambda: pair.prefill.metric(EXPIRED) == expired + 1, PATIENCE)
    for _ in range(3):  # the pool has 80 blocks: by now all have other content
        pair.prefill.complete(prompt(4000, next(_seeds)), 1)
    with pytest.raises(RequestFailed):
        pair.decode.complete(text, TOKENS, params=params)
    # An idle engine takes no steps, and figures travel with steps.
    pair.decode.complete(prompt(20, next(_seeds)), 1)
    wait_for(
        "failure in the decode engine's metrics",
        lambda: pair.decode.metric(FAILED) > failed,
        PATIENCE,
    )


def test_decode_engine_dies(pair):
    """Its requests' blocks are free within the lease, and another decode engine takes over."""
    expired = pair.prefill.metric(EXPIRED)
    text = prompt(900, next(_seeds))
    params = pair.prefill_leg(text)
    with Busy(pair):
        request = pair.decode.open_completion(text, TOKENS, params=params)
        waiting(pair)
        # Heartbeats flow: another request's lease ends, this one's does not.
        pair.prefill_leg(prompt(100, next(_seeds)))
        wait_for("lease over", lambda: pair.prefill.metric(EXPIRED) == expired + 1, PATIENCE)
        pair.decode.kill()
    request.close()
    wait_for("lease over", lambda: pair.prefill.metric(EXPIRED) == expired + 2, PATIENCE)
    idle(pair.prefill)
    pair.decode.start().wait_ready()


def test_prefill_engine_dies_during_the_transfer(pair):
    """First contact again, since the decode engine is a new process (see the test before)."""
    failed = pair.decode.metric(FAILED)
    text = prompt(1000, next(_seeds))
    pair.prefill.stop()  # a fresh one: no connection to it exists
    pair.prefill.start().wait_ready()
    params = pair.prefill_leg(text)
    pair.prefill.freeze()
    request = pair.decode.open_completion(text, TOKENS, params=params)
    waiting(pair)
    pair.prefill.kill()
    with pytest.raises(RequestFailed):
        read_completion(request, 0)
    wait_for("failure counted", lambda: pair.decode.metric(FAILED) > failed, PATIENCE)
    idle(pair.decode)
    pair.prefill.start().wait_ready()  # on the same ports
