"""The decode worker: what is particular to the role, thin over the engine."""

from baton_decode.config import DecodeConfig
from baton_decode.role import DECODE


async def serve(config: DecodeConfig) -> None:
    """Runs until SIGTERM or SIGINT, then drains."""
    # Here, because it brings torch: reading a configuration must not take seconds.
    from baton_worker.worker import serve_worker

    await serve_worker(config, DECODE)


__all__ = ["DECODE", "DecodeConfig", "serve"]
