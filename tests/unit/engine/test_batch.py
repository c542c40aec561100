"""The vectorised batch against a loop over tokens that states what each field means."""

import dataclasses

import numpy as np
import pytest
import torch

from baton_engine.batch import StepInput, forward_batch, sampling_rows
from baton_engine.page_table import PageTable

PAGE = 4


def random_step(rng: np.random.Generator, rows: int, stateful: bool) -> tuple[StepInput, PageTable]:
    slots = rng.permutation(rows + 3)[:rows]
    context = rng.integers(0, 30, rows)
    query = np.where(rng.random(rows) < 0.5, 1, rng.integers(1, 9, rows))
    offsets = np.concatenate([[0], np.cumsum(query)[:-1]])
    columns = [slots, query, context, rng.integers(0, 2, rows), offsets, query > 1]
    table = PageTable(rows + 3, 16)
    pages = rng.permutation(16 * (rows + 3)).reshape(rows + 3, 16)
    deltas = [[s, i, pages[s, i]] for s in slots for i in range(16)]
    table.apply(np.empty(0, np.int32), np.array(deltas, np.int32))
    step = StepInput(
        rows=np.stack(columns, 1).astype(np.int32),
        token_ids=rng.integers(0, 1000, int(query.sum())).astype(np.int32),
        page_deltas=np.empty((0, 3), np.int32),
        slot_resets=np.empty(0, np.int32),
        copies=np.empty((0, 2), np.int32),
        states=rng.permutation(2 * rows).astype(np.int32).reshape(rows, 2)[: rows * stateful],
    )
    return step, table


@pytest.mark.parametrize("seed", range(20))
def test_every_field_says_what_a_loop_over_tokens_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    step, table = random_step(rng, int(rng.integers(1, 9)), bool(seed % 2))
    batch = forward_batch(step, table, PAGE, torch.device("cpu"))

    order = [r for r in range(len(step.rows)) if step.rows[r, 1] == 1]
    assert batch.decode_rows == len(order)
    order += [r for r in range(len(step.rows)) if step.rows[r, 1] != 1]
    tokens, positions, write_slots, starts, last_of = [], [], [], [0], {}
    for r in order:
        slot, query, context, _, offset, _ = step.rows[r].tolist()
        for i in range(query):
            position = context + i
            page = int(table.rows(np.array([slot], np.int32), 16)[0, position // PAGE])
            tokens.append(int(step.token_ids[offset + i]))
            positions.append(position)
            write_slots.append(page * PAGE + position % PAGE)
        last_of[r] = len(tokens) - 1
        starts.append(len(tokens))
    assert batch.token_ids.tolist() == tokens
    assert batch.positions.tolist() == positions
    assert batch.write_slots.tolist() == write_slots
    assert batch.query_starts.tolist() == starts
    totals = (step.rows[:, 1] + step.rows[:, 2])[order]
    assert batch.context_tokens.tolist() == totals.tolist()
    assert batch.page_tables.shape == (len(order), -(-int(totals.max()) // PAGE))
    sampling = [r for r in range(len(step.rows)) if step.rows[r, 3]]
    assert batch.logit_rows.tolist() == [last_of[r] for r in sampling]
    if seed % 2:
        assert batch.states is not None
        assert batch.states.reads.tolist() == step.states[order, 0].tolist()
        assert batch.states.writes.tolist() == step.states[order, 1].tolist()
    else:
        assert batch.states is None
    assert batch.token_ids.dtype == batch.write_slots.dtype == torch.int64
    assert batch.query_starts.dtype == batch.page_tables.dtype == torch.int32


def stepping(rows: np.ndarray, token_ids: np.ndarray) -> StepInput:
    none = np.empty(0, np.int32)
    return StepInput(rows, token_ids, none.reshape(0, 3), none, none.reshape(0, 2))


def test_sampling_rows_name_slot_and_position_of_the_new_token() -> None:
    rows = np.array([[3, 1, 10, 1, 0, 1], [1, 5, 0, 0, 1, 0], [2, 4, 8, 1, 6, 0]], np.int32)
    sampling = sampling_rows(stepping(rows, np.arange(10, dtype=np.int32)))
    assert sampling.rows.tolist() == [0, 2]
    assert sampling.slots.tolist() == [3, 2]
    assert sampling.positions.tolist() == [11, 12]
    assert sampling.guesses is None


@pytest.mark.parametrize("seed", range(10))
def test_rows_with_guesses_are_one_row_for_each_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain, table = random_step(rng, int(rng.integers(1, 9)), stateful=False)
    rows = plain.rows.copy()
    fed = rng.random(len(rows)) < 0.6
    rows[:, 5] = fed | (rows[:, 1] == 1)
    rows[fed, 3] = rows[fed, 1]  # a decode row's logits are all wanted
    step = stepping(rows, plain.token_ids)
    singles, guesses, slots = [], [], []
    for slot, query, context, samples, offset, kind in rows.tolist():
        if samples <= 1:
            singles.append([slot, query, context, samples, offset, kind])
            guesses += [-1] * samples
        else:
            singles += [[slot, 1, context + i, 1, offset + i, kind] for i in range(query)]
            guesses += [*step.token_ids[offset + 1 : offset + query].tolist(), -1]
        slots += [slot] * samples
    expected = forward_batch(
        stepping(np.array(singles, np.int32), step.token_ids), table, PAGE, torch.device("cpu")
    )
    batch = forward_batch(step, table, PAGE, torch.device("cpu"))
    for field in dataclasses.fields(batch):
        one, other = getattr(batch, field.name), getattr(expected, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name
    sampling = sampling_rows(step)
    first = rows[:, 2] + rows[:, 1] - rows[:, 3] + 1
    assert sampling.positions.tolist() == first[rows[:, 3] > 0].tolist()
    if (rows[:, 3] > 1).any():
        assert sampling.guesses is not None and sampling.guesses.tolist() == guesses
        assert np.repeat(sampling.slots, sampling.samples).tolist() == slots
    else:
        assert sampling.guesses is None
