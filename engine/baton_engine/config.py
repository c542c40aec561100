"""What an operator may say about one engine, and the limits that make it valid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from baton_transfer import Transport

Launcher = Literal["process", "ray"]


class Speculative(BaseModel):
    """How tokens are guessed that the next step then verifies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # mtp: by the multi-token-prediction layer of the checkpoint.
    method: Literal["mtp"] = "mtp"
    # Guesses of each step for each request; the layer is trained for the first.
    tokens: Annotated[int, Field(ge=1, le=64)] = 1


class EngineConfig(BaseModel):
    """One worker's execution plane. Lengths are in tokens, times in milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_path: Path
    dtype: Literal["float32", "bfloat16"] = "float32"
    # How keys, values and latents are kept: "fp8" is float8_e4m3 with a scale per token.
    kv_cache_dtype: Literal["model", "bfloat16", "fp8"] = "model"
    # How the model's programs run. "compiled" (cpu) compiles what lies between attention, experts
    # and collectives before the worker is ready, which takes minutes the first time; "graphs"
    # (cuda) captures decoding steps by rows and replays them.
    execution: Literal["eager", "compiled", "graphs"] = "eager"
    # None: one token a step. Workers that exchange pages must say the same: pages hold the drafting
    # layer's entries too.
    speculative: Speculative | None = None
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"

    page_size: Annotated[int, Field(ge=1, le=1024)] = 16
    num_pages: Annotated[int, Field(ge=2)] = 4096

    # Only for models with a recurrent state: how many states and snapshots of them there is room
    # for (None: two for each running request), and after how many tokens a snapshot is kept for
    # reuse, a multiple of page_size (None: 16 pages).
    state_pages: Annotated[int, Field(ge=2)] | None = None
    snapshot_every: Annotated[int, Field(ge=1)] | None = None

    max_running: Annotated[int, Field(ge=1, le=4096)] = 64
    max_waiting: Annotated[int, Field(ge=1)] = 1024
    # Tokens of one step: decode rows first, the rest of the budget goes to prompt chunks.
    max_step_tokens: Annotated[int, Field(ge=1)] = 1024
    max_chunk_tokens: Annotated[int, Field(ge=1)] = 512
    # Steps planned before the one in flight is over. The scheduler can do 1; this engine cannot.
    overlap: int = 0
    # Prompt and output together; None takes the model's own limit.
    max_context: Annotated[int, Field(ge=2)] | None = None

    tp: Annotated[int, Field(ge=1, le=64)] = 1
    launcher: Launcher = "process"
    # What collectives cost here, written by baton tune-comm; None takes the defaults. Every rank
    # reads it, and all must find the same contents.
    cost_table: Path | None = None
    # Threads torch may use in each rank; None leaves torch's own choice.
    threads: Annotated[int, Field(ge=1)] | None = None

    # How long a computed prompt waits for the reader that asked for it.
    hold_ms: Annotated[int, Field(ge=1)] = 30_000
    # How long a request may await a prefill worker that announces nothing new
    # before this worker computes the prompt itself.
    await_ms: Annotated[int, Field(ge=1)] = 60_000
    lease_ttl_ms: Annotated[int, Field(ge=100, le=600_000)] = 15_000
    # Pages in one lease: bounds what one burst can pin at a holder.
    fetch_batch_pages: Annotated[int, Field(ge=1)] = 64
    # How pages travel: local (all workers on one host), tcp, rdma. Every process of a cluster
    # says the same; UCX_ variables of the environment go before it.
    transport: Transport = Transport.LOCAL
    # xxh3-64 of every sealed page, sent with leases. None: on for cpu, off for cuda.
    checksums: bool | None = None
    # Whether readers on the same host find sealed pages in a table, and read a few without asking.
    # None: where there are checksums, without which nothing so read could be trusted.
    list_sealed_pages: bool | None = None
    # For tests of faults: overwrites every page that becomes free. Never on by itself.
    debug_poison_free_pages: bool = False

    @model_validator(mode="after")
    def _limits_agree(self) -> EngineConfig:
        if self.overlap != 0:
            raise ValueError(
                f"overlap is {self.overlap}: this engine completes a step before it plans the "
                f"next; set overlap to 0"
            )
        if self.execution != "eager":
            where = {"compiled": "cpu", "graphs": "cuda"}[self.execution]
            if not self.device.startswith(where):
                raise ValueError(
                    f"execution is {self.execution}, which is for device {where}, and device is "
                    f"{self.device}; set execution to eager"
                )
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}, less than max_running "
                f"({self.max_running}): a step could not give every running request its token; "
                f"raise max_step_tokens or lower max_running"
            )
        if self.max_step_tokens < self.max_running * (1 + self.draft_tokens):
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}, but {self.max_running} running "
                f"requests (max_running) with speculative.tokens {self.draft_tokens} feed up to "
                f"{self.max_running * (1 + self.draft_tokens)} tokens a step, which would leave "
                f"none for prompts; raise max_step_tokens or lower one of the others"
            )
        if self.debug_poison_free_pages and (self.device != "cpu" or self.tp > 1):
            raise ValueError(
                f"debug_poison_free_pages works on the cpu with tp 1 only (device is "
                f"{self.device}, tp is {self.tp}); leave it out"
            )
        if self.list_sealed_pages and not self.keeps_checksums:
            raise ValueError(
                f"list_sealed_pages is true, but this worker keeps no checksums (checksums is "
                f"{self.checksums}, device is {self.device}), which prove what is read without a "
                f"lease; set checksums to true or leave list_sealed_pages out"
            )
        if self.snapshot_every is not None and self.snapshot_every % self.page_size:
            raise ValueError(
                f"snapshot_every is {self.snapshot_every}; it must be a multiple of page_size "
                f"({self.page_size}), since prefixes are shared by whole pages"
            )
        if self.max_context is not None:
            pages = -(-self.max_context // self.page_size)
            if pages > self.num_pages:
                raise ValueError(
                    f"max_context {self.max_context} needs {pages} pages of {self.page_size} "
                    f"tokens, but num_pages is {self.num_pages}; raise num_pages to at least "
                    f"{pages} or lower max_context"
                )
        return self

    @property
    def draft_tokens(self) -> int:
        """Guesses of each step for each request; 0 without speculation."""
        return 0 if self.speculative is None else self.speculative.tokens

    @property
    def keeps_checksums(self) -> bool:
        """Whether sealed pages carry checksums (the default follows the device)."""
        return self.device == "cpu" if self.checksums is None else self.checksums

    @property
    def lists_sealed_pages(self) -> bool:
        """Whether readers on the same host are told where sealed pages are."""
        return self.keeps_checksums if self.list_sealed_pages is None else self.list_sealed_pages
