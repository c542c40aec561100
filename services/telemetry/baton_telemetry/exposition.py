"""The /metrics route."""

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import start_http_server

from baton_telemetry.registry import RoleMetrics


class Exposition(NamedTuple):
    """A running /metrics route: its port, and the function that ends it."""

    port: int
    close: Callable[[], None]


def serve_metrics(address: str, metrics: RoleMetrics) -> Exposition:
    """Serves `metrics` on http://ADDRESS/metrics from a thread of its own.

    `address` is host:port; port 0 takes a free one. Raises ValueError for an
    address that is not one, OSError when it cannot be bound.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"metrics address {address!r} is not host:port, such as 127.0.0.1:9100")
    server, thread = start_http_server(
        int(port), addr=host.strip("[]") or "0.0.0.0", registry=metrics.registry
    )

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

    return Exposition(server.server_port, close)
