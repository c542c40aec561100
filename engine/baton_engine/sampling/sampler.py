"""The sampler: logits of a step in, one token per row out.

A row's token is a pure function of (seed, position, logits, earlier tokens): not of the batch it
is in, its row, its slot, or the worker. Logits are adjusted in this order: penalties (repetition,
then frequency and presence), logit bias, grammar; then the largest wins (temperature 0), or a
token is drawn after temperature, top-k, top-p and min-p. Log-probs are those of the model:
log_softmax of the logits as they came, before any adjustment.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.events import TokenLogprob
from baton_engine.ports import SampleResult
from baton_engine.request import SamplingParams
from baton_engine.sampling.captured import largest, wishes
from baton_engine.sampling.draw import draw
from baton_engine.sampling.grammar import GrammarMatchers
from baton_engine.sampling.logprobs import token_logprobs
from baton_engine.sampling.penalties import Penalties
from baton_engine.sampling.philox import uniforms
from baton_engine.sampling.slots import (
    ADJUSTED,
    BIASED,
    CONSTRAINED,
    LOGPROBS,
    PENALISED,
    RANDOM,
    SlotParams,
)


class TokenSampler:
    """Implements baton_engine.ports.Sampler. Not thread-safe; the step loop owns it."""

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._params = SlotParams(max_slots)
        self._penalties = Penalties(vocab_size, max_slots, torch.device(device))
        self._grammars = GrammarMatchers(vocab_size)

    @torch.inference_mode()
    def add(
        self,
        slot: int,
        params: SamplingParams,
        prompt_tokens: NDArray[np.int32],
        output_tokens: NDArray[np.int32],
    ) -> None:
        """Start a slot, replacing what was there."""
        if self._params.add(slot, params) & PENALISED:
            self._penalties.add(slot, prompt_tokens, output_tokens)
        else:
            self._penalties.drop(slot)
        self._grammars.drop(slot)
        if params.grammar is not None:
            self._grammars.add(slot, params.grammar, output_tokens)

    @torch.inference_mode()
    def drop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""
        self._params.drop(slot)
        self._penalties.drop(slot)
        self._grammars.drop(slot)

    def remembers(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[L] which slots draw by what they drew before: penalties and grammars."""
        return (self._params.needs[slots] & (PENALISED | CONSTRAINED)).astype(np.bool_)

    def wishes(
        self, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float64] | None:
        """What `CapturedDraw` is to know of a step's rows; None: it takes the largest logits."""
        return wishes(self._params, slots, positions, self._vocab_size)

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        drawn: torch.Tensor | None = None,
    ) -> SampleResult:
        """Sample one token per row and count it as output of its slot.

        logits: float32 [L, V], overwritten. slots: [L], those that remember at most once.
        positions: [L], the index in prompt + output that the new token gets. drawn: int64 [L, 2],
        what the captured step drew by the `wishes` of these rows. Raises ValueError for another
        vocabulary.
        """
        if logits.shape != (len(slots), self._vocab_size):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}, the sampler expects "
                f"({len(slots)}, {self._vocab_size}): one row per slot, one column per token"
            )
        needs = self._params.needs[slots]
        if drawn is not None:
            needs[(needs & ADJUSTED) == 0] &= ~RANDOM & 0xFF
        chosen = largest(logits) if drawn is None else drawn.clone()
        tokens, poisoned = chosen[:, 0], chosen[:, 1].bool()
        logprobs = None
        if needs.any():
            logprobs = self._adjust_and_draw(logits, tokens, poisoned, needs, slots, positions)
            chosen = torch.stack([tokens, poisoned.to(tokens.dtype)], -1)
        answer = chosen.cpu().numpy()  # one copy
        return SampleResult(answer[:, 0].astype(np.int32), logprobs, answer[:, 1].astype(np.bool_))

    def _adjust_and_draw(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        poisoned: torch.Tensor,
        needs: NDArray[np.uint8],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> list[TokenLogprob | None] | None:
        """Overwrite `tokens` in rows that need more than the largest logit."""
        logits.masked_fill_(poisoned[:, None], 0.0)  # so that nothing below meets a NaN
        asking = np.flatnonzero(needs & LOGPROBS)
        raw = logits[self._index(asking, logits)].log_softmax(-1) if len(asking) else None
        self._adjust(logits, tokens, poisoned, needs, slots)
        self._draw(logits, tokens, needs, slots, positions)
        self._record(tokens, poisoned, needs, slots)
        if raw is None:
            return None
        rows = self._index(asking, logits)
        told = token_logprobs(raw, tokens[rows], self._params.alternatives[slots[asking]])
        by_row: list[TokenLogprob | None] = [None] * len(slots)
        for row, logprob in zip(asking.tolist(), told, strict=True):
            by_row[row] = logprob
        return by_row

    def _adjust(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        poisoned: torch.Tensor,
        needs: NDArray[np.uint8],
        slots: NDArray[np.int64],
    ) -> None:
        changed = np.flatnonzero(needs & ADJUSTED)
        if not len(changed):
            return
        params = self._params
        penalised = np.flatnonzero(needs & PENALISED)
        if len(penalised):
            rows, at = self._index(penalised, logits), slots[penalised]
            logits[rows] = self._penalties.applied(
                logits[rows], at, params.repetition[at], params.frequency[at], params.presence[at]
            )
        biased = np.flatnonzero(needs & BIASED)
        if len(biased):
            which, ids, values = params.biases(slots[biased])
            rows = self._index(biased[which], logits)
            logits[rows, self._index(ids, logits)] += torch.as_tensor(values, device=logits.device)
        constrained = np.flatnonzero(needs & CONSTRAINED)
        if len(constrained):
            self._constrain(logits, poisoned, constrained, slots[constrained])
        rows = self._index(changed, logits)
        tokens[rows] = logits[rows].argmax(-1)

    def _constrain(
        self,
        logits: torch.Tensor,
        poisoned: torch.Tensor,
        constrained: NDArray[np.int64],
        slots: NDArray[np.int64],
    ) -> None:
        """Mask what the grammars do not allow; a row without any token left is poisoned."""
        allowed = self._grammars.allowed(slots).to(logits.device)
        rows = self._index(constrained, logits)
        stuck = ~allowed.any(-1)
        poisoned[rows] |= stuck
        logits[rows] = logits[rows].masked_fill(~(allowed | stuck[:, None]), float("-inf"))

    def _draw(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        needs: NDArray[np.uint8],
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        chosen = np.flatnonzero(needs & RANDOM)
        if not len(chosen):
            return
        params, at = self._params, slots[chosen]
        rows = self._index(chosen, logits)
        tokens[rows] = draw(
            logits[rows],
            params.temperature[at],
            params.top_k[at],
            params.top_p[at],
            params.min_p[at],
            uniforms(params.seed[at], positions[chosen]),
        )

    def _record(
        self,
        tokens: torch.Tensor,
        poisoned: torch.Tensor,
        needs: NDArray[np.uint8],
        slots: NDArray[np.int64],
    ) -> None:
        counting = (needs & PENALISED).astype(np.bool_)
        if counting.any():
            counted = np.flatnonzero(counting & ~poisoned.cpu().numpy())
            self._penalties.record(slots[counted], tokens[self._index(counted, tokens)])
        constrained = (needs & CONSTRAINED).astype(np.bool_)
        if constrained.any():
            chosen = np.flatnonzero(constrained & ~poisoned.cpu().numpy())
            self._grammars.record(slots[chosen], tokens[self._index(chosen, tokens)].cpu().numpy())

    @staticmethod
    def _index(rows: NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(rows, device=like.device)
