"""bf16 beside transformers in float32: every token of every family, cosine at least 0.999.

One thing of a mixture is not a matter of precision. A router takes the k best experts, and where
the k-th and the next score nearly the same in float32, the last bits of any bf16 program decide
which of them a token gets; its logits are then another expert's, not less exact ones. Routers of
random weights nearly tie for one choice in a hundred, and transformers' own bf16 leaves its float32
at as many tokens as ours (figures in docs/models.md). So the choice is taken apart from the
arithmetic:

- the bf16 program is given the experts that the float32 program chose, call by call. Then nothing
  is undecided and *every* token must have a cosine of 0.999 to transformers in float32: attention,
  states, norms, experts and their weights in bf16 are all inside.
- no score that a router computes in bf16 may be further than a tenth of the scores' standard
  deviation from what it is in float32: left alone it chooses otherwise only where float32 has two
  experts within a fifth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling import CompiledModel, load_model

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import VARIANTS, Oracle, tokens

CLOSE = 0.999
PROMPT = tokens(2, 160)
CHUNKS = [100, 30] + [1] * 30

Route = Callable[..., tuple[Tensor, Tensor]]


@contextmanager
def routed_by(wrap: Callable[[str, Route], Route]) -> Iterator[None]:
    """Models loaded within it have routers that ``wrap`` has wrapped."""
    saved = []
    for operator in (ops.route_sigmoid, ops.route_softmax):
        table: Any = operator.implementations
        for name, implementation in list(table.items()):
            saved.append((table, name, implementation))
            function = wrap(operator.name, implementation.function)
            table[name] = replace(implementation, function=function)
    try:
        yield
    finally:
        for table, name, implementation in saved:
            table[name] = implementation


def recording(scores: list[Tensor], choices: list[Tensor]) -> Callable[[str, Route], Route]:
    """Routers that note what they score and choose."""

    def wrap(operator: str, route: Route) -> Route:
        def run(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            weights, experts = route(logits, *rest)
            scores.append(logits)
            choices.append(experts)
            return weights, experts

        return run

    return wrap


def given(choices: Iterator[Tensor], scores: list[Tensor]) -> Callable[[str, Route], Route]:
    """Routers that take the experts they are given, weighted by their own scores."""

    def wrap(operator: str, route: Route) -> Route:
        def run(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            scores.append(logits)
            chosen = next(choices)
            if operator == "route_softmax":
                _, normalise, scale, *_ = rest
                weights = logits.softmax(-1).gather(1, chosen)
                return scale * (weights / weights.sum(-1, True) if normalise else weights), chosen
            _, _, _, _, normalise, scale = rest
            weights = logits.sigmoid().gather(1, chosen)
            return scale * (weights / weights.sum(-1, True) if normalise else weights), chosen

        return run

    return wrap


def logits_of(model: CompiledModel) -> Tensor:
    return Driver(model).prefill(Row(list(PROMPT)), CHUNKS)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(request.param)


def test_every_token_with_the_experts_of_float32(checkpoint: Path) -> None:
    wide: list[Tensor] = []
    narrow: list[Tensor] = []
    choices: list[Tensor] = []
    with routed_by(recording(wide, choices)):
        model = load_model(checkpoint, page_size=PAGE_SIZE)
    logits_of(model)
    with routed_by(given(iter(choices), narrow)):
        model = load_model(checkpoint, page_size=PAGE_SIZE, dtype=torch.bfloat16)
    actual, expected = logits_of(model), Oracle(checkpoint).logits(PROMPT)

    worst = cosine(actual, expected).min().item()
    assert worst >= CLOSE, f"a token's logits have a cosine of {worst:.5f}"
    mixture = any("experts" in field for field in model.config.config)
    assert mixture == bool(wide) and len(wide) == len(narrow)
    if mixture:
        scores = torch.cat([each.flatten() for each in wide])
        errors = torch.cat([each.flatten() for each in narrow]) - scores
        moved = (errors.abs().max() / scores.std()).item()
        assert moved <= 0.1, f"a router's score moved by {moved:.3f} standard deviations"


def test_with_its_own_experts_the_median_token_is_as_close(checkpoint: Path) -> None:
    wide = load_model(checkpoint, page_size=PAGE_SIZE)
    narrow = load_model(checkpoint, page_size=PAGE_SIZE, dtype=torch.bfloat16)
    assert cosine(logits_of(narrow), logits_of(wide)).median() >= CLOSE
    assert narrow.fingerprint != wide.fingerprint
