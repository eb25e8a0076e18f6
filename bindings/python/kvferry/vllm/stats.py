"""Statistics under vLLM's own keys and metric names, so that dashboards keep working.

vLLM's classes do the work: they are plain Python, import no NIXL, and MultiConnector and the API server
rebuild them from the same dictionary of lists.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import (
    NixlKVConnectorStats,
    NixlPromMetrics,
)

__all__ = ["NixlKVConnectorStats", "NixlPromMetrics", "from_library"]


def from_library(values: dict[str, list[float]]) -> NixlKVConnectorStats | None:
    """What a rank has to report since the last time; None is nothing."""
    if not values:
        return None
    stats = NixlKVConnectorStats()
    stats.data.update((key, list_) for key, list_ in values.items() if key in stats.data)
    return None if stats.is_empty() else stats
