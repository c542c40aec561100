"""From a scheduler's step to what the model and the sampler are given. No per-token Python."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.page_table import PageTable
from baton_modeling.batch import ForwardBatch, StateSlots

# Columns of StepInput.rows, as the scheduler writes them.
SLOT, QUERY, CONTEXT, SAMPLES, OFFSET, KIND = range(6)


@dataclass(frozen=True, slots=True)
class StepInput:
    """All that a rank needs to run one step; the arrays are the scheduler's plan, int32.

    rows [R, 6]: slot, query tokens, context tokens before the step, samples (0/1), offset of the
    row's first token in token_ids, kind (0 prompt chunk, 1 decode).
    token_ids [T]. Before the rows, in this order: slot_resets [S], page_deltas [D, 3] (slot, page
    index, page), copies [C, 2] (source page, target page).
    """

    rows: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    page_deltas: NDArray[np.int32]
    slot_resets: NDArray[np.int32]
    copies: NDArray[np.int32]
    # [R, 2] for models with a recurrent state (page to read it from, -1 for none; page to write it
    # to), [0, 2] for others.
    states: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))

    @property
    def is_empty(self) -> bool:
        """Whether no rank has anything to do."""
        return not (
            self.rows.size or self.slot_resets.size or self.page_deltas.size or self.copies.size
        )


@dataclass(frozen=True, slots=True)
class Sampling:
    """The rows that sample, in the step's order (the order of the logits)."""

    rows: NDArray[np.int64]  # [L] indices into StepInput.rows
    slots: NDArray[np.int64]  # [L]
    positions: NDArray[np.int64]  # [L] index in prompt + output of the token to be sampled


def sampling_rows(rows: NDArray[np.int32]) -> Sampling:
    """Which of a step's rows sample, and where their tokens go."""
    sampling = np.flatnonzero(rows[:, SAMPLES])
    chosen = rows[sampling].astype(np.int64)
    return Sampling(sampling, chosen[:, SLOT], chosen[:, CONTEXT] + chosen[:, QUERY])


def forward_batch(
    step: StepInput, table: PageTable, page_size: int, device: torch.device
) -> ForwardBatch:
    """Build the model's batch for a step whose deltas are already in the table.

    Rows of one token come first, as ForwardBatch wants; logits come in the step's row order.
    """
    order = np.argsort(step.rows[:, QUERY] != 1, kind="stable")
    rows = step.rows[order]
    lengths = rows[:, QUERY].astype(np.int64)
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])

    row_of = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(int(starts[-1])) - starts[row_of]
    positions = rows[row_of, CONTEXT] + within
    pages = table.pages(rows[row_of, SLOT], positions // page_size)
    write_slots = pages.astype(np.int64) * page_size + positions % page_size

    total = rows[:, CONTEXT] + rows[:, QUERY]
    width = -(-int(total.max()) // page_size)
    last_token = np.empty(len(rows), np.int64)
    last_token[order] = starts[1:] - 1

    def on_device(array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return ForwardBatch(
        token_ids=on_device(step.token_ids[rows[row_of, OFFSET] + within].astype(np.int64)),
        positions=on_device(positions.astype(np.int64)),
        write_slots=on_device(write_slots),
        query_starts=on_device(starts.astype(np.int32)),
        context_tokens=on_device(total.astype(np.int32)),
        page_tables=on_device(table.rows(rows[:, SLOT], width)),
        decode_rows=int(np.count_nonzero(lengths == 1)),
        logit_rows=on_device(last_token[np.flatnonzero(step.rows[:, SAMPLES])]),
        states=(
            StateSlots(on_device(step.states[order, 0]), on_device(step.states[order, 1]))
            if len(step.states)
            else None
        ),
    )
