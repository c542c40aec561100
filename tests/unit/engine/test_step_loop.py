"""The engine's thread: a real scheduler; a model, sampler and stop matcher that misbehave."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import baton_scheduler as scheduling
from baton_engine import (
    Done,
    EngineRequest,
    Failed,
    FailReason,
    FinishReason,
    SamplingParams,
    StopParams,
    TokensEmitted,
)
from baton_engine.batch import StepInput, StepOutput
from baton_engine.core import EngineCore, now_us
from baton_engine.guessing import DraftOrder
from baton_engine.ports import SampleResult, StopMatch
from baton_engine.step_loop import Published, RanksLost, StepLoop

PAGE, VOCAB = 4, 32


@dataclass
class Runner:
    """Logits that name the last token + 1; `before` may raise or wait."""

    before: Callable[[StepInput], None] = lambda step: None
    steps: list[StepInput] = field(default_factory=list)
    guesses: int = 0
    asked: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    calls: list[str] = field(default_factory=list)

    def run(self, step: StepInput, wishes: np.ndarray | None = None) -> StepOutput | None:
        self.steps.append(step)
        self.calls.append("run")
        if not len(step.rows):
            return None
        self.before(step)
        spans = [(at + n - wanted, at + n) for _, n, _, wanted, at, _ in step.rows.tolist()]
        last = np.concatenate([step.token_ids[start:end] for start, end in spans])
        next_ones = torch.from_numpy((last + 1) % VOCAB).long()
        return StepOutput(torch.nn.functional.one_hot(next_ones, VOCAB))

    def draft(self, order: DraftOrder) -> np.ndarray:
        """What will be said, but for the guess that is wrong, and fewer where pages end."""
        self.calls.append("draft")
        self.asked.append((self.steps[-1].rows.copy(), order.rows.copy()))
        following = order.rows[order.rows[:, 2] != 0, 1]
        right = (following[:, None] + 1 + np.arange(self.guesses)) % VOCAB
        wrong = np.where(self.rng.random(right.shape) < 0.2, (right + 5) % VOCAB, right)
        known = self.rng.integers(0, self.guesses + 1, len(right))
        return np.where(np.arange(self.guesses) < known[:, None], wrong, -1).astype(np.int32)

    def finish(self) -> None:
        self.calls.append("finish")


class Watched(scheduling.Scheduler):
    """Says when a step is completed, from when on its pages may be read by others."""

    calls: list[str]

    def complete(self, *arguments: Any, **more: Any) -> scheduling.Completion:
        self.calls.append("complete")
        return super().complete(*arguments, **more)


class Sampler:
    """Argmax; knows which slots it was told of."""

    def __init__(self) -> None:
        self.histories: dict[int, tuple[list[int], list[int]]] = {}
        self.poison: set[int] = set()  # tokens whose row is poisoned

    def add(
        self,
        slot: int,
        params: SamplingParams,
        prompt_tokens: np.ndarray,
        output_tokens: np.ndarray,
    ) -> None:
        self.histories[slot] = (prompt_tokens.tolist(), output_tokens.tolist())

    def drop(self, slot: int) -> None:
        self.histories.pop(slot, None)

    def remembers(self, slots: np.ndarray) -> np.ndarray:
        return np.ones(len(slots), np.bool_)

    def wishes(self, slots: np.ndarray, positions: np.ndarray) -> None:
        return None

    def sample(
        self,
        logits: torch.Tensor,
        slots: np.ndarray,
        positions: np.ndarray,
        drawn: torch.Tensor | None = None,
    ) -> SampleResult:
        assert drawn is None
        tokens = logits.argmax(-1).numpy().astype(np.int32)
        for slot, position, token in zip(slots, positions, tokens, strict=True):
            prompt, output = self.histories[int(slot)]
            assert len(prompt) + len(output) == position, "the sampler's history is behind"
            if int(token) not in self.poison:
                output.append(int(token))
        return SampleResult(tokens, None, np.isin(tokens, list(self.poison)))


class Stops:
    def __init__(self) -> None:
        self.params: dict[int, StopParams] = {}

    def add(self, slot: int, params: StopParams, output_tokens: np.ndarray) -> None:
        self.params[slot] = params

    def drop(self, slot: int) -> None:
        self.params.pop(slot, None)

    def remembers(self, slots: np.ndarray) -> np.ndarray:
        return np.zeros(len(slots), np.bool_)

    def check(
        self, slots: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, dict[int, StopMatch]]:
        hits = [
            int(t) in self.params[int(s)].eos_token_ids for s, t in zip(slots, tokens, strict=True)
        ]
        return np.array(hits, np.uint8), {
            i: StopMatch(FinishReason.EOS) for i, hit in enumerate(hits) if hit
        }


class Bench:
    """A running loop and what it published."""

    def __init__(self, **settings: int) -> None:
        limits = {
            "page_size": PAGE,
            "num_pages": 64,
            "max_running": 8,
            "max_step_tokens": 32,
            "max_chunk_tokens": 16,
            "max_context": 128,
            "max_waiting": 64,
            "hold_us": 1_000_000,
        }
        limits.update(settings)
        guesses = settings.get("max_draft_tokens", 0)
        config = scheduling.Config(role=scheduling.Role.DECODE, **limits)
        scheduler = Watched(config)
        self.core = EngineCore(scheduler, PAGE, None)
        self.runner, self.sampler, self.stops = Runner(guesses=guesses), Sampler(), Stops()
        scheduler.calls = self.runner.calls
        self.published: queue.Queue[Published] = queue.Queue()
        self.loop = StepLoop(
            self.core,
            self.runner,
            self.sampler,
            self.stops,
            self.published.put,
            8,
            drafts=guesses > 0,
        )
        self.told: dict[str, list[object]] = {}

    def submit(self, name: str, tokens: list[int], new: int, eos: tuple[int, ...] = ()) -> int:
        request = EngineRequest(
            name, 1, np.array(tokens, np.int32), len(tokens), new,
            SamplingParams(), StopParams(eos_token_ids=eos), b"k" * 16,
        )  # fmt: skip
        with self.core.lock:
            handle = self.core.ledger.new_handle()
            admission = self.core.scheduler.submit(
                handle, request.token_ids, max_new_tokens=new, key=request.cache_key,
                goal=scheduling.Goal.GENERATE, now_us=now_us(),
            )  # fmt: skip
            assert admission is scheduling.Admission.ACCEPTED
            self.core.ledger.add(handle, request, now_us())
            self.core.wake()
        return handle

    def ended(self, name: str) -> Done | Failed:
        """Wait for a request's last event."""
        while True:
            for event in self.told.get(name, []):
                if isinstance(event, Done | Failed):
                    return event
            for event in self.published.get(timeout=10).events.events:
                self.told.setdefault(event.request_id, []).append(event)

    def tokens(self, name: str) -> list[int]:
        return [t for e in self.told[name] if isinstance(e, TokensEmitted) for t in e.token_ids]

    def idle_pool(self) -> None:
        with self.core.lock:
            pool = self.core.pool()
            assert self.core.scheduler.check_invariants() == ""
        assert pool.free_pages == pool.total_pages and pool.running == pool.waiting == 0

    def stop(self) -> None:
        with self.core.lock:
            self.core.stopping = True
            self.core.wake()
        self.loop.join()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.loop.start()
    yield bench
    bench.stop()


