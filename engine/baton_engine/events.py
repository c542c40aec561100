"""What the engine says: one StepEvents per step, everything that happened in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import FirstToken

Hashes = NDArray[np.uint8]  # [n, 16]


class FinishReason(Enum):
    """Why an attempt ended well."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    HANDED_OVER = "handed_over"  # HandOver only: the reader has every page


class FailReason(Enum):
    """Why an attempt ended badly: the names of baton.v1.ErrorReason without its prefix."""

    INVALID_PROMPT = "INVALID_PROMPT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    OVERLOADED = "OVERLOADED"
    OUT_OF_PAGES = "OUT_OF_PAGES"
    DRAINING = "DRAINING"
    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # a hand-over whose reader never came
    CANCELLED = "CANCELLED"
    NUMERIC = "NUMERIC"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a chosen token and of the most likely alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Cost:
    """What this worker spent on one attempt."""

    reused_tokens: int = 0  # from its own pages
    fetched_tokens: int = 0  # leased from peers
    computed_tokens: int = 0  # prompt tokens run through the model here
    pages_moved: int = 0
    bytes_moved: int = 0
    queue_us: int = 0  # submitted -> admitted
    prefill_us: int = 0  # admitted -> prompt computed here
    handover_us: int = 0  # first token announced by the prefill worker -> runnable here
    # Await: what the prefill worker said with the first token; None when it was lost.
    first_token: FirstToken | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The scheduler gave the attempt a slot (told once, also when it is later retracted)."""

    request_id: str
    attempt: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class TokensEmitted:
    """New tokens. `first_position` indexes prompt + output, as token_ids of the request does."""

    request_id: str
    attempt: int
    first_position: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token when asked for, else empty
    cost: Cost | None = None  # with the attempt's first tokens: what its prompt has cost


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """HandOver only: how many leading pages of the chain a reader can lease now."""

    request_id: str
    attempt: int
    sealed_pages: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """HandOver only: the prompt is complete, pages are held for the reader."""

    request_id: str
    attempt: int
    sealed_pages: int  # the partial last page included
    token_id: int
    logprob: TokenLogprob | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Done:
    """Last event of an attempt that ended well."""

    request_id: str
    attempt: int
    reason: FinishReason
    matched_stop: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class Failed:
    """Last event of an attempt that ended badly."""

    request_id: str
    attempt: int
    reason: FailReason
    message: str


Event = Admitted | TokensEmitted | PromptProgress | Prefilled | Done | Failed


@dataclass(frozen=True, slots=True)
class GroupPages:
    """Pages of a cache group beside the tokens; all but the leased ones add up to the group's."""

    free: int
    cached: int
    owned: int
    referenced: int
    leased: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """Counters and gauges of the page pool and the queue after a step; totals since the start."""

    total_pages: int
    free_pages: int  # free or evictable
    cached_pages: int  # of these: sealed, indexed, nobody's
    owned_pages: int  # being written: by requests, or by fetches
    referenced_pages: int  # sealed, and held by a request or a lease
    leased_pages: int
    quarantined_pages: int
    running: int
    waiting: int
    fetching: int
    prefilled: int
    draining: int
    computed_tokens: int  # prompt tokens run through the model
    generated_tokens: int
    reused_tokens: int
    fetched_tokens: int
    retractions: int
    pages_moved: int  # pulled from peers by this worker
    bytes_moved: int
    failed_fetches: int  # pulls that ended with something missing
    beside: tuple[GroupPages, ...] = ()  # of groups 1, 2, ...
    draft_tokens: int = 0  # guesses that steps verified
    accepted_draft_tokens: int = 0  # of these: what would have been sampled


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Where one step's time went (microseconds) and how large it was."""

    decode_rows: int = 0
    prompt_tokens: int = 0
    plan_us: int = 0
    forward_us: int = 0
    sample_us: int = 0
    draft_us: int = 0  # guessing what comes next
    complete_us: int = 0  # scheduler.complete, checksums, building the events


@dataclass(frozen=True, slots=True)
class PullReport:
    """One pull from one peer, ended."""

    holder: str  # the peer's name
    pages: int  # that arrived and were valid
    moved_bytes: int
    seconds: float  # lease to verdict
    failure: str = ""  # one word of baton_transfer.PullFailure; empty when all arrived


def _no_hashes() -> Hashes:
    return np.empty((0, 16), np.uint8)


@dataclass(frozen=True, slots=True)
class StepEvents:
    """Everything since the last one, in order. Published on the event loop, never concurrently."""

    step: int  # increases by one
    events: tuple[Event, ...]
    pool: PoolState
    times: StepTimes | None = None  # None when the model did not run
    # For the directory: full pages that can be leased from now on, and that cannot any more.
    # A hash can be in both; `evicted` happened first.
    sealed: Hashes = field(default_factory=_no_hashes)
    evicted: Hashes = field(default_factory=_no_hashes)
    pulls: tuple[PullReport, ...] = ()
