"""Every metric of Baton. Names exist here and nowhere else.

Where vLLM has the same figure, its name follows the prefix `baton_`.
"""

from baton_telemetry.exposition import Exposition, serve_metrics
from baton_telemetry.kvstore import KvstoreMetrics
from baton_telemetry.registry import PREFIX, RoleMetrics
from baton_telemetry.router import RouterMetrics
from baton_telemetry.worker import PAGE_STATES, PoolStats, WorkerMetrics

__all__ = [
    "PAGE_STATES",
    "PREFIX",
    "Exposition",
    "KvstoreMetrics",
    "PoolStats",
    "RoleMetrics",
    "RouterMetrics",
    "WorkerMetrics",
    "serve_metrics",
]
