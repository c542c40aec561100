"""What a router is told at its start. Unknown keys are errors."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from baton_rpc import Address, Addresses

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The checkpoint whose tokenizer, chat template and limits the router reads."""

    path: Path
    name: str = Field(default="", description="served under this name; empty: the directory's")

    @property
    def served_name(self) -> str:
        """The name clients ask for."""
        return self.name or self.path.resolve().name


class WorkersConfig(_Section):
    """Where the workers' WorkerService is, as host:port."""

    prefill: tuple[Address, ...] = ()
    decode: tuple[Address, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "WorkersConfig":
        addresses = [*self.prefill, *self.decode]
        twice = {address for address in addresses if addresses.count(address) > 1}
        if twice:
            raise ValueError(f"worker addresses given twice: {sorted(twice)}")
        return self


class RoutingConfig(_Section):
    """The constants of the cost model in `routing.py`; seconds are seconds of time to first token.

    The defaults are of the size of a small model on CPU. Only their ratios
    decide, so a cluster needs to be told its own once, not precisely.
    """

    local_suffix_tokens: int | None = Field(
        default=None,
        ge=0,
        description=(
            "when set, it alone decides between local and remote: a missing suffix of at most "
            "this many tokens is computed by the decode worker, a longer one by a prefill worker; "
            "unset: the estimated costs decide"
        ),
    )
    local_tokens_per_s: Positive = 1_500.0  # a decode worker's prefill, beside its batch
    remote_tokens_per_s: Positive = 4_000.0  # a prefill worker's
    transfer_bytes_per_s: Positive = 2e9
    handover_overhead_s: NotNegative = 0.010  # announce, lease, read, release: once a hand-over
    restore_overhead_s: NotNegative = 0.002  # lease, read, release: once a fetch
    running_penalty_s: NotNegative = 0.002  # for each request that a decode worker already runs
    waiting_penalty_s: NotNegative = 0.250  # for each request queued there
    shortage_penalty_s: NotNegative = 5.0  # when the request does not fit its free pages
    expected_new_tokens: int = Field(default=256, ge=1)  # of an answer, for that judgement
    session_affinity_s: NotNegative = 0.050  # what staying with the session's worker is worth


class LimitsConfig(_Section):
    """What one router carries, and how long it tries."""

    max_concurrent_requests: int = Field(default=1024, ge=1)
    max_attempts: int = Field(default=3, ge=1, description="executions a request may lose, plus 1")
    no_worker_wait_s: NotNegative = 5.0
    drain_s: NotNegative = 30.0
    usage_wait_s: NotNegative = Field(
        default=0.2, description="for the prefill worker's figures, when nothing else has them"
    )
    reconnect_s: Positive = Field(default=1.0, description="longest pause between dial attempts")
    sessions: int = Field(default=65_536, ge=1, description="session leases at a time")
    session_ttl_s: Positive = Field(
        default=600.0, description="a session without a turn for so long is over"
    )
    hinted_pages: int = Field(
        default=262_144, ge=1, description="pages remembered from our own requests"
    )


class RouterConfig(_Section):
    """Everything one router is told."""

    name: str = Field(default="router", min_length=1)
    listen: Address
    metrics: Address | None = None
    model: ModelConfig
    workers: WorkersConfig
    kvstore: Addresses = Field(
        default=(), description="every kvstore of the cluster; one may stand alone"
    )
    gateway: Literal["smg"] | None = Field(
        default=None,
        description="serve this gateway's worker protocol beside baton.v1; needs [gateway]",
    )
    routing: RoutingConfig = RoutingConfig()
    limits: LimitsConfig = LimitsConfig()

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError(f"router name {name!r} has characters that cannot be printed")
        return name
