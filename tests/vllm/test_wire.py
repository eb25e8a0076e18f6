"""The side channel `zmq` and the payload, against vLLM's own code: its listener, its classes, its
client's steps with pyzmq and msgspec."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import socket
import sys
import threading
import time

import msgspec
import pytest
import zmq
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import (
    NixlBaseConnectorScheduler,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import (
    GET_META_MSG,
    NixlAgentMetadata,
    NixlHandshakePayload,
)
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.utils import zmq_ctx
from vllm.utils.network_utils import make_zmq_path

import kvferry
from kvferry import errors

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parent.parent / "docs" / "wire.md"


def example(name: str) -> bytes:
    """The bytes of an example of docs/wire.md; tests/connector_wire/ has our encoder make the same."""
    block = re.search(rf"<!-- bytes: {re.escape(name)} -->\n```text\n(.*?)```", DOCS.read_text(), re.DOTALL)
    digits = "".join(line.partition("  #")[0] for line in block[1].splitlines())
    return bytes.fromhex(digits)


@contextlib.contextmanager
def listener_of_ours(ranks):
    with kvferry.SideChannel(b"", kind="zmq") as channel:
        channel.replace_ranks(ranks)
        yield channel.address


@contextlib.contextmanager
def stock_listener(ranks):
    """vLLM's listener, in a thread of this process. It takes no port 0, so a free one is looked for."""
    ready, stop = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    thread = threading.Thread(
        target=NixlBaseConnectorScheduler._nixl_handshake_listener,
        args=(ranks, ready, stop, "127.0.0.1", port),
        daemon=True,
    )
    thread.start()
    assert ready.wait(60)
    try:
        yield kvferry.Address("127.0.0.1", port)
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def ask_as_stock(address, ranks):
    """What vLLM's client does for each rank, over one socket; the payload and the clock's offset."""
    with zmq_ctx(zmq.REQ, make_zmq_path("tcp", *address)) as sock:
        for pp, tp in ranks:
            sock.setsockopt(zmq.RCVTIMEO, 60_000)
            begin = time.perf_counter()
            sock.send(msgspec.msgpack.encode((GET_META_MSG, pp, tp)))
            payload, clock = sock.recv_multipart()
            end = time.perf_counter()
            yield payload, msgspec.msgpack.decode(clock) - (begin + end) / 2, end - begin


def test_stock_s_classes_read_our_payload():
    payload = msgspec.msgpack.Decoder(NixlHandshakePayload).decode(example("payload"))
    assert payload.compatibility_hash == "5d" * 32
    for name in ("metadata", "metadata with a lease table"):
        metadata = msgspec.msgpack.Decoder(NixlAgentMetadata).decode(example(name))
        assert metadata == NixlAgentMetadata(
            engine_id="prefill-0",
            agent_metadata=b"nixl",
            kv_caches_base_addr=[0x7F0000000000, 0x7F0010000000],
            device_id=0,
            num_blocks=2048,
            block_lens=[131072, 131072],
            block_strides=[131072, 131072],
            kv_cache_layout="LBHNC",
            block_size=128,
            ssm_sizes=(0, 0),
            attn_backend_name="CPU_ATTN",
            physical_blocks_per_logical_kv_block=1,
            region_group_ids=[0, 0],
            region_names=["model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"],
            region_mem_types=["DRAM", "DRAM"],
        )
    # Without what only kvferry adds it is stock's own encoding.
    assert msgspec.msgpack.encode(metadata) == example("metadata")
    assert payload.agent_metadata_bytes == example("metadata")


def test_stock_s_client_and_our_listener():
    ranks = {(0, 0): example("payload"), (0, 1): b"x" * 3_000_000, (2, 300): b"small"}
    with listener_of_ours(ranks) as address:
        answers = list(ask_as_stock(address, ranks))
    assert [payload for payload, _, _ in answers] == list(ranks.values())
    for _, offset, rtt in answers:
        assert abs(offset) <= rtt / 2 + 1e-6  # one host, one clock


def test_our_client_and_stock_s_listener():
    ranks = {(0, 0): example("payload"), (0, 1): b"x" * 3_000_000, (1, 0): b"small"}
    with stock_listener(ranks) as address:
        for (pp, tp), payload in ranks.items():
            answer = kvferry.request_rank(*address, pp, tp, timeout=60)
            assert answer.metadata == payload
            assert abs(answer.clock.offset) <= answer.clock.rtt / 2 + 1e-6


def test_a_rank_that_is_not_there_fails_at_once_on_both_sides():
    """Where stock's listener dies and lets its clients wait."""
    with listener_of_ours({(0, 0): b"x"}) as address:
        ((payload, _, _),) = ask_as_stock(address, [(0, 1)])
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.Decoder(NixlHandshakePayload).decode(payload)
        with pytest.raises(errors.NotFoundError, match="tp 1"):
            kvferry.request_rank(*address, 0, 1)
        ((payload, _, _),) = ask_as_stock(address, [(0, 0)])
        assert payload == b"x"


def test_sockets_that_ask_otherwise():
    with listener_of_ours({(0, 0): b"x"}) as address, zmq.Context() as context:
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.rcvtimeo = 60_000
            dealer.connect(make_zmq_path("tcp", *address))
            question = msgspec.msgpack.encode((GET_META_MSG, 0, 0))
            dealer.send_multipart([question])  # without the empty frame: dropped
            dealer.send_multipart([b"", question, b"more"])
            dealer.send_multipart([b"", b"\xc1"])
            dealer.send_multipart([b"", msgspec.msgpack.encode((GET_META_MSG.decode(), 0, 0))])
            dealer.send_multipart([b"", question])
            answers = [dealer.recv_multipart() for _ in range(4)]
    assert [a[:2] for a in answers] == [[b"", b""], [b"", b""], [b"", b"x"], [b"", b"x"]]
    assert all(isinstance(msgspec.msgpack.decode(a[2]), float) for a in answers)


def test_what_was_recorded_is_what_this_vllm_says():
    """tests/vllm/data/wire.json, on which tests/connector_wire/ stands."""
    sys.path.insert(0, str(HERE))
    try:
        import record_wire
    finally:
        sys.path.remove(str(HERE))
    recorded = json.loads((HERE / "data" / "wire.json").read_text())
    for section in ("payloads", "judged", "hashes", "requests", "registrations", "topology"):
        fresh = json.loads(json.dumps(list(getattr(record_wire, section)())))
        assert fresh == recorded[section], section
