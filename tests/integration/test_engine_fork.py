"""Forks on a real model: a child that shares and copies pages says what transformers says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from baton_engine.batch import SAMPLES
from baton_engine.config import EngineConfig
from baton_engine.planning import step_input
from baton_engine.runner import ModelRunner, single_place
from baton_scheduler import Admission, Config, Goal, Role, Scheduler

from .engine_worker import prompts
from .oracle import Reference

PAGE, PAGES = 16, 64


class GreedyLoop:
    """Scheduler and model runner, nothing else: plan, run, take the best token, complete."""

    def __init__(self, checkpoint: Path) -> None:
        config = EngineConfig(model_path=checkpoint, num_pages=PAGES, page_size=PAGE, max_running=4)
        self.runner = ModelRunner(config, single_place())
        self.scheduler = Scheduler(
            Config(
                role=Role.DECODE,
                page_size=PAGE,
                num_pages=PAGES,
                max_running=4,
                max_step_tokens=256,
                max_chunk_tokens=256,
                max_context=512,
                max_waiting=8,
                hold_us=1,
            )
        )
        self.tokens: dict[int, list[int]] = {}
        self.copies = 0

    def submit(
        self,
        request: int,
        tokens: list[int],
        new: int,
        *,
        fork_of: int | None = None,
        resumes: int | None = None,
        park_us: int = 0,
    ) -> None:
        admission = self.scheduler.submit(
            request,
            np.array(tokens, np.int32),
            max_new_tokens=new,
            key=bytes(16),
            goal=Goal.GENERATE,
            fork_of=fork_of,
            resumes=resumes,
            park_us=park_us,
            now_us=0,
        )
        assert admission is Admission.ACCEPTED
        self.tokens[request] = list(tokens)

    def step(self) -> None:
        step = self.scheduler.plan(0)
        self.copies += len(step.copies)
        output = self.runner.run(step_input(step))
        assert output is not None
        best = torch.argmax(output.logits, -1).numpy().astype(np.int32)
        for request, token in zip(step.requests[step.rows[:, SAMPLES] != 0], best, strict=True):
            self.tokens[int(request)].append(int(token))
        self.scheduler.complete(step, best, np.zeros(len(best), np.uint8), 0)

    def finish(self) -> None:
        while self.scheduler.stats().running + self.scheduler.stats().waiting:
            self.step()


def test_forks_of_a_running_request_say_what_transformers_says(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    loop = GreedyLoop(deepseek_checkpoint)
    prompt, detour = prompts(reference.vocab_size, [37, 5], seed=11)
    loop.submit(1, prompt, 12)
    for _ in range(4):
        loop.step()
    same = list(loop.tokens[1])
    loop.submit(2, same, 8, fork_of=1)  # goes on from where the parent is
    loop.submit(3, same[:35] + detour, 8, fork_of=1)  # parts within a full page
    loop.finish()
    assert loop.copies == 2
    assert loop.scheduler.stats().reused_tokens == (len(same) - 1) + 35
    assert loop.tokens[1] == prompt + reference.greedy(prompt, 12)
    assert loop.tokens[2] == prompt + reference.greedy(prompt, 12)
    assert loop.tokens[3] == same[:35] + detour + reference.greedy(same[:35] + detour, 8)


def test_a_resumed_turn_says_what_transformers_says(
    deepseek_checkpoint: Path, reference: Reference
) -> None:
    loop = GreedyLoop(deepseek_checkpoint)
    prompt, answer = prompts(reference.vocab_size, [21, 9], seed=12)
    loop.submit(1, prompt, 6, park_us=1000)
    loop.finish()
    assert loop.scheduler.state(1) == "Parked"
    turn = loop.tokens[1] + answer
    loop.submit(2, turn, 6, resumes=1)
    loop.finish()
    assert loop.scheduler.state(1) is None
    assert loop.scheduler.stats().reused_tokens == 26  # all that was in KV
    assert loop.tokens[2] == turn + reference.greedy(turn, 6)
