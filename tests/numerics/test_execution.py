"""Other ways to execute than eagerly give what eager execution gives, which parity tests hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baton_modeling import (
    CompiledModel,
    ExecutionError,
    Lockstep,
    Options,
    load_model,
    tensor_parallel_mesh,
)
from baton_modeling.compiler.regions import CompiledProgram, buckets

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import check, tokens

# Compiling is slow where a machine is busy; nothing here is about time.
pytestmark = pytest.mark.timeout(600)

COMPILED = Options(execution="compiled")
BUCKET = 4
CHUNKS = [11, 3, 4, 1, 4, 3, 2]  # of these, 3 and 4 rows are compiled


def no_more(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is compiled, and no region runs eagerly, in a steady state")


def compile_bucket(model: CompiledModel, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Compile all regions for one bucket, and see to it that its steps then use them."""
    program = model._program
    assert isinstance(program, CompiledProgram) and program.regions
    Driver(model).prefill(Row(tokens(9, 2)), [2])
    for region in program.regions:
        region.prepare(BUCKET)
    if monkeypatch is not None:
        monkeypatch.setattr(torch._inductor, "compile", no_more)


def refuse_eager(model: CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    program = model._program
    assert isinstance(program, CompiledProgram)
    for region in program.regions:
        monkeypatch.setattr(region, "_eager", no_more)


def greedy_rows(model: CompiledModel, count: int) -> list[list[int]]:
    """Three requests decode together."""
    driver = Driver(model)
    rows = [Row(tokens(30 + i, 5 + i)) for i in range(3)]
    logits = [driver.step([(row, len(row.tokens))], False)[0] for row in rows]
    for _ in range(count):
        for row, last in zip(rows, logits, strict=True):
            row.tokens.append(int(last[-1].argmax()))
        logits = driver.step([(row, 1) for row in rows], False)
    return [row.tokens for row in rows]


@pytest.mark.parametrize(
    "variant",
    [
        "qwen3",
        pytest.param("deepseek_v3", marks=pytest.mark.slow),
        pytest.param("qwen3_next", marks=pytest.mark.slow),
    ],
)
def test_compiled_regions_give_what_eager_execution_gives(
    make_checkpoint: Callable[..., Path], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint(variant)
    eager = load_model(checkpoint, page_size=PAGE_SIZE)
    compiled = load_model(checkpoint, page_size=PAGE_SIZE, options=COMPILED)
    compile_bucket(compiled, monkeypatch)

    prompt = tokens(3, sum(CHUNKS))
    actual, expected = (
        Driver(model).prefill(Row(list(prompt)), CHUNKS) for model in (compiled, eager)
    )
    check(actual, expected)
    assert greedy_rows(compiled, 12) == greedy_rows(eager, 12)

    driver, row = Driver(compiled), Row(list(prompt))
    refuse_eager(compiled, monkeypatch)
    assert driver.step([(row, 3)])[0].shape == (3, 2048)
    with pytest.raises(AssertionError, match="no region runs eagerly"):
        driver.step([(row, 5)])


def test_compiled_regions_end_where_ranks_communicate(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, mesh = make_checkpoint("qwen3"), tensor_parallel_mesh(2)
    prompt = tokens(4, sum(CHUNKS))
    eager = load_model(checkpoint, page_size=PAGE_SIZE)
    expected = Driver(eager).prefill(Row(list(prompt)), CHUNKS)
    group = Lockstep(mesh)

    def rank(index: int) -> Tensor:
        model = load_model(
            checkpoint,
            mesh=mesh.at(index),
            comm=group.comm(index),
            page_size=PAGE_SIZE,
            options=COMPILED,
        )
        compile_bucket(model)
        return Driver(model).prefill(Row(list(prompt)), CHUNKS)

    for logits in group.run(rank):
        check(logits, expected)


def test_buckets_reach_the_rows_asked_for() -> None:
    assert [buckets(rows) for rows in (1, 2, 3, 8, 9)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 16],
    ]


def test_without_a_compiler_compiled_execution_is_refused(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ExecutionError, match=r"execution: compiled needs a C\+\+ compiler"):
        load_model(make_checkpoint("qwen3"), page_size=PAGE_SIZE, options=COMPILED)
