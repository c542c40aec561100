"""The prefill worker: what is particular to the role, thin over the engine."""

from baton_prefill.config import PrefillConfig
from baton_prefill.role import PREFILL


async def serve(config: PrefillConfig) -> None:
    """Runs until SIGTERM or SIGINT, then drains."""
    # Here, because it brings torch: reading a configuration must not take seconds.
    from baton_worker.worker import serve_worker

    await serve_worker(config, PREFILL)


__all__ = ["PREFILL", "PrefillConfig", "serve"]
