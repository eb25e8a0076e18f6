"""Push: the prefill engine writes into the decode engine's blocks, ours and stock in both roles."""

from __future__ import annotations

import itertools

import pytest
from harness.engine import HOST, read_completion, wait_for
from harness.prompts import prompt

pytestmark = pytest.mark.thorough

TOKENS = 16
LENGTHS = (5, 128, 700, 3000)
BYTES = "vllm:nixl_bytes_transferred_sum"
_seeds = itertools.count(5000)
_ids = itertools.count(1)


@pytest.fixture(scope="module")
def push(fleet):
    wanted = {
        "ours": {"kv_connector": "KvFerryPushConnector", "kv_connector_module_path": "kvferry.vllm"},
        "stock": {"kv_connector": "NixlPushConnector"},
    }
    engines = fleet(
        *(
            (name, {"role": "kv_both", "config": {**wanted[kind], "engine_id": f"engine-{name}"}})
            for name, kind in (("push-1", "ours"), ("push-2", "ours"), ("push-stock", "stock"))
        )
    )
    return engines


def pushed(prefill, decode, text: list[int]):
    """Both legs at once under one id, as a router does that knows the prefill engine's address."""
    name = f"push-{next(_ids)}"
    first = {"do_remote_decode": True, "do_remote_prefill": False}
    second = {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "remote_engine_id": prefill.settings.config["engine_id"],
        "remote_request_id": name,
        "remote_host": HOST,
        "remote_port": prefill.side_channel,
        "tp_size": 1,
    }
    waiting = decode.open_completion(text, TOKENS, params=second, request_id=name)
    try:
        prefill.complete(text, 1, params=first, request_id=name)
        return read_completion(waiting, 0.0)
    finally:
        waiting.close()


@pytest.mark.parametrize(("writer", "reader"), [(0, 1), (0, 2), (2, 0)], ids=["ours", "to-stock", "from-stock"])
def test_push(push, writer, reader):
    prefill, decode = push[writer], push[reader]
    for length in LENGTHS:
        text = prompt(length, next(_seeds))
        before = prefill.metric(BYTES)
        tokens = pushed(prefill, decode, text).tokens
        wait_for("bytes written", lambda: prefill.metric(BYTES) > before, 30)
        assert tokens == decode.complete(text, TOKENS, salt=f"alone-{next(_ids)}").tokens, length
