"""What a decode engine's worker spends in its connector: stock vLLM's, and kvferry's, on the same NIXL.

    PYTHONPATH=bindings/python KVF_LIBRARY=target/release/libkvferry.so \
        VLLM_PYTHON benches/vllm/worker_step.py [--rounds N]

VLLM_PYTHON is the Python of the environment of ``make venv-vllm``. Measured on the engine's thread: the
calls that vLLM makes in each step, ``start_load_kv`` (the step that brings the request, and those after
it) and ``get_transfer_results``, with 1 ms between steps, until the request is reported as received.
Then the first request to a peer that is not known yet, of one block: wall time and memory, handshake
included. Both connectors have a cache of 160 layers and 40,960 blocks of 8 KiB a layer (6.5 million
pages), and both workers are vLLM's connector objects as the engine has them: ``NixlPullConnectorWorker``,
and ``kvferry.vllm``'s ``WorkerSide`` fed by its ``SchedulerSide``. Each runs in a pair of processes of its
own; the sides take turns. vLLM's configuration is an object with the fields that are asked for.

Memory is one window mapped over and over: see benches/stock_path.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from stock_path import PAGE, PAGES, REGIONS, ROW, SHAPES, forget_peak, ids, map_memory, peak  # noqa: E402

SIDES = ("stock", "ours")
HEADS, TOKENS, HEAD = 4, 16, 32
assert HEADS * TOKENS * 2 * HEAD * 2 == PAGE


def configuration(port: int):
    """vLLM's configuration, as far as the two connectors ask."""
    transfer = SimpleNamespace(
        get_from_extra_config=lambda key, default: default,
        kv_buffer_device="cpu",
        kv_role="kv_both",
        engine_id=f"engine-{port}",
        enable_permute_local_kv=False,
    )
    return SimpleNamespace(
        kv_transfer_config=transfer,
        cache_config=SimpleNamespace(
            block_size=TOKENS,
            enable_prefix_caching=False,
            get_resolved_kv_cache_layout=lambda: SimpleNamespace(name="LBHNC"),
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            pipeline_parallel_size=1,
            data_parallel_index=0,
        ),
        model_config=SimpleNamespace(use_mla=False, get_total_num_kv_heads=lambda: HEADS),
        num_prefill_lookahead_tokens=0,
    )


def cache_configuration():
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(
        block_size=TOKENS, num_kv_heads=HEADS, head_size=HEAD, dtype=torch.float16
    )
    groups = [KVCacheGroupSpec([f"model.layers.{i}.attn" for i in range(REGIONS)], spec)]
    return KVCacheConfig(num_blocks=PAGES, kv_cache_tensors=[], kv_cache_groups=groups)


def tensors(base: int):
    """A view of each layer in one allocation, as vLLM makes them."""
    import torch

    memory = (ctypes.c_char * (REGIONS * ROW)).from_address(base)
    whole = torch.frombuffer(memory, dtype=torch.float16).view(REGIONS, PAGES, HEADS, TOKENS, 2 * HEAD)
    return {f"model.layers.{i}.attn": whole[i] for i in range(REGIONS)}


def surroundings(module) -> dict:
    """What takes the place of a model that is loaded."""
    backend = SimpleNamespace(get_name=lambda: "CPU_ATTN")
    wanted = dict(
        get_tensor_model_parallel_rank=lambda: 0,
        get_tensor_model_parallel_world_size=lambda: 1,
        get_current_attn_backends=lambda *_: [backend],
        get_current_attn_backends_and_specs=lambda *_: ([backend], [None]),
        select_common_block_size=lambda block, *_: block,
        compute_nixl_compatibility_hash=lambda *_, **__: "0" * 64,
    )
    return {name: value for name, value in wanted.items() if hasattr(module, name)}


class Stock:
    def __init__(self, port: int, base: int):
        from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker, pull_worker

        self._module = pull_worker
        config = configuration(port)
        with mock.patch.multiple(base_worker, **surroundings(base_worker)):
            self.worker = pull_worker.NixlPullConnectorWorker(
                config, config.kv_transfer_config.engine_id, cache_configuration()
            )
            self.worker.register_kv_caches(tensors(base))

    def serve(self, port: int) -> None:
        import threading

        import msgspec
        from vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_scheduler import (
            NixlBaseConnectorScheduler,
        )

        payload = msgspec.msgpack.encode(self.worker.xfer_handshake_metadata)
        ready, self._stop = threading.Event(), threading.Event()
        threading.Thread(
            target=NixlBaseConnectorScheduler._nixl_handshake_listener,
            args=({(0, 0): payload}, ready, self._stop, "127.0.0.1", port),
            daemon=True,
        ).start()
        ready.wait()

    def idle(self) -> None:
        self.worker.get_transfer_results()

    def request(self, name: str, local, remote, peer: int):
        from vllm.distributed.kv_transfer.kv_connector.v1.nixl.metadata import NixlConnectorMetadata

        step = NixlConnectorMetadata()
        step.add_new_req_to_recv(
            name, (local,), parameters(remote, peer, name), local_num_computed_blocks=(0,), awaiting_kvs=True
        )
        return step, NixlConnectorMetadata()

    def start(self, step) -> None:
        self.worker.start_load_kv(step)

    def results(self):
        return self.worker.get_transfer_results()

    def close(self) -> None:
        self.worker.shutdown()


