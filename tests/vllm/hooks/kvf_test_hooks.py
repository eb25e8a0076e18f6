"""A vLLM plugin for tests only: damages the KV cache of an engine on command, and lets engines share
few cores.

The engine is started with ``KVF_TEST_HOOKS`` naming a folder. A test that writes ``LAYER BLOCK`` into
the file ``flip`` there has one bit of that block changed, and sees the file disappear when it is done.
With ``KVF_TEST_NICE`` the threads that the connector starts let others go first: the stock connector's
never sleep, and vLLM ties them to the core of the model's thread, which with tensor parallelism waits in
every layer for a rank that waits for its core.
"""

from __future__ import annotations

import os
import pathlib
import threading
import time


def register() -> None:
    folder = os.environ.get("KVF_TEST_HOOKS")
    if folder is None:
        return
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    if getattr(KVConnectorFactory, "kvf_test_hooks", False):
        return
    KVConnectorFactory.kvf_test_hooks = True
    _sleep_between_looks()
    create = KVConnectorFactory.create_connector

    def create_connector(config, role, kv_cache_config):
        before = set(os.listdir("/proc/self/task"))
        connector = create(config, role, kv_cache_config)
        if os.environ.get("KVF_TEST_NICE"):
            for thread in set(os.listdir("/proc/self/task")) - before:
                os.setpriority(os.PRIO_PROCESS, int(thread), 19)
        if role == KVConnectorRole.WORKER:
            register_kv_caches = connector.register_kv_caches

            def watched(kv_caches):
                register_kv_caches(kv_caches)
                watch = (kv_caches, pathlib.Path(folder))
                threading.Thread(target=_obey, args=watch, daemon=True).start()

            connector.register_kv_caches = watched
        return connector

    KVConnectorFactory.create_connector = create_connector


def _sleep_between_looks() -> None:
    """vLLM's processes wait for each other with sched_yield in a loop, all the time while an engine holds
    blocks for a reader. Where there are more such processes than cores they starve all others, on some
    kernels for as long as the lease lasts: the HTTP servers, and the progress of the transfers too.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = lambda: time.sleep(100e-6)


def _obey(kv_caches, folder: pathlib.Path) -> None:
    command = folder / "flip"
    while True:
        if command.exists():
            layer, block = map(int, command.read_text().split())
            _flip(sorted(kv_caches.items())[layer][1], block)
            command.unlink()
        time.sleep(0.02)


def _flip(cache, block: int) -> None:
    """Makes one value of the first head enormous: the highest bit of its exponent."""
    import torch

    content = cache[block, 0].reshape(-1)
    assert content.data_ptr() == cache[block, 0].data_ptr(), "a copy would change nothing"
    # The second half is values on vLLM's CPU backend. A value, and not a key, is in every sum.
    values = content[content.numel() // 2 :]
    # That bit is free in what is less than two.
    small = (values.abs() < 1) & (values.abs() > 0.01)
    index = int(small.nonzero()[0])
    values[index : index + 1].view(torch.uint8)[-1] ^= 0x40
