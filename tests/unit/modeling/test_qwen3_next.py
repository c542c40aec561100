"""Qwen3-Next and Qwen3.5: how their checkpoints are stored, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from baton_modeling import CheckpointError, GroupKind, WeightError, load_model
from baton_modeling.checkpoint import CheckpointReader
from baton_modeling.description import read_model_description
from baton_modeling.mesh import tensor_parallel_mesh
from baton_modeling.model import build_family

VARIANTS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")


def wrap(source: Path, target: Path) -> Path:
    """The checkpoint as it is published: inside a vision model, experts together, an MTP layer."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    wrapper = {
        "model_type": config["model_type"].removesuffix("_text"),
        "architectures": ["Wrapper"],
        "text_config": config,
        "vision_config": {"depth": 1, "hidden_size": 8},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    (target / "config.json").write_text(json.dumps(wrapper))
    tensors = {
        re.sub(r"^model\.", "model.language_model.", name): tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    stems = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for stem in sorted(stems):
        fused = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        for together, parts in fused.items():
            tensors[f"{stem}.experts.{together}"] = torch.stack(
                [
                    torch.cat([tensors.pop(f"{stem}.experts.{e}.{part}.weight") for part in parts])
                    for e in range(config["num_experts"])
                ]
            )
    tensors["model.visual.patch_embed.proj.weight"] = torch.zeros(4, 4)
    tensors["mtp.fc.weight"] = torch.zeros(4, 4)
    save_file(tensors, target / "model.safetensors")
    return target


def loaded(checkpoint: Path, ranks: int, rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """Every module's weights on one rank."""
    graph = build_family(read_model_description(checkpoint), torch.float32).graph
    mesh, cpu = tensor_parallel_mesh(ranks, rank), torch.device("cpu")
    with CheckpointReader(checkpoint) as reader:
        return {
            application.module.name.replace("language_model.", ""): {
                name: reader.load(weight, mesh, torch.float32, cpu)
                for name, weight in application.module.weights().items()
            }
            for application in graph.applications
        }


@pytest.mark.parametrize("variant", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_the_published_form_is_the_same_model(
    make_checkpoint: Callable[..., Path], tmp_path: Path, variant: str, ranks: int, rank: int
) -> None:
    plain = make_checkpoint(variant)
    published = wrap(plain, tmp_path / "published")
    load_model(published, page_size=8)  # knows every tensor
    expected, actual = loaded(plain, ranks, rank), loaded(published, ranks, rank)
    assert expected.keys() == actual.keys()
    for module, weights in expected.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(actual[module][name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("variant", ["qwen3_5", "qwen3_5_moe"])
def test_names_are_those_of_transformers(
    make_checkpoint: Callable[..., Path], tmp_path: Path, variant: str
) -> None:
    """The language model's tensors of transformers' own vision model, no more and no fewer."""
    published = wrap(make_checkpoint(variant), tmp_path / "published")
    fields = json.loads((published / "config.json").read_text())
    config = AutoConfig.for_model(fields["model_type"], text_config=fields["text_config"])
    config.tie_word_embeddings = fields["tie_word_embeddings"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wanted = {name for name in model.state_dict() if ".visual." not in name} - tied
    graph = build_family(read_model_description(published), torch.float32).graph
    with CheckpointReader(published) as reader:
        assert wanted == {
            name
            for application in graph.applications
            for weight in application.module.weights().values()
            for name in reader.stored(weight).names
        }


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_hold_their_heads_and_no_more(
    make_checkpoint: Callable[..., Path], variant: str
) -> None:
    checkpoint = make_checkpoint(variant)
    layout = load_model(checkpoint, page_size=8).cache_layout
    family = build_family(read_model_description(checkpoint), torch.float32)
    half = family.cache(tensor_parallel_mesh(2))
    assert [group.name for group in layout.groups] == ["full", "state"]
    for group, part in zip(layout.groups, half.groups, strict=True):
        assert group == part.whole()
        assert part.page_bytes(8) * 2 == group.page_bytes(8)
    state = layout.group("state")
    assert state.kind is GroupKind.STATE
    assert state.page_bytes(8) == state.page_bytes(64)  # a snapshot has no tokens


def test_heads_that_cannot_be_cut_are_refused(make_checkpoint: Callable[..., Path]) -> None:
    from baton_modeling import Lockstep

    mesh = tensor_parallel_mesh(4)
    group = Lockstep(mesh)
    checkpoint = make_checkpoint("qwen3_5")  # two key/value heads
    with pytest.raises(WeightError, match=r"2 heads .* over the 4 ranks of mesh axis attn_tp"):
        load_model(checkpoint, mesh=mesh, comm=group.comm(0), page_size=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'; supported: 'silu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["linear_attention"]}, "layer_types = .*4 of full_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads = 3; a multiple of 2"),
        ({"linear_conv_kernel_dim": None}, "linear_conv_kernel_dim = None"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e6, "sections": [1]}}, "sections are not supported"),
    ],
)
def test_refusals_name_the_field(
    make_checkpoint: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(make_checkpoint("qwen3_5"), tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_model(copy, page_size=8)


def test_a_batch_without_states_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    from baton_modeling import ForwardBatch

    model = load_model(make_checkpoint("qwen3_5"), page_size=8)
    model.bind_cache(model.cache_layout.allocate({"full": 4, "state": 2}, 8))
    one, row = torch.tensor([0]), torch.tensor([0, 1], dtype=torch.int32)
    table = torch.tensor([[0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="the batch names none"):
        model.forward(ForwardBatch(torch.tensor([5]), one, one, row, row[1:], table, 1, one))
