"""The sampler over slots: purity, penalties, bias, log-probs, poisoned rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import RepetitionPenaltyLogitsProcessor

from baton_engine.ports import SampleResult
from baton_engine.request import SamplingParams
from baton_engine.sampling import TokenSampler
from baton_engine.sampling.captured import CapturedDraw

VOCAB = 97
NONE = np.empty(0, np.int32)
CPU = torch.device("cpu")
params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.8, 1.5]),
    top_p=st.sampled_from([1.0, 0.7]),
    top_k=st.sampled_from([0, 1, 9]),
    min_p=st.sampled_from([0.0, 0.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.sampled_from([None, 0, 4]),
)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def history(*tokens: int) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)


def step(
    sampler: TokenSampler, logits: torch.Tensor, slots: NDArray[np.int64], position: int
) -> SampleResult:
    with torch.inference_mode():  # as the model makes them: not to be changed outside of it
        made = logits.clone()
    return sampler.sample(made, slots, np.full(len(slots), position, np.int64))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_request_is_alone_in_any_batch(data: st.DataObject) -> None:
    """Several steps in a batch give what each request gives alone, in another slot, elsewhere
    continued: tokens and log-probs."""
    rows = data.draw(st.integers(2, 6))
    requests = [data.draw(params_strategy) for _ in range(rows)]
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    prompts = [random.integers(0, VOCAB, 5).astype(np.int32) for _ in range(rows)]
    steps = 4
    logits = torch.from_numpy(random.normal(0, 3, (steps, rows, VOCAB))).float()

    batch = TokenSampler(VOCAB, 16)
    slots = random.permutation(16)[:rows].astype(np.int64)
    for slot, params, prompt in zip(slots.tolist(), requests, prompts, strict=True):
        batch.add(slot, params, prompt, NONE)
    together = [step(batch, logits[i], slots, 5 + i) for i in range(steps)]

    for row, (params, prompt) in enumerate(zip(requests, prompts, strict=True)):
        moved_at = data.draw(st.integers(0, steps))
        sampler = TokenSampler(VOCAB, 2)
        sampler.add(1, params, prompt, NONE)
        outputs: list[int] = []
        for i in range(steps):
            if i == moved_at:
                sampler = TokenSampler(VOCAB, 2)
                sampler.add(0, params, prompt, history(*outputs))
            slot = 0 if i >= moved_at else 1
            alone = step(sampler, logits[i, row : row + 1], ints(slot), 5 + i)
            outputs.append(int(alone.tokens[0]))
            assert outputs[-1] == together[i].tokens[row]
            if params.logprobs is not None:
                assert alone.logprobs is not None and together[i].logprobs is not None
                mine, theirs = alone.logprobs[0], together[i].logprobs[row]
                assert mine is not None and theirs is not None
                assert mine.token_id == theirs.token_id == outputs[-1]
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
                assert len(mine.top) == params.logprobs


def test_greedy_takes_the_first_of_equals_and_asks_for_no_log_probs() -> None:
    sampler = TokenSampler(VOCAB, 4)
    logits = torch.zeros(2, VOCAB)
    logits[1, [40, 60]] = 3.0
    result = step(sampler, logits, ints(0, 3), 1)
    assert result.tokens.tolist() == [0, 40]
    assert result.tokens.dtype == np.int32
    assert result.logprobs is None


def test_top_k_one_is_greedy_even_with_ties() -> None:
    sampler = TokenSampler(VOCAB, 1)
    sampler.add(0, SamplingParams(temperature=2.0, top_k=1, seed=5), NONE, NONE)
    logits = torch.zeros(1, VOCAB)
    assert [int(step(sampler, logits, ints(0), p).tokens[0]) for p in range(5)] == [0] * 5


def test_seed_and_position_make_the_draw() -> None:
    sampler = TokenSampler(VOCAB, 3)
    for slot, seed in enumerate([1, 1, 2**64 - 1]):
        sampler.add(slot, SamplingParams(temperature=1.0, seed=seed), NONE, NONE)
    logits = torch.zeros(3, VOCAB)
    tokens = np.stack([step(sampler, logits, ints(0, 1, 2), p).tokens for p in range(50)])
    assert (tokens[:, 0] == tokens[:, 1]).all()
    assert (tokens[:, 0] != tokens[:, 2]).sum() > 40
    assert len(set(tokens[:, 0].tolist())) > 25


def test_repetition_penalty_is_transformers() -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(0, 2, (1, VOCAB))).float()
    prompt, output = history(3, 3, 50), history(7, 50, 96)
    for penalty in (0.4, 1.7):
        seen = torch.from_numpy(np.concatenate([prompt, output]).astype(np.int64))[None]
        wanted = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
        # Read through the penalised logits by bias: the winner among pairs must agree.
        sampler = TokenSampler(VOCAB, 1)
        sampler.add(0, SamplingParams(repetition_penalty=penalty), prompt, output)
        assert step(sampler, logits, ints(0), 6).tokens[0] == int(wanted.argmax())
        penalised = sampler._penalties.applied(
            logits, ints(0), *(np.array([v], np.float32) for v in (penalty, 0, 0))
        )
        winner = int(wanted.argmax())
        others = torch.ones(VOCAB, dtype=torch.bool)
        others[winner] = False  # sampled above, hence counted now
        torch.testing.assert_close(penalised[0, others], wanted[0, others])


def test_frequency_counts_and_presence_does_not_and_prompt_is_neither() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [10, 11, 12]] = torch.tensor([1.0, 0.9, 0.0])

    def winner(frequency: float, presence: float, output: NDArray[np.int32]) -> int:
        sampler = TokenSampler(VOCAB, 1)
        params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
        sampler.add(0, params, history(10, 10, 10, 10), output)
        return int(step(sampler, logits, ints(0), 9).tokens[0])

    assert winner(1.0, 1.0, NONE) == 10
    assert winner(0.04, 0.0, history(10, 10)) == 10
    assert winner(0.04, 0.0, history(10, 10, 10)) == 11
    assert winner(0.0, 0.04, history(10, 10, 10)) == 10
    assert winner(0.0, 0.2, history(10)) == 11


def test_own_tokens_count_at_once() -> None:
    sampler = TokenSampler(VOCAB, 2)
    sampler.add(1, SamplingParams(presence_penalty=2.0), NONE, NONE)
    logits = torch.linspace(1, 0, VOCAB)[None]
    tokens = [int(step(sampler, logits, ints(1), p).tokens[0]) for p in range(10)]
    assert tokens == list(range(10))


def test_bias_decides_and_can_forbid() -> None:
    sampler = TokenSampler(VOCAB, 2)
    sampler.add(0, SamplingParams(logit_bias={5: 100.0, 6: 99.0}), NONE, NONE)
    sampler.add(1, SamplingParams(logit_bias={8: -100.0}, temperature=1.0), NONE, NONE)
    logits = torch.zeros(2, VOCAB)
    logits[:, 8] = 20.0
    drawn = [step(sampler, logits, ints(1, 0), p).tokens.tolist() for p in range(30)]
    assert all(biased == 5 and free != 8 for free, biased in drawn)


def test_log_probs_are_the_raw_models() -> None:
    sampler = TokenSampler(VOCAB, 3)
    base = SamplingParams(temperature=0.3, top_k=2, logit_bias={4: 50.0}, presence_penalty=1.0)
    sampler.add(0, replace(base, logprobs=3), NONE, history(1, 2))
    sampler.add(1, replace(base, logprobs=0), NONE, NONE)
    sampler.add(2, base, NONE, NONE)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    result = step(sampler, logits, ints(2, 0, 1), 8)
    wanted = logits.log_softmax(-1)
    assert result.logprobs is not None
    none, three, zero = result.logprobs
    assert none is None and zero is not None and three is not None
    assert zero.top == () and zero.token_id == result.tokens[2]
    assert three.logprob == pytest.approx(float(wanted[1, result.tokens[1]]))
    best = wanted[1].topk(3)
    assert [token for token, _ in three.top] == best.indices.tolist()
    assert [p for _, p in three.top] == pytest.approx(best.values.tolist())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "all"])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9)])
def test_a_poisoned_row_harms_nobody(bad: float | str, params: SamplingParams) -> None:
    sampler = TokenSampler(VOCAB, 3)
    full = replace(params, presence_penalty=0.5, logit_bias={3: 1.0}, logprobs=2)
    for slot, own in enumerate([params, full, params]):
        sampler.add(slot, own, NONE, NONE)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    good = step(sampler, logits, ints(0, 1, 2), 4)
    sampler.add(1, full, NONE, NONE)
    if bad == "all":
        logits[1] = -torch.inf
    else:
        logits[1, 17] = float(bad)
    result = step(sampler, logits, ints(0, 1, 2), 4)
    assert result.poisoned.tolist() == [False, True, False]
    assert good.poisoned.sum() == 0
    assert result.tokens[[0, 2]].tolist() == good.tokens[[0, 2]].tolist()
    # Its token was none: nothing was counted for it.
    assert not sampler._penalties._counts.any()


def test_minus_infinity_is_a_forbidden_token_not_a_poisoned_row() -> None:
    sampler = TokenSampler(VOCAB, 2)
    params = SamplingParams(temperature=1.0, repetition_penalty=1.2, logprobs=20)
    sampler.add(0, params, history(2), NONE)
    logits = torch.full((2, VOCAB), -torch.inf)
    logits[:, [2, 9]] = 1.0
    result = step(sampler, logits, ints(0, 1), 1)
    assert not result.poisoned.any()
    assert set(result.tokens.tolist()) <= {2, 9}


def test_slots_are_reused_and_unknown_ones_dropped_in_silence() -> None:
    sampler = TokenSampler(VOCAB, 64)
    logits = torch.linspace(1, 0, VOCAB)[None]
    for round_ in range(3):
        for slot in range(64):
            sampler.add(slot, SamplingParams(presence_penalty=2.0), NONE, history(0))
        assert step(sampler, logits, ints(63 - round_), 3).tokens[0] == 1
        for slot in range(64):
            sampler.drop(slot)
            sampler.drop(slot)
    assert step(sampler, logits, ints(5), 3).tokens[0] == 0
    assert sampler._penalties._counts.shape[0] == 64


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 12\).*\(1, 97\)"):
        TokenSampler(VOCAB, 1).sample(torch.zeros(1, 12), ints(0), ints(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(temperature=1.0, top_k=50, min_p=0.01, logit_bias={5: 3.0}),
        SamplingParams(temperature=1.0, presence_penalty=0.5, repetition_penalty=1.1),
    ],
)
def test_a_gpu_draws_what_a_cpu_draws(params: SamplingParams) -> None:
    logits = 3 * torch.randn(16, 30_000, generator=torch.Generator().manual_seed(2))
    drawn = []
    for device in ("cpu", "cuda"):
        sampler = TokenSampler(30_000, 16, device)
        for slot in range(16):
            sampler.add(slot, replace(params, seed=slot), history(1, 2, 3), history(3, 4))
        steps = [
            sampler.sample(logits.to(device, copy=True), np.arange(16), np.full(16, position))
            for position in range(8)
        ]
        drawn.append(np.stack([result.tokens for result in steps]))
    assert (drawn[0] == drawn[1]).mean() > 0.99  # exp rounds differently in the last bit


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_a_captured_step_draws_changes_nothing(data: st.DataObject) -> None:
    """Rows drawn by the tail of a step beside rows that are drawn from its logits: tokens,
    log-probs and poisoned rows are those of the sampler alone, which keeps the same history."""
    rows = data.draw(st.integers(1, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    alone, beside, captured = TokenSampler(VOCAB, 8), TokenSampler(VOCAB, 8), CapturedDraw(8, CPU)
    slots = random.permutation(8)[:rows].astype(np.int64)
    for slot in slots.tolist():
        params, prompt = data.draw(params_strategy), random.integers(0, VOCAB, 5).astype(np.int32)
        for sampler in (alone, beside):
            sampler.add(slot, params, prompt, NONE)
    for at in range(5, 9):
        logits = torch.from_numpy(random.normal(0, 3, (rows, VOCAB))).float()
        logits[random.random(rows) < 0.1, 3] = float("nan")
        expected = step(alone, logits, slots, at)
        positions = np.full(rows, at, np.int64)
        tail = captured.tails[captured.take(beside.wishes(slots, positions))]
        drawn = tail(logits.clone())
        assert drawn.shape == (rows, 2)
        result = beside.sample(logits.clone(), slots, positions, drawn)
        assert result.poisoned.tolist() == expected.poisoned.tolist()
        fine = ~expected.poisoned
        assert result.tokens[fine].tolist() == expected.tokens[fine].tolist()
        assert result.logprobs == expected.logprobs


def test_greedy_rows_wish_for_nothing() -> None:
    """Their steps end with the tail that sorts nothing; so do those of rows drawn afterwards."""
    sampler, captured = TokenSampler(VOCAB, 3), CapturedDraw(4, CPU)
    sampler.add(0, SamplingParams(), NONE, NONE)
    sampler.add(1, SamplingParams(temperature=1.0, frequency_penalty=0.5), NONE, NONE)
    sampler.add(2, SamplingParams(temperature=1.0), NONE, NONE)
    assert captured.take(sampler.wishes(ints(0, 1), ints(4, 9))) == 0
    assert captured.take(sampler.wishes(ints(0, 1, 2), ints(4, 9, 2))) == 1
