"""One rank's half of drafting: the model's multi-token-prediction layer after a step. The same on
every rank.

The layer's entry at position p is made of the model's hidden state there and of the token after it
(DeepSeek-V3, 2024, section 2.2), so it can be written once that token is known: after sampling, in
the step that computed p. What is left to be known lies in no state of a request beside its pages,
and pages that are reused, restored or handed over bring the layer's entries along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.batch import (
    CONTEXT,
    KIND,
    OFFSET,
    SLOT,
    StepInput,
    forward_batch,
    one_row_a_guess,
    row_counts,
    token_ends,
)
from baton_engine.page_table import PageTable
from baton_modeling.batch import ForwardBatch
from baton_modeling.drafter import CompiledDrafter

# Columns of DraftOrder.rows.
KEPT, FOLLOWING, WANTED = range(3)


@dataclass(frozen=True, slots=True)
class DraftOrder:
    """What ranks must know to draft after a step.

    rows int32 [R, 3], as the step's rows: how many of the row's tokens stand (all of a chunk, the
    accepted ones of a decode row), the token that follows the last of them, and whether guesses at
    what comes after that are wanted (0/1).
    """

    rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Ran:
    """The step that the next guesses follow."""

    step: StepInput
    batch: ForwardBatch
    hidden: torch.Tensor  # [T, hidden]


class Guesser:
    """Guesses greedily. Not thread-safe: one thread steps."""

    def __init__(
        self,
        drafter: CompiledDrafter,
        table: PageTable,
        page_size: int,
        device: torch.device,
        tokens: int,
    ) -> None:
        """tokens: guesses for each row, at most."""
        self._drafter = drafter
        self._table = table
        self._page_size = page_size
        self._device = device
        self._tokens = tokens
        self._ran: _Ran | None = None

    def note(self, step: StepInput, batch: ForwardBatch, hidden: torch.Tensor) -> None:
        """The model has run this step."""
        self._ran = _Ran(step, batch, hidden)

    @torch.inference_mode()
    def guess(self, order: DraftOrder) -> NDArray[np.int32]:
        """Guesses for the rows that want them, int32 [W, tokens]; -1 behind a row's last one.

        Writes the layer's entries of all tokens of the step. Each further guess takes the layer's
        own hidden state for the model's, and its entry is written over once the model has computed
        that position; where there is no page for it yet, the row has fewer guesses.
        """
        ran, self._ran = self._ran, None
        if ran is None:
            raise RuntimeError("guesses follow a step, and none has run")
        rows, asked = ran.step.rows, order.rows.astype(np.int64)
        counts = row_counts(rows)
        decode = rows[:, KIND] == 1
        last_row = np.cumsum(counts) - counts + np.where(decode, asked[:, KEPT] - 1, 0)
        last = token_ends(one_row_a_guess(rows))[last_row]
        following = ran.batch.token_ids.roll(-1)  # right within a row
        following[self._tensor(last)] = self._tensor(asked[:, FOLLOWING])

        wanted = np.flatnonzero(asked[:, WANTED])
        at = self._tensor(last[wanted])
        batch = replace(ran.batch, token_ids=following, logit_rows=at)
        logits, hidden = self._drafter.forward(batch, ran.hidden)
        guesses = torch.full((len(wanted), self._tokens), -1, device=self._device)
        guesses[:, 0] = logits.argmax(-1)
        positions = rows[wanted, CONTEXT] + asked[wanted, KEPT] - 1
        self._go_on(guesses, rows[wanted, SLOT], positions, hidden[at])
        return guesses.cpu().numpy().astype(np.int32)

    def _go_on(
        self,
        guesses: torch.Tensor,
        slots: NDArray[np.int32],
        positions: NDArray[np.int64],
        hidden: torch.Tensor,
    ) -> None:
        """Fill the columns after the first. positions: of the tokens that the first came from."""
        going = np.arange(len(slots))
        for depth in range(1, self._tokens):
            held = self._table.holds(slots[going], (positions[going] + depth) // self._page_size)
            if not held.all():
                hidden, going = hidden[self._tensor(np.flatnonzero(held))], going[held]
            if not len(going):
                return
            at = self._tensor(going)
            batch = self._single_tokens(slots[going], positions[going] + depth)
            batch = replace(batch, token_ids=guesses[at, depth - 1])
            logits, hidden = self._drafter.forward(batch, hidden)
            guesses[at, depth] = logits.argmax(-1)

    def _single_tokens(
        self, slots: NDArray[np.int32], positions: NDArray[np.int64]
    ) -> ForwardBatch:
        """A batch of one token a row; which one is said later."""
        none = np.empty(0, np.int32)
        rows = np.ones((len(slots), 6), np.int32)
        rows[:, SLOT], rows[:, CONTEXT] = slots, positions
        rows[:, OFFSET] = np.arange(len(slots))
        step = StepInput(
            rows=rows,
            token_ids=np.zeros(len(slots), np.int32),
            page_deltas=none.reshape(0, 3),
            slot_resets=none,
            copies=none.reshape(0, 2),
        )
        return forward_batch(step, self._table, self._page_size, self._device)

    def _tensor(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)