def counting(start: int, count: int) -> list[int]:
    return [(start + i) % VOCAB for i in range(1, count + 1)]


def test_tokens_positions_and_cost(bench: Bench) -> None:
    bench.submit("a", [3] * 20, 5)
    assert isinstance(bench.ended("a"), Done)
    assert bench.tokens("a") == counting(3, 5)
    emitted = [e for e in bench.told["a"] if isinstance(e, TokensEmitted)]
    assert [e.first_position for e in emitted] == [20, 21, 22, 23, 24]
    assert emitted[0].cost is not None and emitted[0].cost.computed_tokens == 20
    assert all(e.cost is None for e in emitted[1:])


@pytest.mark.parametrize("guesses", [0, 2])
def test_a_step_is_in_memory_before_it_is_completed(guesses: int) -> None:
    """Chunks that sample nothing too, whose pages are sealed all the same."""
    bench = Bench(max_draft_tokens=guesses)
    samples: list[bool] = []
    bench.runner.before = lambda step: samples.append(bool(step.rows[:, 3].any()))
    bench.loop.start()
    try:
        bench.submit("a", [3] * 40, 3)
        assert isinstance(bench.ended("a"), Done)
    finally:
        bench.stop()
    assert samples[:3] == [False, False, True]
    each = ["run", "draft", "finish", "complete"] if guesses else ["run", "finish", "complete"]
    told = bench.runner.calls
    rows, without = told[: len(each) * len(samples)], told[len(each) * len(samples) :]
    assert rows == each * len(samples)
    assert without == ["run", "finish"] * (len(without) // 2)  # a step that only frees


def test_an_exception_fails_the_requests_of_its_step_with_a_reference(bench: Bench) -> None:
    def explode(step: StepInput) -> None:
        if (step.token_ids == 13).any():
            raise ZeroDivisionError("kernel")

    bench.runner.before = explode
    bench.submit("bad", [13] * 40, 5)  # a chunk that does not sample, too
    end = bench.ended("bad")
    assert isinstance(end, Failed) and end.reason is FailReason.INTERNAL
    assert "ZeroDivisionError" in end.message and "reference" in end.message
    bench.submit("good", [1, 2], 3)
    assert isinstance(bench.ended("good"), Done)
    bench.submit("bad at decode", [9, 10], 10)  # reaches 13 while decoding
    assert isinstance(bench.ended("bad at decode"), Failed)
    assert bench.tokens("bad at decode") == [11, 12, 13]
    bench.idle_pool()


def test_pages_of_a_failed_step_are_never_found_again(bench: Bench) -> None:
    failing = [True]

    def explode(step: StepInput) -> None:
        if failing[0] and len(step.token_ids) > 1:
            raise RuntimeError("once")

    bench.runner.before = explode
    bench.submit("first", [5] * 40, 2)
    assert isinstance(bench.ended("first"), Failed)
    failing[0] = False
    bench.submit("second", [5] * 40, 2)
    end = bench.ended("second")
    assert isinstance(end, Done) and end.cost.reused_tokens == 0


def test_poisoned_logits_fail_only_their_request(bench: Bench) -> None:
    bench.sampler.poison = {20}
    names = [f"r{i}" for i in range(6)]
    for i, name in enumerate(names):
        bench.submit(name, [i * 4], 10)
    for i, name in enumerate(names):
        end = bench.ended(name)
        if i * 4 < 20 <= i * 4 + 10:
            assert isinstance(end, Failed) and end.reason is FailReason.NUMERIC
            assert bench.tokens(name) == counting(i * 4, 19 - i * 4)
        else:
            assert isinstance(end, Done)
    bench.idle_pool()


def test_a_sampler_that_raises_is_a_failed_step_not_a_dead_engine(bench: Bench) -> None:
    sample = bench.sampler.sample
    bench.sampler.sample = None  # type: ignore[assignment, method-assign]
    bench.submit("a", [1], 2)
    assert isinstance(bench.ended("a"), Failed)
    bench.sampler.sample = sample  # type: ignore[method-assign]
    bench.submit("b", [1], 2)
    assert isinstance(bench.ended("b"), Done)


def test_lost_ranks_fail_everything_and_say_why(bench: Bench) -> None:
    def lose(step: StepInput) -> None:
        raise RanksLost("rank 3 is gone")

    bench.runner.before = lose
    bench.submit("a", [1] * 60, 2)
    bench.submit("b", [2], 2)
    for name in ("a", "b"):
        end = bench.ended(name)
        assert isinstance(end, Failed) and end.message == "rank 3 is gone"
    assert bench.core.failure == "rank 3 is gone"


def test_cancelling_while_the_model_computes(bench: Bench) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(step: StepInput) -> None:
        inside.set()
        assert go_on.wait(10)

    bench.runner.before = wait
    bench.submit("a", [1] * 10, 5)
    assert inside.wait(10)
    with bench.core.lock:  # not held while the model runs
        live = bench.core.ledger.find(("a", 1))
        assert live is not None
        bench.core.cancel(live, FailReason.CANCELLED, "cancelled")
        assert bench.core.pool().draining == 1
    go_on.set()
    end = bench.ended("a")
    assert isinstance(end, Failed) and end.reason is FailReason.CANCELLED
    bench.submit("b", [1] * 10, 2)
    assert isinstance(bench.ended("b"), Done)
    bench.idle_pool()


def test_a_cancelled_neighbour_does_not_disturb_the_batch(bench: Bench) -> None:
    # Its row has no sampling state yet; a sampler may refuse to hear of such a slot.
    inside, go_on = threading.Event(), threading.Event()

    def wait(step: StepInput) -> None:
        if len(step.rows) > 1 and not go_on.is_set():
            inside.set()
            assert go_on.wait(10)

    bench.runner.before = wait
    bench.submit("a", [1], 30)
    bench.submit("b", [9], 3, eos=(11,))
    assert inside.wait(10)
    with bench.core.lock:
        live = bench.core.ledger.find(("a", 1))
        assert live is not None
        bench.core.cancel(live, FailReason.CANCELLED, "cancelled")
        before = len(bench.core.ledger)
    go_on.set()
    assert before == 1
    end = bench.ended("b")
    assert isinstance(end, Done) and end.reason is FinishReason.EOS
    assert bench.tokens("b") == [10, 11]
    bench.idle_pool()


def test_retraction_gives_the_sampler_its_whole_history() -> None:
    # The sampler of this test asserts that no token is missing when a request comes back.
    bench = Bench(num_pages=12, max_context=48)
    bench.loop.start()
    for i in range(5):
        bench.submit(f"r{i}", [i] * 9, 25)
    for i in range(5):
        assert isinstance(bench.ended(f"r{i}"), Done)
        assert bench.tokens(f"r{i}") == counting(i, 25)
    with bench.core.lock:
        assert bench.core.pool().retractions > 0
    bench.idle_pool()
    bench.stop()


@pytest.fixture
def drafting() -> Iterator[Bench]:
    bench = Bench(max_draft_tokens=3, num_pages=20, max_context=64)
    bench.loop.start()
    yield bench
    bench.stop()


def test_guesses_change_only_how_many_tokens_a_step_brings(drafting: Bench) -> None:
    # In a pool that is too small, so that requests are retracted with guesses under way.
    eos = {2: (9,), 5: (30, 12)}
    for i in range(8):
        drafting.submit(f"r{i}", [i] * 9, 25, eos.get(i, ()))
    for i in range(8):
        assert isinstance(drafting.ended(f"r{i}"), Done)
        said = counting(i, 25)
        ends = [said.index(token) + 1 for token in eos.get(i, ()) if token in said]
        assert drafting.tokens(f"r{i}") == said[: min(ends, default=25)]
    with drafting.core.lock:
        pool = drafting.core.pool()
    assert pool.retractions > 0
    assert 0 < pool.accepted_draft_tokens < pool.draft_tokens
    sizes = [len(e.token_ids) for told in drafting.told.values() for e in told
             if isinstance(e, TokensEmitted)]  # fmt: skip
    assert max(sizes) == 4
    drafting.idle_pool()


def test_poison_among_guesses_fails_its_request_after_the_tokens_before(drafting: Bench) -> None:
    drafting.sampler.poison = {20}
    for i in range(6):
        drafting.submit(f"r{i}", [i * 4], 10)
    for i in range(6):
        end = drafting.ended(f"r{i}")
        if i * 4 < 20 <= i * 4 + 10:
            assert isinstance(end, Failed) and end.reason is FailReason.NUMERIC
            assert f"position {20 - i * 4}" in end.message
            assert drafting.tokens(f"r{i}") == counting(i * 4, 19 - i * 4)
        else:
            assert isinstance(end, Done) and drafting.tokens(f"r{i}") == counting(i * 4, 10)
    drafting.idle_pool()


def test_a_drafter_is_told_what_follows_every_row(drafting: Bench) -> None:
    prompt = list(range(20))
    drafting.submit("a", prompt, 12)  # in two chunks
    drafting.ended("a")
    told = prompt + drafting.tokens("a")
    for rows, asked in drafting.runner.asked:
        for (_, query, context, samples, *_), (kept, following, wanted) in zip(
            rows.tolist(), asked.tolist(), strict=True
        ):
            assert 0 < kept <= query and (samples > 1 or kept == query)
            assert told[context + kept] == following
            assert wanted == (samples > 0)
    assert drafting.runner.asked[0][0][:, 1].tolist() == [16]


def test_a_drafter_that_raises_is_a_failed_step(drafting: Bench) -> None:
    draft = drafting.runner.draft
    drafting.runner.draft = None  # type: ignore[assignment, method-assign]
    drafting.submit("a", [1], 3)
    assert isinstance(drafting.ended("a"), Failed)
    drafting.runner.draft = draft  # type: ignore[method-assign]
    drafting.submit("b", [1], 3)
    assert isinstance(drafting.ended("b"), Done)
    drafting.idle_pool()


def test_eos_is_the_last_token(bench: Bench) -> None:
    bench.submit("a", [1], 20, eos=(6,))
    end = bench.ended("a")
    assert isinstance(end, Done) and end.reason is FinishReason.EOS
    assert bench.tokens("a") == [2, 3, 4, 5, 6]


def test_an_idle_engine_does_not_spin(bench: Bench) -> None:
    bench.submit("a", [1], 2)
    bench.ended("a")
    plans = bench.core.scheduler.plan(now_us()).sequence
    threading.Event().wait(0.3)
    assert bench.core.scheduler.plan(now_us()).sequence == plans + 1
