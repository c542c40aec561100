"""gpt-oss with experts packed in MXFP4, against transformers unpacking the same checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Mxfp4Config

from baton_modeling import CheckpointError, Lockstep, Mesh, WeightError, load_model
from baton_modeling.layers.mxfp4 import BLOCK

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import check, tokens

PROMPT = tokens(7, 50)


@pytest.fixture(scope="module")
def packed(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gpt_oss checkpoint with its experts replaced by random packed ones."""
    out = shutil.copytree(make_checkpoint("gpt_oss"), tmp_path_factory.mktemp("mxfp4") / "packed")
    weights = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        shape = (experts, outputs, inputs // BLOCK)
        weights[f"{name}_blocks"] = random_bytes(generator, 0, 256, *shape, BLOCK // 2)
        weights[f"{name}_scales"] = random_bytes(generator, 120, 126, *shape)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def random_bytes(generator: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def expected(packed: Path) -> Tensor:
    oracle = AutoModelForCausalLM.from_pretrained(
        packed, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    ).eval()
    with torch.no_grad():
        logits: Tensor = oracle(torch.tensor([PROMPT])).logits[0]
    return logits


def test_packed_experts(packed: Path, expected: Tensor) -> None:
    model = load_model(packed, page_size=PAGE_SIZE)
    check(Driver(model).prefill(Row(PROMPT), [40, 9, 1]), expected)


def test_a_rank_unpacks_its_slice(packed: Path, expected: Tensor) -> None:
    mesh = Mesh({"ep": 2, "moe_tp": 2})
    group = Lockstep(mesh)

    def rank(index: int) -> Tensor:
        model = load_model(packed, mesh=mesh.at(index), comm=group.comm(index), page_size=PAGE_SIZE)
        return Driver(model).prefill(Row(PROMPT), [50])

    for logits in group.run(rank):
        check(logits, expected)


def test_what_cannot_be_unpacked_is_refused(packed: Path, tmp_path: Path) -> None:
    mesh = Mesh({"moe_tp": 4})  # two blocks of 32 do not divide over four ranks
    with pytest.raises(WeightError, match=r"down_proj_blocks: dimension 2 is 2"):
        load_model(packed, mesh=mesh, comm=Lockstep(mesh).comm(0), page_size=PAGE_SIZE)
    other = shutil.copytree(packed, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"gpt_oss: .*quantization_config.*mxfp4"):
        load_model(other, page_size=PAGE_SIZE)
