"""What the tests of speculation ask: requests of every kind, on the model that was trained to draft
and with prompts that it knows and does not know."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baton_engine import Done, Failed, SamplingParams, StopParams
from baton_engine.request import Goal
from baton_engine.sampling import GrammarCompiler

from .engine_worker import Attempt, EngineWorker, prompts

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "demo_model" / "model"
VOCAB, EOS = 2048, (2, 0)
ENDS = StopParams(eos_token_ids=EOS)
NEW = 48
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: list[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopParams = field(default_factory=StopParams)
    new: int = NEW


def spoken(count: int) -> list[list[int]]:
    """Prompts of the conversations that the model was trained on (held-out tasks)."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    from demo_model.agent import Attempt as Task
    from demo_model.chat import Encoder, render
    from demo_model.names import Split
    from demo_model.tasks import make_task

    encoder = Encoder(MODEL)
    tasks = [make_task(Split.HELD_OUT, seed) for seed in range(count)]
    texts = [render(Task.of(task).messages, prompt=True) for task in tasks]
    return [encoder.encode(text).tolist() for text in texts]


def of_every_kind() -> dict[str, Asked]:
    """Greedy and seeded, with penalties, biases, log-probs, constraints and all ways to stop."""
    known, unknown = spoken(6), prompts(VOCAB, [1, 16, 33, 90, 130], seed=12)
    grammar = GrammarCompiler(MODEL, VOCAB).compile("json_schema", json.dumps(SCHEMA), EOS)

    def drawn(seed: int, **fields: object) -> SamplingParams:
        return SamplingParams(**{"temperature": 0.9, "seed": seed, **fields})  # type: ignore[arg-type]

    return {
        "greedy": Asked(known[0], stop=ENDS),
        "greedy, unknown text": Asked(unknown[3]),
        "one token": Asked(known[1], new=1),
        "two tokens": Asked(known[1], new=2),
        "five tokens": Asked(known[1], new=5),
        "a prompt of one token": Asked(unknown[0]),
        "a page": Asked(unknown[1]),
        "temperature": Asked(known[2], drawn(1), ENDS),
        "temperature, unknown text": Asked(unknown[2], drawn(2)),
        "top-p": Asked(known[3], drawn(3, top_p=0.8), ENDS),
        "top-k and min-p": Asked(unknown[4], drawn(4, top_k=20, min_p=0.02)),
        "penalties": Asked(
            known[4],
            SamplingParams(frequency_penalty=0.6, presence_penalty=0.4, repetition_penalty=1.2),
        ),
        "penalties, drawn": Asked(unknown[2], drawn(5, frequency_penalty=1.0)),
        "bias": Asked(known[5], SamplingParams(logit_bias={11: 3.0, 40: -4.0}), ENDS),
        "log-probs": Asked(known[0], SamplingParams(logprobs=3), ENDS),
        "log-probs, drawn": Asked(known[1], drawn(6, logprobs=0, top_p=0.9), ENDS),
        "a stop token": Asked(known[2], stop=StopParams(stop_token_ids=(*range(300, 400),))),
        "a stop string": Asked(known[3], stop=StopParams(eos_token_ids=EOS, stop=("name", '":'))),
        "a schema": Asked(known[4], SamplingParams(grammar=grammar), ENDS, 200),
        "a schema, drawn": Asked(unknown[3], drawn(7, grammar=grammar), ENDS, 200),
    }


def ask(
    worker: EngineWorker, name: str, asked: Asked, *, goal: Goal | None = None, attempt: int = 1
) -> Attempt:
    """Submit it."""
    return worker.submit(
        name,
        asked.prompt,
        asked.new,
        sampling=asked.sampling,
        stop=asked.stop,
        goal=goal,
        attempt=attempt,
    )


@dataclass(frozen=True)
class Said:
    """All that a client would see."""

    tokens: tuple[int, ...]
    end: str
    logprobs: tuple[tuple[int, tuple[int, ...]], ...]  # which tokens; values differ in rounding


async def said(attempt: Attempt) -> Said:
    """Once the attempt has ended."""
    from baton_engine import TokensEmitted

    end = await attempt.ended()
    if isinstance(end, Failed):
        return Said(tuple(attempt.tokens), f"{end.reason.value}: {end.message}", ())
    assert isinstance(end, Done)
    emitted = attempt.of(TokensEmitted)
    told = [logprob for event in emitted for logprob in event.logprobs]
    at = emitted[0].first_position
    for event in emitted:
        assert event.first_position == at
        at += len(event.token_ids)
    return Said(
        tuple(attempt.tokens),
        f"{end.reason.value} {end.matched_stop}",
        tuple((p.token_id, tuple(token for token, _ in p.top)) for p in told),
    )


async def all_said(worker: EngineWorker, asked: dict[str, Asked]) -> dict[str, Said]:
    """All at once."""
    attempts = {name: ask(worker, name, each) for name, each in asked.items()}
    return {name: await said(attempt) for name, attempt in attempts.items()}


def most_tokens_of_an_event(attempts: Sequence[Attempt]) -> int:
    """Over all attempts: whether steps brought several tokens at all."""
    from baton_engine import TokensEmitted

    return max(len(e.token_ids) for attempt in attempts for e in attempt.of(TokensEmitted))
