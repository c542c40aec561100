"""What the kvstore is told at its start."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from baton_transfer import Transport


class KvstoreConfig(BaseModel):
    """One kvstore process: a directory, a DRAM tier, an NVMe tier below it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("kvstore", min_length=1, description="name in the directory")
    listen: str = Field("127.0.0.1:7300", description="host:port of its gRPC services")
    advertise: str | None = Field(
        None, description="host:port by which workers reach it; `listen` when unset"
    )
    metrics: str | None = Field(None, description="host:port of /metrics; none when unset")
    capacity_mb: int = Field(256, ge=0, description="MiB of the DRAM tier; 0: directory only")
    nvme_path: Path | None = Field(
        None, description="directory of the NVMe tier, of its own; none when unset"
    )
    nvme_mb: int = Field(4096, ge=1, description="MiB of the NVMe tier, of all cache groups")
    transport: Transport = Field(
        Transport.LOCAL, description="how pages travel: local, tcp or rdma, as the workers say"
    )
    admission: Literal["reuse", "all"] = Field(
        "reuse",
        description="which pages a tier takes: those used twice, of a live session or shared by "
        "sessions; or all that are published (of several cache groups: once a turn has had them)",
    )
    sightings: int = Field(1 << 18, ge=1, description="pages whose use is remembered")
    sessions: int = Field(65_536, ge=1, description="session leases at a time")
    in_flight_mb: int = Field(64, ge=1, description="MiB that offloads move at a time")
    offload_delay_s: float = Field(
        0.25, ge=0, description="how long a published page waits: hand-overs go first"
    )
    lease_ttl_s: float = Field(10.0, ge=1, le=60, description="longest lease between renewals")
    holder_timeout_s: float = Field(
        7.0,
        ge=1,
        description="silence after which a holder is forgotten; heartbeats come every 2 s",
    )
    replicas: tuple[str, ...] = Field(
        (),
        description="every kvstore of the cluster, this one included, as workers dial them; "
        "each keeps the pages that consistent hashing gives it; empty: this one alone",
    )
    hot_uses: int = Field(
        8, ge=2, description="a page used so often is kept by a second replica too"
    )
    watcher_queue: int = Field(
        1024, ge=1, description="events a slow watcher may lag behind before it is cut off"
    )

    @property
    def address(self) -> str:
        """As workers dial it."""
        return self.advertise or self.listen

    @model_validator(mode="after")
    def _among_replicas(self) -> "KvstoreConfig":
        if self.replicas and self.address not in self.replicas:
            raise ValueError(
                f"replicas are {', '.join(self.replicas)}; this kvstore's own address, "
                f"{self.address}, must be among them"
            )
        return self

    @field_validator("listen", "advertise", "metrics")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError(f"{value!r} is not host:port, such as 127.0.0.1:7300")
        return value
