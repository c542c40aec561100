"""Rows with guesses against one draw after another: the tokens of a step that verifies are those
that as many steps of one token would have brought."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import baton_scheduler as scheduling
from baton_engine import EngineRequest, SamplingParams, StopParams
from baton_engine.batch import Sampling, StepOutput
from baton_engine.choosing import FINISH, GO_ON, POISONED, Outcome, TokenChooser
from baton_engine.core import EngineCore
from baton_engine.sampling import TokenSampler
from baton_engine.stops import TokenStopMatcher

VOCAB, SLOTS = 24, 8
WORDS = Tokenizer(WordLevel({chr(ord("a") + i): i for i in range(VOCAB)}))


@dataclass
class Bench:
    """A chooser whose requests all are there; slot i belongs to request i + 1."""

    requests: list[EngineRequest]

    def __post_init__(self) -> None:
        config = scheduling.Config(
            role=scheduling.Role.DECODE, page_size=4, num_pages=8, max_running=SLOTS,
            max_step_tokens=64, max_chunk_tokens=16, max_context=32, max_waiting=8, hold_us=1,
        )  # fmt: skip
        self.core = EngineCore(scheduling.Scheduler(config), 4, None)
        self.sampler, self.stops = TokenSampler(VOCAB, SLOTS), TokenStopMatcher(SLOTS, WORDS)
        self.chooser = TokenChooser(self.core, self.sampler, self.stops, SLOTS)
        for handle, request in enumerate(self.requests, start=1):
            self.core.ledger.add(handle, request, 0)

    def choose(self, logits: torch.Tensor, sampling: Sampling) -> Outcome:
        handles = (sampling.slots + 1).astype(np.uint64)
        self.chooser.wishes(handles, sampling)
        return self.chooser.choose(StepOutput(logits.clone()), handles, sampling)


def random_request(rng: np.random.Generator, index: int) -> EngineRequest:
    def maybe(value: float, otherwise: float) -> float:
        return value if rng.random() < 0.4 else otherwise

    sampling = SamplingParams(
        temperature=maybe(0.8, 0.0),
        top_p=maybe(0.8, 1.0),
        top_k=int(maybe(5, 0)),
        frequency_penalty=maybe(0.7, 0.0),
        presence_penalty=maybe(0.5, 0.0),
        repetition_penalty=maybe(1.3, 1.0),
        logit_bias={3: 2.0, 7: -1.0} if rng.random() < 0.3 else {},
        seed=int(rng.integers(1 << 40)),
        logprobs=int(rng.integers(3)) if rng.random() < 0.3 else None,
    )
    stop = StopParams(
        eos_token_ids=(1,) if rng.random() < 0.5 else (),
        stop_token_ids=(2, 5) if rng.random() < 0.3 else (),
        stop=("e", "hi") if rng.random() < 0.3 else (),
    )
    prompt = rng.integers(0, VOCAB, 6).astype(np.int32)
    return EngineRequest(f"r{index}", 1, prompt, 6, 20, sampling, stop, b"k" * 16)


def one_by_one(
    bench: Bench, logits: torch.Tensor, slot: int
) -> tuple[list[int], list[object], int, object]:
    """Tokens, log-probs, flag and stop of up to len(logits) steps of one token."""
    tokens: list[int] = []
    told: list[object] = []
    for depth, row in enumerate(logits):
        at = Sampling(np.array([0]), np.array([slot]), np.array([6 + depth]))
        outcome = bench.choose(row[None], at)
        if outcome.flags[0] == POISONED:
            return tokens, told, POISONED, None
        tokens += outcome.tokens.tolist()
        told += list(outcome.logprobs or [None])
        if outcome.flags[0] == FINISH:
            return tokens, told, FINISH, outcome.stops[0]
    return tokens, told, GO_ON, None


@pytest.mark.parametrize("seed", range(60))
def test_a_step_of_guesses_is_as_many_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, SLOTS + 1))
    requests = [random_request(rng, i) for i in range(rows)]
    samples = rng.integers(1, 6, rows)
    samples[rng.integers(rows)] = 4  # or nothing is guessed at all
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(int(n), VOCAB, generator=generator) * 3 for n in samples]
    if rng.random() < 0.3:
        broken = logits[int(rng.integers(rows))]
        broken[int(rng.integers(len(broken)))] = float("nan")
    alone = Bench(requests)
    expected = [one_by_one(alone, logits[slot], slot) for slot in range(rows)]

    guesses: list[int] = []
    held: list[int] = []  # how many guesses hold good, of each row
    for n, (tokens, *_) in zip(samples.tolist(), expected, strict=True):
        right = int(rng.integers(0, n)) if rng.random() < 0.6 else n - 1
        row = [*tokens, *rng.integers(0, VOCAB, n).tolist()][: n - 1]
        if right < min(n - 1, len(tokens)):
            row[right] = (tokens[right] + 1) % VOCAB
        guesses += [*row, -1]
        held.append(min(right, n - 1))
    bench = Bench(requests)
    order = rng.permutation(rows)  # rows of a step come in any order of slots
    starts = np.cumsum(samples) - samples
    at = np.concatenate([starts[r] + np.arange(samples[r]) for r in order])
    outcome = bench.choose(
        torch.cat(logits)[torch.from_numpy(at)],
        Sampling(
            rows=np.arange(rows), slots=order, positions=np.full(rows, 6),
            guesses=np.array(guesses, np.int32)[at], samples=samples[order],
        ),
    )  # fmt: skip

    assert outcome.accepted is not None and outcome.accepted.sum() == len(outcome.tokens)
    ends = np.cumsum(outcome.accepted)
    for i, slot in enumerate(order.tolist()):
        tokens, told, flag, stop = expected[slot]
        got = outcome.tokens[ends[i] - outcome.accepted[i] : ends[i]].tolist()
        if not tokens:  # poisoned at once
            assert outcome.flags[i] == POISONED and len(got) == 1
            continue
        count = min(held[slot] + 1, len(tokens))
        assert got == tokens[:count], (slot, requests[slot])
        over = flag == FINISH and count == len(tokens)
        assert outcome.flags[i] == (FINISH if over else GO_ON)
        assert outcome.stops.get(i) == (stop if over else None)
        if requests[slot].sampling.logprobs is not None:
            assert outcome.logprobs is not None
            given = list(outcome.logprobs)[ends[i] - outcome.accepted[i] : ends[i]]
            assert given == told[:count]
    # What each slot remembers is what was accepted, no more: the next step goes on from there.
    _go_on_alike(bench, requests, outcome, order)


def _go_on_alike(
    bench: Bench,
    requests: list[EngineRequest],
    outcome: Outcome,
    order: np.ndarray,
) -> None:
    """One more token of every row that goes on, beside a sampler that was told the history."""
    assert outcome.accepted is not None
    ends = np.cumsum(outcome.accepted)
    further = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(9)) * 3
    for i, slot in enumerate(order.tolist()):
        if outcome.flags[i] != GO_ON:
            continue
        got = outcome.tokens[ends[i] - outcome.accepted[i] : ends[i]]
        told = dataclasses.replace(
            requests[slot], token_ids=np.concatenate([requests[slot].token_ids, got])
        )
        fresh = Bench([told])
        next_at = 6 + len(got)
        mine = bench.choose(further, Sampling(np.array([0]), np.array([slot]), np.array([next_at])))
        theirs = fresh.choose(further, Sampling(np.array([0]), np.array([0]), np.array([next_at])))
        assert mine.tokens.tolist() == theirs.tokens.tolist()
        assert mine.flags.tolist() == theirs.flags.tolist()


def test_a_request_that_is_gone_gets_nothing_and_disturbs_nobody() -> None:
    rng = np.random.default_rng(1)
    requests = [random_request(rng, i) for i in range(3)]
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(
        rows=np.arange(3), slots=np.arange(3), positions=np.full(3, 6),
        guesses=np.array([0, -1] * 3, np.int32), samples=np.full(3, 2),
    )  # fmt: skip
    whole = Bench(requests).choose(logits, sampling)
    bench = Bench(requests)
    live = bench.core.ledger.get(2)
    assert live is not None and whole.accepted is not None
    bench.core.ledger.end(live)
    some = bench.choose(logits, sampling)
    assert some.accepted is not None and some.accepted[1] == 1 and some.flags[1] == GO_ON
    assert some.accepted[[0, 2]].tolist() == whole.accepted[[0, 2]].tolist()
    first, last = int(whole.accepted[0]), int(whole.accepted[2])
    assert some.tokens[:first].tolist() == whole.tokens[:first].tolist()
    assert some.tokens[-last:].tolist() == whole.tokens[-last:].tolist()
