"""vLLM's KV connector over kvferry: prefill and decode engines hand requests to each other.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvFerryConnector",
        "kv_connector_module_path": "kvferry.vllm", "kv_role": "kv_producer"}'

On the wire it is vLLM's own ``NixlConnector``, version for version: either side of a running fleet can
be changed over alone. Configuration, metrics and ``kv_transfer_params`` are the same too. This package
only carries data between vLLM and the library; docs/vllm.md is for operators.
"""

from __future__ import annotations

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
