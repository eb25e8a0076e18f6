"""What vLLM calls in each of its processes when it starts (entry point ``vllm.general_plugins``)."""

from __future__ import annotations

import os

#: Names of the stock connector, all of them classes of kvferry.vllm too.
STOCK_NAMES = ("NixlConnector", "NixlPullConnector", "NixlPushConnector")


def register() -> None:
    """Puts into vLLM what the environment asks for; may be called any number of times."""
    register_connectors()
    register_block_pool()


def register_connectors() -> None:
    """Makes ``KvFerryConnector`` known by name; with ``KVFERRY_REPLACE_NIXL=1`` it also takes the place
    of the stock connector, so that existing configurations run on kvferry unchanged."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    ours = ["KvFerryConnector", "KvFerryPushConnector"]
    if os.environ.get("KVFERRY_REPLACE_NIXL") == "1":
        ours += STOCK_NAMES
    for name in ours:
        KVConnectorFactory._registry.pop(name, None)
        KVConnectorFactory.register_connector(name, "kvferry.vllm", name)


def register_block_pool() -> None:
    """``KVFERRY_BLOCK_POOL=local`` or ``server``: our block pool instead of vLLM's."""
    from . import _backend

    if _backend.wanted():
        from . import block_pool

        block_pool.install()
