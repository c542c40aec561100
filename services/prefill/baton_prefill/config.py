"""What a prefill worker is told at its start."""

from __future__ import annotations

from baton_worker.config import WorkerConfig


class PrefillConfig(WorkerConfig):
    """The keys of every worker."""
