"""Real processes with gloo give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton_modeling import load_model

from .driver import PAGE_SIZE, Driver, Row
from .gloo_rank import CASES, CHUNKS, PROMPT
from .groups import expected_logits

TESTS = Path(__file__).parents[1]


def run_ranks(case: str, checkpoint: Path, directory: Path) -> list[Any]:
    """What each rank of the case saved."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    outputs = [directory / f"{rank}.pt" for rank in range(CASES[case].world_size)]
    arguments = [case, str(directory / "rendezvous"), str(checkpoint)]
    script = [sys.executable, "-m", "numerics.gloo_rank"]
    ranks = [
        subprocess.Popen(
            [*script, str(rank), *arguments, str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outputs)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    return [torch.load(out) for out in outputs]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_next"])
def test_tensor_parallel_processes_equal_one(
    make_checkpoint: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    checkpoint = make_checkpoint(variant)
    model = load_model(checkpoint, page_size=PAGE_SIZE)
    expected = Driver(model).prefill(Row(PROMPT), CHUNKS)
    for result in run_ranks("tp2", checkpoint, tmp_path):
        assert (result["logits"] - expected).abs().max() <= 1e-4
        assert result["continuation"] == Driver(model).generate(PROMPT, 16)


@pytest.mark.timeout(180)
def test_data_parallel_processes_equal_one(deepseek_checkpoint: Path, tmp_path: Path) -> None:
    expected = expected_logits(deepseek_checkpoint)
    for result in run_ranks("dp2-ep2", deepseek_checkpoint, tmp_path):
        assert set(result) == {"gather", "dispatch"}
        for steps in result.values():
            for logits, wanted in zip(steps, expected, strict=True):
                assert (logits - wanted).abs().max() <= 1e-4
