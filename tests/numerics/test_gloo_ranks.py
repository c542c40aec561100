"""Two real processes with gloo give what one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton_modeling import load_model

from .driver import PAGE_SIZE, Driver, Row

HERE = Path(__file__).parent


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_next"])
def test_two_processes_equal_one(
    make_checkpoint: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    source = make_checkpoint(variant)
    model = load_model(source, page_size=PAGE_SIZE)
    prompt = [17 * i % 2000 + 16 for i in range(90)]
    expected = Driver(model).prefill(Row(prompt), [50, 37, 1, 1, 1])
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(HERE / "gloo_rank.py")]
    rendezvous, checkpoint = str(tmp_path / "rendezvous"), str(source)
    ranks = [
        subprocess.Popen(
            [*script, str(rank), "2", rendezvous, checkpoint, str(tmp_path / f"{rank}.pt")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert (result["logits"] - expected).abs().max() <= 1e-4
        assert result["continuation"] == Driver(model).generate(prompt, 16)
