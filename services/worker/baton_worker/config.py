"""What a worker is told at its start: its engine's settings, and who it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from baton_engine import EngineConfig
from baton_rpc import Address, Addresses


class WorkerConfig(EngineConfig):
    """Everything one worker is told; both roles have the same keys."""

    name: Annotated[str, Field(min_length=1, max_length=128)]  # unique in the cluster
    listen: Address  # routers and readers; port 0 takes a free one
    # host:port under which others reach us, when it is not `listen` (0.0.0.0, NAT).
    advertise: Address | None = None
    metrics: Address | None = None  # None: no /metrics route
    # Every kvstore of the cluster; one may stand alone. None: nobody learns what is held here.
    kvstore: Addresses = ()
    # Also let this gateway drive us without a router; needs the extra [gateway].
    gateway: Literal["smg"] | None = None
    # How long running requests may go on after SIGTERM.
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError(f"worker name {name!r} has characters that cannot be printed")
        return name

    @property
    def engine(self) -> EngineConfig:
        """The engine's part alone, as its other ranks want it."""
        return EngineConfig(**{key: getattr(self, key) for key in EngineConfig.model_fields})
