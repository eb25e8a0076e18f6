"""vLLM on kvferry: its KV connector, by which prefill and decode engines hand requests to each other.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvFerryConnector",
        "kv_connector_module_path": "kvferry.vllm", "kv_role": "kv_producer"}'

On the wire it is vLLM's own ``NixlConnector``, version for version: either side of a running fleet can
be changed over alone. Configuration, metrics and ``kv_transfer_params`` are the same too. This package
only carries data between vLLM and the library; docs/vllm.md is for operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import (
        KvFerryConnector,
        KvFerryPushConnector,
        NixlConnector,
        NixlPullConnector,
        NixlPushConnector,
    )

__all__ = [
    "KvFerryConnector",
    "KvFerryPushConnector",
    "NixlConnector",
    "NixlPullConnector",
    "NixlPushConnector",
]


def __getattr__(name: str) -> Any:
    """The classes, when they are asked for: the plugin is loaded before vLLM itself is whole."""
    if name in __all__:
        from . import connector

        return getattr(connector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
