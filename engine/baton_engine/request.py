"""What a service asks the engine to do: one attempt at one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import Peer

if TYPE_CHECKING:
    import xgrammar


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled constraint; see baton_engine.sampling.grammar."""

    compiled: xgrammar.CompiledGrammar


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Already validated and resolved by the router; a seed is always given.

    The sampler is a pure function of (seed, position, logits) and of the token counts
    that the penalties need.
    """

    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps every token
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    # None: no log-probs; n: the chosen token's and those of the n best tokens.
    logprobs: int | None = None
    grammar: Grammar | None = None  # what the output must be


@dataclass(frozen=True, slots=True)
class StopParams:
    """When to end before `max_new_tokens`. The router cuts the text at stop strings."""

    eos_token_ids: tuple[int, ...] = ()  # empty when eos is to be ignored
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A peer that can lease leading pages of a request's chain. A hint."""

    peer: Peer
    pages: int  # the peer holds the first `pages` full pages
    # Not empty: of those only the pages whose bit is set (bit i % 8 of byte i / 8). Sources with
    # this field that follow one another have the pages between them: a sharded kvstore. A state
    # is where the page is that it stands after.
    only: bytes = b""

    def has(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these page indices it holds."""
        held = indices < self.pages
        if self.only:
            bits = np.unpackbits(np.frombuffer(self.only, np.uint8), bitorder="little")
            held &= indices < len(bits)
            held[held] = bits[indices[held]] == 1
        return held


@dataclass(frozen=True, slots=True)
class Generate:
    """Fetch what the sources hold, compute the rest, decode."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Compute the prompt, sample one token, hold the pages for this reader."""

    reader: str  # the reader's Peer.name


@dataclass(frozen=True, slots=True)
class Await:
    """Pull the prompt's pages and the first token from this prefill worker, then decode."""

    prefill: Peer


Goal = Generate | HandOver | Await


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt. (request_id, attempt) names it in every event."""

    request_id: str
    attempt: int
    # int32 [n]: the prompt, then the tokens that earlier attempts emitted.
    token_ids: NDArray[np.int32]
    # How many of token_ids are the prompt; the rest count as output for the penalties.
    prompt_tokens: int
    max_new_tokens: int  # still to be generated in this attempt, >= 1
    sampling: SamplingParams
    stop: StopParams
    cache_key: bytes  # 16 bytes: keys the page hashes (tenant and model)
    goal: Goal = field(default_factory=Generate)
    sources: tuple[Source, ...] = ()  # best first

    @property
    def key(self) -> RequestKey:
        return (self.request_id, self.attempt)


RequestKey = tuple[str, int]
