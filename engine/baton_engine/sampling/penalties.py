"""Penalties on repeated tokens: what each slot has seen, and what that does to its logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_FIRST_ROWS = 4


class Penalties:
    """Token counts of the slots that asked for penalties; others cost nothing.

    repetition (Keskar et al., CTRL, 2019): a token of prompt or output has its logit divided by
    the penalty when positive, multiplied when negative. frequency and presence (as OpenAI's API):
    count * frequency and presence once are subtracted for tokens of the output.
    """

    def __init__(self, vocab_size: int, max_slots: int, device: torch.device) -> None:
        self._row_of = np.full(max_slots, -1, np.int64)
        self._free: list[int] = []
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)

    def add(
        self, slot: int, prompt_tokens: NDArray[np.int32], output_tokens: NDArray[np.int32]
    ) -> None:
        """Start counting for a slot."""
        self.drop(slot)
        if not self._free:
            self._grow()
        row = self._row_of[slot] = self._free.pop()
        self._counts[row] = 0
        self._seen[row] = False
        outputs = torch.as_tensor(output_tokens.astype(np.int64), device=self._counts.device)
        vocab = self._counts.shape[1]
        self._counts[row] = torch.bincount(outputs, minlength=vocab).to(torch.int32)
        prompt = torch.as_tensor(prompt_tokens.astype(np.int64), device=self._counts.device)
        self._seen[row, prompt] = True
        self._seen[row, outputs] = True

    def drop(self, slot: int) -> None:
        """Stop counting; unknown slots are ignored."""
        if self._row_of[slot] >= 0:
            self._free.append(int(self._row_of[slot]))
            self._row_of[slot] = -1

    def record(self, slots: NDArray[np.int64], tokens: torch.Tensor) -> None:
        """One more output token per slot. tokens: int64 [len(slots)]; all slots were added."""
        rows = torch.as_tensor(self._row_of[slots], device=tokens.device)
        self._counts[rows, tokens] += 1  # slots are distinct, so no pair occurs twice
        self._seen[rows, tokens] = True

    def applied(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        repetition: NDArray[np.float32],
        frequency: NDArray[np.float32],
        presence: NDArray[np.float32],
    ) -> torch.Tensor:
        """Penalised logits, float32 [P, V]. logits: one row per slot; all slots were added."""
        device = logits.device
        rows = torch.as_tensor(self._row_of[slots], device=device)
        factor = torch.as_tensor(repetition, device=device)[:, None]
        scaled = torch.where(logits > 0, logits / factor, logits * factor)
        penalised = torch.where(self._seen[rows], scaled, logits)
        counts = self._counts[rows]
        penalised -= counts * torch.as_tensor(frequency, device=device)[:, None]
        penalised -= (counts > 0) * torch.as_tensor(presence, device=device)[:, None]
        # A penalty near zero must not make an infinity of a good logit.
        return penalised.clamp_(max=torch.finfo(torch.float32).max)

    def _grow(self) -> None:
        """Twice the rows: slots that never ask for penalties should not pay for the table."""
        rows = self._counts.shape[0]
        more = max(_FIRST_ROWS, rows)
        self._counts = torch.cat(
            [self._counts, self._counts.new_zeros((more, self._counts.shape[1]))]
        )
        self._seen = torch.cat([self._seen, self._seen.new_zeros((more, self._seen.shape[1]))])
        self._free.extend(range(rows + more - 1, rows - 1, -1))
