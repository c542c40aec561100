"""Multi-token prediction of DeepSeek-V3, against transformers' own reading of the checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from baton_modeling import (
    CheckpointError,
    CompiledModel,
    Lockstep,
    Options,
    load_model,
    tensor_parallel_mesh,
)

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import check, tokens

LAYERS, CHUNKS = 3, [40, 1, 30, 1, 1, 17]
PROMPT = tokens(6, sum(CHUNKS) + 1)
DRAFT = Options(draft=True)


@pytest.fixture(scope="module")
def checkpoint(deepseek_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a drafting layer: its last layer's weights shuffled, norms of its own."""
    out = shutil.copytree(deepseek_checkpoint, tmp_path_factory.mktemp("draft") / "drafting")
    weights = load_file(out / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    last, name = f"model.layers.{LAYERS - 1}.", f"model.layers.{LAYERS}."
    for key in [key for key in weights if key.startswith(last)]:
        rows = torch.randperm(len(weights[key]), generator=generator)
        weights[key.replace(last, name)] = weights[key][rows].clone()
    hidden = weights["model.norm.weight"].shape[0]
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        weights[f"{name}{norm}.weight"] = 1 + 0.1 * torch.randn(hidden, generator=generator)
    joined = torch.randn(hidden, 2 * hidden, generator=generator) / (2 * hidden) ** 0.5
    weights[f"{name}eh_proj.weight"] = joined
    # As published: the layer repeats what it shares with the model.
    weights[f"{name}embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights[f"{name}shared_head.head.weight"] = weights["lm_head.weight"].clone()
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config.pop("num_mtp_layers", None)
    (out / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    return out


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> tuple[Tensor, Tensor]:
    """Logits of the model and of its drafting layer over all but the last token."""
    main: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # transformers knows where the layer is in the published model of 61 layers only.
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{LAYERS}.*"]
    drafter: Any = MtpModel.from_pretrained(main).eval()
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        hidden = main.model(ids[:, :-1]).last_hidden_state
        positions = torch.arange(1, len(PROMPT))[None]
        guessed = drafter.forward_layer(0, hidden, positions, None, input_ids=ids[:, 1:])
        return main.lm_head(hidden)[0], main.lm_head(guessed)[0]


def run(model: CompiledModel) -> tuple[Tensor, Tensor]:
    """The same in chunks."""
    drafter = model.drafter
    assert drafter is not None
    driver, row = Driver(model), Row(PROMPT)
    own, guessed = [], []
    for count in CHUNKS:
        batch = driver.batch([(row, count)])
        logits, hidden = model.forward_hidden(batch)
        following = torch.tensor(PROMPT[row.computed + 1 : row.computed + count + 1])
        guesses, _ = drafter.forward(dataclasses.replace(batch, token_ids=following), hidden)
        own.append(logits)
        guessed.append(guesses)
        row.computed += count
    return torch.cat(own), torch.cat(guessed)


def test_both_programs(checkpoint: Path, expected: tuple[Tensor, Tensor]) -> None:
    for actual, wanted in zip(
        run(load_model(checkpoint, page_size=PAGE_SIZE, options=DRAFT)), expected, strict=True
    ):
        check(actual, wanted)


def test_two_ranks(checkpoint: Path, expected: tuple[Tensor, Tensor]) -> None:
    mesh = tensor_parallel_mesh(2)
    group = Lockstep(mesh)

    def rank(index: int) -> tuple[Tensor, Tensor]:
        comm = group.comm(index)
        return run(
            load_model(
                checkpoint, mesh=mesh.at(index), comm=comm, page_size=PAGE_SIZE, options=DRAFT
            )
        )

    for found in group.run(rank):
        for actual, wanted in zip(found, expected, strict=True):
            check(actual, wanted)


def test_a_model_without_the_layer_is_refused(deepseek_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no multi-token-prediction layer"):
        load_model(deepseek_checkpoint, page_size=PAGE_SIZE, options=DRAFT)


def test_without_drafting_the_layer_is_left_out(
    checkpoint: Path, expected: tuple[Tensor, Tensor]
) -> None:
    model = load_model(checkpoint, page_size=PAGE_SIZE)
    assert model.cache_layout.groups[0].layers == LAYERS
    check(Driver(model).prefill(Row(PROMPT[:-1]), CHUNKS), expected[0])
