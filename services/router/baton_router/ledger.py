"""The record of one request: what was asked, what has been emitted, by which attempt.

It is all that a failover needs: an attempt that starts with `sequence` and the
same seed goes on with the same tokens. Updates are de-duplicated by position,
so a token is neither lost nor repeated whoever sends it how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire


class Gap(ValueError):
    """A worker skipped positions: tokens are missing between what is known and what it sent."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens nobody has seen before, in order; `logprobs` is as long, or empty."""

    token_ids: list[int]
    logprobs: list[pb.TokenLogprob]


@dataclass
class Ledger:
    """`prompt` int32 [N]; `emitted` in order. `attempt` counts executions from 1."""

    prompt: NDArray[np.int32]
    max_tokens: int
    stop_ids: frozenset[int]
    attempt: int = 0
    emitted: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)  # emitted behind the answer's end

    @property
    def length(self) -> int:
        """Tokens of prompt and output: the next position."""
        return len(self.prompt) + len(self.emitted)

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.max_tokens - len(self.emitted)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to generate, whatever a worker has yet to say."""
        return self.remaining <= 0 or bool(self.emitted and self.emitted[-1] in self.stop_ids)

    def sequence(self) -> NDArray[np.int32]:
        """Prompt and output, int32 [length]: what the next attempt starts with."""
        return np.concatenate([self.prompt, np.asarray(self.emitted, dtype=np.int32)])

    def accept(self, tokens: wire.RequestTokens) -> NewTokens:
        """Takes what is new in an update. Raises Gap when positions are missing."""
        known = self.length - tokens.first_position
        if known < 0:
            raise Gap(
                f"tokens from position {tokens.first_position} arrived, "
                f"but the next one is {self.length}"
            )
        fresh = list(tokens.token_ids[known:])[: max(0, self.remaining)]
        self.emitted.extend(fresh)
        logprobs = tokens.logprobs
        return NewTokens(fresh, list(logprobs[known : known + len(fresh)]) if logprobs else [])

    def forget_after(self, count: int) -> None:
        """Only the first `count` emitted tokens are part of the answer: a stop string ended it."""
        self.dropped = self.emitted[count:]
        del self.emitted[count:]

    def heard(self) -> NDArray[np.int32]:
        """Prompt and output with what was dropped, int32 [N]: what the worker has said so far."""
        return np.concatenate([self.sequence(), np.asarray(self.dropped, dtype=np.int32)])

    def sequel(self) -> "Ledger":
        """A record of what the present attempt says from now on."""
        left = self.remaining - len(self.dropped)
        return Ledger(self.heard(), left, self.stop_ids, self.attempt)


def token_list(ids: NDArray[np.int32]) -> Sequence[int]:
    """As protobuf's repeated fields take them."""
    values: list[int] = ids.tolist()
    return values