class Ours:
    def __init__(self, port: int, base: int):
        from kvferry.vllm import cache, worker
        from kvferry.vllm.config import Settings
        from kvferry.vllm.scheduler import SchedulerSide

        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = "127.0.0.1"
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(port)
        config, blocks = configuration(port), cache_configuration()
        settings = Settings.of(config)
        with mock.patch.multiple(cache, **surroundings(cache)), mock.patch.multiple(
            worker, **surroundings(worker)
        ):
            self.worker = worker.WorkerSide(config, blocks, settings, push=False)
            self.worker.register(tensors(base))
        self.scheduler = SchedulerSide(config, blocks, settings, push=False)

    def serve(self, port: int) -> None:
        self.scheduler.serve({(0, 0): self.worker.payload()})

    def idle(self) -> None:
        self.worker.results()

    def request(self, name: str, local, remote, peer: int):
        request = SimpleNamespace(
            request_id=name,
            kv_transfer_params=parameters(remote, peer, name),
            num_prompt_tokens=len(local) * TOKENS,
            get_skip_reading_prefix_cache=lambda: False,
        )
        blocks = [SimpleNamespace(block_id=b, block_hash=None, is_null=False) for b in local]
        self.scheduler.add(request)
        self.scheduler.allocated(
            request, SimpleNamespace(blocks=(blocks,)), self.scheduler.match(request, 0)
        )
        return self.scheduler.build_step(), self.scheduler.build_step()

    def start(self, step) -> None:
        self.worker.step(step)

    def results(self):
        return self.worker.results()

    def close(self) -> None:
        self.worker.close()
        self.scheduler.close()


def parameters(remote, peer: int, name: str) -> dict:
    return dict(
        do_remote_prefill=True,
        do_remote_decode=False,
        remote_block_ids=[remote],
        remote_engine_id=f"engine-{peer}",
        remote_request_id=f"at-{name}",
        remote_host="127.0.0.1",
        remote_port=peer,
        tp_size=1,
        dcp_size=1,
        pp_size=1,
        remote_num_tokens=len(remote) * TOKENS,
    )


def received(worker, name: str, steps) -> tuple[float, float]:
    """Seconds on the engine's thread, and until the request was reported."""
    first, later = steps
    begun = time.perf_counter()
    busy = 0.0
    step = first
    while True:
        t = time.perf_counter()
        worker.start(step)
        results = worker.results()
        busy += time.perf_counter() - t
        if name in results.finished_recving:
            assert not results.failed_recving, "the transfer failed"
            return busy, time.perf_counter() - begun
        assert time.perf_counter() - begun < 120, "not within two minutes"
        step = later
        time.sleep(1e-3)


def producer(side: str, port: int) -> None:
    worker = {"stock": Stock, "ours": Ours}[side](port, map_memory())
    worker.serve(port)
    print("ready", flush=True)
    for _ in iter(lambda: os.read(0, 1) if select_stdin() else b".", b""):
        worker.idle()  # as an engine that holds blocks does in each step
    worker.close()


def select_stdin() -> bool:
    import select

    return bool(select.select([0], [], [], 1e-3)[0])


def consumer(side: str, port: int, peer: int) -> None:
    worker = {"stock": Stock, "ours": Ours}[side](port, map_memory())
    before = forget_peak()
    steps = worker.request("first", [1], [1], peer)
    busy, wall = received(worker, "first", steps)
    print(json.dumps(["first", busy, wall, peak() - before]), flush=True)
    for blocks, times in SHAPES.items():
        for scattered in (False, True):
            for number in range(times):
                local, remote = ids(blocks, scattered)
                name = f"{blocks}-{scattered}-{number}"
                steps = worker.request(name, local, remote, peer)
                busy, wall = received(worker, name, steps)
                print(json.dumps([f"{blocks} {'scattered' if scattered else 'in a row'}", busy, wall, 0]))
                sys.stdout.flush()
    worker.close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def round_of(side: str, found: dict) -> None:
    here, there = free_port(), free_port()
    start = [sys.executable, __file__]
    kwargs = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([*start, "producer", side, str(there)], **kwargs) as p:
        try:
            line = p.stdout.readline()
            while line and line.strip() != "ready":
                line = p.stdout.readline()
            out = subprocess.run(
                [*start, "consumer", side, str(here), str(there)],
                stdout=subprocess.PIPE, text=True, timeout=600, check=True,
            ).stdout
        finally:
            p.stdin.close()
            p.wait(60)
    for line in out.splitlines():
        if line.startswith("["):
            what, *values = json.loads(line)
            found.setdefault(what, {}).setdefault(side, []).append(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, dict[str, list]] = {}
    for _ in range(rounds):
        for side in SIDES:
            round_of(side, found)
    print(f"{'':>16} {'stock, ms on the thread':>26} {'ours':>10} {'ratio':>7} {'stock, ms in all':>18} {'ours':>10}")
    for what, sides in found.items():
        stock, ours = ([statistics.median(v) for v in zip(*sides[s])] for s in SIDES)
        print(
            f"{what:>16} {stock[0] * 1e3:26.3f} {ours[0] * 1e3:10.3f} {stock[0] / ours[0]:7.1f}"
            f" {stock[1] * 1e3:18.1f} {ours[1] * 1e3:10.1f}"
            + (f"   memory {stock[2] / 1e6:.1f} MB, {ours[2] / 1e6:.3f} MB" if what == "first" else "")
        )


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] in ("producer", "consumer"):
        {"producer": producer, "consumer": consumer}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
