"""A rank keeps its slice of the weights in memory and no more, measured from outside torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

INNER = 32768


@pytest.fixture(scope="module")
def wide(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with feed-forwards so wide that nothing else counts."""
    out = shutil.copytree(make_checkpoint("llama_yarn"), tmp_path_factory.mktemp("wide") / "llama")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "intermediate_size": INNER}))
    weights = load_file(out / "model.safetensors")
    hidden = config["hidden_size"]
    for name in [name for name in weights if ".mlp." in name]:
        shape = (hidden, INNER) if "down_proj" in name else (INNER, hidden)
        weights[name] = torch.full(shape, 0.01, dtype=torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def taken(ranks: int, warm_up: Path, checkpoint: Path) -> int:
    tests = Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-m", "numerics.shard_memory", str(ranks), str(warm_up), str(checkpoint)],
        env={**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found: int = json.loads(process.stdout)["bytes"]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(150)
def test_a_rank_keeps_a_quarter(make_checkpoint: Callable[..., Path], wide: Path) -> None:
    whole = (wide / "model.safetensors").stat().st_size
    slack = whole // 8  # of allocator and interpreter
    assert abs(taken(1, make_checkpoint("llama_yarn"), wide) - whole) < slack
    assert abs(taken(4, make_checkpoint("llama_yarn"), wide) - whole // 4) < slack
