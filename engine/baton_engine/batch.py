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
NO_GUESS = -1


@dataclass(frozen=True, slots=True)
class StepInput:
    """All that a rank needs to run one step; the arrays are the scheduler's plan, int32.

    rows [R, 6]: slot, query tokens, context tokens before the step, samples (how many of its last
    tokens want logits: 0 or 1, or 1 + guesses), offset of the row's first token in token_ids, kind
    (0 prompt chunk, 1 decode).
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

    rows: NDArray[np.int64]  # [S] indices into StepInput.rows
    slots: NDArray[np.int64]  # [S]
    positions: NDArray[np.int64]  # [S] index in prompt + output of the first token to be sampled
    # What the step guessed to follow each logit row's token, -1 where it did not: int32 [L], L the
    # sum of all samples. None when no row carries guesses (L is S then).
    guesses: NDArray[np.int32] | None = None
    samples: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # [S] if so

    def of_logits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Slot and position of what each row of the logits is for: [L] each."""
        if self.guesses is None:
            return self.slots, self.positions
        within = np.arange(len(self.guesses)) - np.repeat(
            np.cumsum(self.samples) - self.samples, self.samples
        )
        slots = np.repeat(self.slots, self.samples)
        return slots, np.repeat(self.positions, self.samples) + within


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step gives its sampling rows; valid until the next one."""

    logits: torch.Tensor  # float32 [L, V]
    drawn: torch.Tensor | None = None  # [L, ...], when it was captured and drew by their wishes


def sampling_rows(step: StepInput) -> Sampling:
    """Which of a step's rows sample, and where their tokens go."""
    sampling = np.flatnonzero(step.rows[:, SAMPLES])
    chosen = step.rows[sampling].astype(np.int64)
    samples = chosen[:, SAMPLES]
    positions = chosen[:, CONTEXT] + chosen[:, QUERY] - samples + 1
    if not len(samples) or samples.max() == 1:
        return Sampling(sampling, chosen[:, SLOT], positions)
    ends = np.cumsum(samples)
    fed = np.repeat(chosen[:, OFFSET] + chosen[:, QUERY] - ends, samples) + np.arange(ends[-1])
    guesses = np.full(ends[-1], NO_GUESS, np.int32)
    followed = np.delete(np.arange(ends[-1]), ends - 1)  # all but each row's last token
    guesses[followed] = step.token_ids[fed[followed] + 1]
    return Sampling(sampling, chosen[:, SLOT], positions, guesses, samples)


def one_row_a_guess(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Decode rows that carry guesses as one row for each of their tokens; the others as they are.

    Each layer writes all entries of a step before it attends, so a guess sees the ones before it,
    and every token is computed as it would be had it been the only one of its step.
    """
    if not len(rows) or rows[:, SAMPLES].max() <= 1:
        return rows
    counts = row_counts(rows)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    single = np.repeat(counts > 1, counts)
    spread = np.repeat(rows, counts, axis=0)
    spread[:, CONTEXT] += within.astype(np.int32)
    spread[:, OFFSET] += within.astype(np.int32)
    spread[single, QUERY] = spread[single, SAMPLES] = 1
    return spread


def row_counts(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many rows `one_row_a_guess` makes of each: int64 [R]."""
    return np.maximum(rows[:, SAMPLES], 1).astype(np.int64)


def token_ends(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where in the batch's order of tokens each row's last one is. rows: one a guess."""
    order = _order(rows)
    ends = np.empty(len(rows), np.int64)
    ends[order] = np.cumsum(rows[order, QUERY].astype(np.int64)) - 1
    return ends


def _order(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rows of one token first, as ForwardBatch wants."""
    return np.argsort(rows[:, QUERY] != 1, kind="stable")


def forward_batch(
    step: StepInput, table: PageTable, page_size: int, device: torch.device
) -> ForwardBatch:
    """Build the model's batch for a step whose deltas are already in the table.

    Rows of one token come first, as ForwardBatch wants; logits come in the step's row order.
    """
    planned = one_row_a_guess(step.rows)
    order = _order(planned)
    rows = planned[order]
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
        logit_rows=on_device(last_token[np.flatnonzero(planned[:, SAMPLES])]),
        states=(
            StateSlots(on_device(step.states[order, 0]), on_device(step.states[order, 1]))
            if len(step.states)
            else None
        ),
    )
