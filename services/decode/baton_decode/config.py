"""What a decode worker is told at its start."""

from __future__ import annotations

from baton_worker.config import WorkerConfig


class DecodeConfig(WorkerConfig):
    """The keys of every worker."""
