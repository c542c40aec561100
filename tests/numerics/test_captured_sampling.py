"""Sampling inside captured steps, plain calls in place of replays: nothing is said otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from baton_engine import runner
from baton_engine.runner import RankPlace
from baton_engine.sampling import sampler
from baton_modeling import Lockstep, tensor_parallel_mesh

from .sampling_loop import ASKED, GREEDY, SamplingLoop


@pytest.fixture(autouse=True)
def _plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is a CUDA device's."""
    monkeypatch.setattr(runner, "free_bytes", lambda device: 1 << 40)


@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_moe"])
def test_mixed_batches_say_what_they_say_eagerly(
    make_checkpoint: Callable[..., Path], variant: str, blind: list[int]
) -> None:
    checkpoint = make_checkpoint(variant)
    eager, graphs = (SamplingLoop(checkpoint, how) for how in ("eager", "graphs"))
    assert blind  # recorded, which ran the tails too
    expected = eager.run(ASKED)
    assert graphs.run(ASKED) == expected and graphs.run(GREEDY) == eager.run(GREEDY)
    assert len(set(map(tuple, expected))) == len(ASKED)
    assert eager.drawn_inside == 0 and graphs.drawn_inside >= 60


def test_rows_by_themselves_are_drawn_inside(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows with penalties are drawn from the logits, and none at all when all are greedy."""
    loop = SamplingLoop(make_checkpoint("qwen3"), "graphs")
    rows: list[int] = []
    draw = sampler.draw

    def counted(logits, *arguments):  # type: ignore[no-untyped-def]
        if inside:
            rows.append(len(logits))
        return draw(logits, *arguments)

    sample = loop.sampler.sample
    inside = False

    def noting(logits, slots, positions, drawn=None):  # type: ignore[no-untyped-def]
        nonlocal inside
        inside = drawn is not None
        return sample(logits, slots, positions, drawn)

    monkeypatch.setattr(sampler, "draw", counted)
    monkeypatch.setattr(loop.sampler, "sample", noting)
    loop.run(ASKED)
    assert rows and set(rows) == {1}  # the only one that is drawn after penalties
    rows.clear()
    loop.run(ASKED[:5])
    assert not rows


def test_two_ranks(make_checkpoint: Callable[..., Path]) -> None:
    """Rank 0 draws inside; the other one has no tails, and here draws from the same logits."""
    checkpoint, mesh = make_checkpoint("deepseek_v3"), tensor_parallel_mesh(2)
    expected = SamplingLoop(checkpoint, "eager").run(ASKED)
    group = Lockstep(mesh)

    def rank(index: int) -> tuple[list[list[int]], int]:
        loop = SamplingLoop(checkpoint, "graphs", RankPlace(mesh.at(index), group.comm(index)))
        return loop.run(ASKED), loop.drawn_inside

    (first, inside), (other, outside) = group.run(rank)
    assert first == other == expected
    assert inside >= 30 and outside == 0
