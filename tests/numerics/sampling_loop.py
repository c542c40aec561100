"""Scheduler, model runner and sampler of one rank, nothing else: requests from first to last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from baton_engine import EngineConfig, SamplingParams
from baton_engine.batch import SAMPLES, sampling_rows
from baton_engine.planning import step_input
from baton_engine.runner import ModelRunner, RankPlace, single_place
from baton_engine.sampling import TokenSampler
from baton_scheduler import Admission, Config, Goal, Role, Scheduler

from .test_parity import tokens

PAGE, PAGES, ROWS = 8, 160, 6
NEW = (40, 33, 25, 40, 12, 18, 30, 21)  # batches shrink, and grow again


def _drawn(seed: int, **fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0.8, seed=seed, **fields)


# More than run at once, so that slots are used again; whoever remembers is beside whoever does not.
ASKED = (
    SamplingParams(),
    _drawn(1),
    _drawn(2, top_k=12, min_p=0.01),
    SamplingParams(frequency_penalty=0.7, repetition_penalty=1.2),
    _drawn(3, top_p=0.8),
    _drawn(4, presence_penalty=0.9, top_p=0.9),
    SamplingParams(logit_bias={5: 3.0}, logprobs=2),
    _drawn(5, logprobs=0, min_p=0.1),
)
GREEDY = (SamplingParams(),) * len(ASKED)


class SamplingLoop:
    """Runs requests; ``drawn_inside`` counts the steps that did some of the sampling themselves."""

    def __init__(
        self,
        checkpoint: Path,
        execution: str,
        place: RankPlace | None = None,
        device: str = "cpu",
    ) -> None:
        """execution: also graphs on a CPU, which the engine's own config refuses."""
        usual = EngineConfig(
            model_path=checkpoint,
            num_pages=PAGES,
            page_size=PAGE,
            max_running=ROWS,
            max_context=128,
            dtype="float32",
        )
        config = usual.model_copy(update={"execution": execution, "device": device})
        self.runner = ModelRunner(config, place or single_place())
        self.runner.warm_up()
        self.sampler = TokenSampler(self.runner.vocab_size, ROWS, device)
        self.scheduler = Scheduler(
            Config(
                role=Role.DECODE,
                page_size=PAGE,
                num_pages=PAGES,
                max_running=ROWS,
                max_step_tokens=64,
                max_chunk_tokens=32,
                max_context=128,
                max_waiting=len(ASKED),
                hold_us=1,
            )
        )
        self.drawn_inside = 0

    def run(self, asked: tuple[SamplingParams, ...] = ASKED) -> list[list[int]]:
        """What each request says."""
        said: dict[int, list[int]] = {}
        prompts = {i: np.array(tokens(80 + i, 5 + 4 * i), np.int32) for i in range(len(asked))}
        for i, prompt in prompts.items():
            admission = self.scheduler.submit(
                i + 1, prompt, max_new_tokens=NEW[i], key=bytes(16), goal=Goal.GENERATE, now_us=0
            )
            assert admission is Admission.ACCEPTED
            said[i + 1] = []
        owner = dict[int, int]()
        while self.scheduler.stats().running + self.scheduler.stats().waiting:
            step = self.scheduler.plan(0)
            for slot in step.slot_resets.tolist():
                self.sampler.drop(slot)
                owner.pop(slot, None)
            inputs = step_input(step)
            sampling = sampling_rows(inputs)
            requests = step.requests[step.rows[:, SAMPLES] != 0].tolist()
            for slot, request in zip(sampling.slots.tolist(), requests, strict=True):
                if owner.get(slot) != request:
                    owner[slot] = request
                    output = np.array(said[request], np.int32)
                    prompt = prompts[request - 1]
                    self.sampler.add(slot, asked[request - 1], prompt, output)
            where = sampling.of_logits()
            output = self.runner.run(inputs, self.sampler.wishes(*where))
            assert output is not None
            self.drawn_inside += output.drawn is not None
            result = self.sampler.sample(output.logits, *where, output.drawn)
            assert not result.poisoned.any()
            for request, token in zip(requests, result.tokens.tolist(), strict=True):
                said[request].append(token)
            self.scheduler.complete(step, result.tokens, np.zeros(len(requests), np.uint8), 0)
        return list(said.values())
