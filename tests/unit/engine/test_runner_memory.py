"""Captured steps are measured before the cache is made, and counted beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from baton_engine import EngineConfig, runner
from baton_engine.memory import cache_bytes, refuse_overcommit
from baton_engine.runner import ModelRunner, single_place
from baton_engine.sampling.captured import CapturedDraw
from baton_modeling.compiler.captured import PlainCalls

GRAPHS = 5 << 20


@pytest.fixture(params=["qwen3", "qwen3_next"])
def config(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> EngineConfig:
    """Captured execution on a CPU, where replays are plain calls; the engine refuses that."""
    path = make_checkpoint(request.param)
    usual = EngineConfig(model_path=path, num_pages=64, max_running=3, max_context=200)
    return usual.model_copy(update={"execution": "graphs"})


@pytest.mark.parametrize("spare", [0, -1])
def test_cache_and_graphs_must_fit_together(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(PlainCalls, "bytes", GRAPHS)
    asked: list[str] = []
    measured: list[int] = []

    class Buffers(CapturedDraw):
        def __init__(self, rows: int, device: torch.device) -> None:
            asked.append(f"sampler of {rows}")
            super().__init__(rows, device)

    def free(device: torch.device) -> int:
        asked.append("free")
        return free_now

    def refuse(cache: int, graphs: int, free: int) -> None:
        measured.append(graphs)
        refuse_overcommit(cache, graphs, free)

    monkeypatch.setattr(runner, "CapturedDraw", Buffers)
    monkeypatch.setattr(runner, "free_bytes", free)
    monkeypatch.setattr(runner, "refuse_overcommit", refuse)
    free_now = 1 << 40
    whole = ModelRunner(config, single_place())
    cache = sum(tensor.numel() * tensor.element_size() for tensor in whole.arena.tensors.values())
    pages = {name: len(tensor) for name, tensor in whole.arena.tensors.items()}
    assert cache == cache_bytes(whole.arena.layout, pages, config.page_size)
    rows = 4  # the bucket of three
    logits = rows * whole.vocab_size * 4
    assert GRAPHS + logits < measured[0] < GRAPHS + logits + (1 << 16)  # batches are small
    free_now = cache + measured[0] + spare
    if spare < 0:
        with pytest.raises(ValueError, match=r"captured steps take 5 MiB .*lower num_pages"):
            ModelRunner(config, single_place())
    else:
        fitting = ModelRunner(config, single_place())
        assert fitting.arena.num_pages == 64
        fitting.warm_up()
    # The sampler's buffers are there when free memory is looked at, so they are not part of it.
    assert asked == ["sampler of 4", "free"] * 2
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    ("execution", "device"), [("graphs", "cpu"), ("compiled", "cuda"), ("compiled", "cuda:1")]
)
def test_execution_goes_with_the_device(execution: str, device: str) -> None:
    EngineConfig(model_path=Path("m"), execution="graphs", device="cuda")
    with pytest.raises(ValidationError, match=f"execution is {execution}, which is for device"):
        EngineConfig(model_path=Path("m"), execution=execution, device=device)  # type: ignore[arg-type]
