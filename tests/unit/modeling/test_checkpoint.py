"""Reading checkpoints: what loads, what is refused and by which name, and how much is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton_modeling import (
    CheckpointError,
    CompiledModel,
    ForwardBatch,
    WeightError,
    explain_checkpoint,
    fingerprint,
    load_model,
    read_model_description,
    tensor_parallel_mesh,
)
from baton_modeling.checkpoint import CheckpointReader
from baton_modeling.model import build_family


@pytest.fixture
def copy(deepseek_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(deepseek_checkpoint, tmp_path / "copy")


def edit(checkpoint: Path, **changes: Any) -> None:
    """Set fields of config.json; None removes a field."""
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def logits(model: CompiledModel) -> torch.Tensor:
    model.bind_cache(model.cache_layout.allocate(2, 8))
    whole = torch.arange(12)
    return model.forward(
        ForwardBatch(
            whole + 100,
            whole,
            whole,
            torch.tensor([0, 12], dtype=torch.int32),
            torch.tensor([12], dtype=torch.int32),
            torch.tensor([[0, 1]], dtype=torch.int32),
            0,
            whole,
        )
    )


def test_published_rope_fields_load_as_well(deepseek_checkpoint: Path, copy: Path) -> None:
    rope = json.loads((copy / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    edit(copy, rope_parameters=None, rope_theta=theta, rope_scaling=rope)
    expected = logits(load_model(deepseek_checkpoint, page_size=8))
    assert torch.equal(logits(load_model(copy, page_size=8)), expected)


def test_several_files_with_an_index(deepseek_checkpoint: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for part in range(3):
        file = f"model-{part}.safetensors"
        save_file({name: tensors[name] for name in names[part::3]}, copy / file)
        index.update(dict.fromkeys(names[part::3], file))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    expected = logits(load_model(deepseek_checkpoint, page_size=8))
    assert torch.equal(logits(load_model(copy, page_size=8)), expected)
    (copy / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-1\.safetensors named by its index"):
        load_model(copy, page_size=8)


def test_prediction_layers_are_left_out_and_strangers_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(4, 4)
    save_file(tensors, copy / "model.safetensors")
    edit(copy, num_nextn_predict_layers=1)
    load_model(copy, page_size=8)
    tensors["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not use: model\.layers\.0\.self_attn\.sinks"):
        load_model(copy, page_size=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'; supported: 'silu'"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "supported: fp8 in e4m3"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size must be two sizes"),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ({"n_group": 8}, "n_group = 8; a group needs at least two experts"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": {"short_factor": [1]}}, "rope parameters short_factor"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: deepseek_v3"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be a positive integer"),
        ({"kv_lora_rank": "64"}, "kv_lora_rank = '64'; a non-negative integer is needed"),
        ({"hidden_size": 96}, r"has shape \[2048, 128\], config.json asks for \[2048, 96\]"),
        ({"num_hidden_layers": 4}, r"has no tensor model\.layers\.3\."),
    ],
)
def test_refusals_name_the_field(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(copy, page_size=8)


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_model(tmp_path, page_size=8)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        read_model_description(tmp_path)


def test_tied_embeddings_share_one_tensor(make_checkpoint: Callable[..., Path]) -> None:
    description = read_model_description(make_checkpoint("deepseek_v3_one_group"))
    graph = build_family(description, torch.float32).graph
    modules = {a.module.name: a.module for a in graph.applications}
    (table,) = modules["model.embed_tokens"].weights().values()
    (head,) = modules["lm_head"].weights().values()
    mesh, cpu = tensor_parallel_mesh(1), torch.device("cpu")
    with CheckpointReader(description.path) as reader:
        first = reader.load(table, mesh, torch.float32, cpu)
        assert reader.load(head, mesh, torch.float32, cpu) is first


def test_a_rank_reads_its_part_only(deepseek_checkpoint: Path) -> None:
    description = read_model_description(deepseek_checkpoint)
    modules = [a.module for a in build_family(description, torch.float32).graph.applications]

    def read(size: int, rank: int) -> int:
        mesh = tensor_parallel_mesh(size, rank)
        with CheckpointReader(deepseek_checkpoint) as reader:
            for module in modules:
                for weight in module.weights().values():
                    reader.load(weight, mesh, torch.float32, torch.device("cpu"))
            return reader.bytes

    whole, parts = read(1, 0), [read(4, rank) for rank in range(4)]
    assert whole == sum(
        t.numel() * t.element_size()
        for t in load_file(deepseek_checkpoint / "model.safetensors").values()
    )
    assert len(set(parts)) == 1
    # All but the low-rank projections, norms and routers is cut.
    assert parts[0] < 0.4 * whole


BLOCK = 32


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values and the scale of each block, ragged ones at the edges included."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns)
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[block].float().abs().max() / 448
            values[block] = (weight[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def test_fp8_block_weights_equal_their_dequantised_form(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    plain: dict[str, torch.Tensor] = {}
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain[name] = packed[name] = tensor
        if name.endswith("_proj.weight") or "with_mqa" in name:
            values, scales = quantise(tensor)
            wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            plain[name] = values.float() * wide[: tensor.shape[0], : tensor.shape[1]]
            packed[name], packed[f"{name}_scale_inv"] = values, scales
    reference = shutil.copytree(copy, tmp_path / "plain")
    save_file(plain, reference / "model.safetensors")
    save_file(packed, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="_scale_inv"):
        load_model(copy, page_size=8)
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    edit(copy, quantization_config=quantisation)
    assert torch.equal(
        logits(load_model(copy, page_size=8)), logits(load_model(reference, page_size=8))
    )
    mesh = tensor_parallel_mesh(4, 3)  # cuts inside blocks
    graph = build_family(read_model_description(copy), torch.float32).graph
    with CheckpointReader(copy, block=(BLOCK, BLOCK)) as fp8, CheckpointReader(reference) as wide:
        for application in graph.applications:
            for weight in application.module.weights().values():
                parts = [
                    reader.load(weight, mesh, torch.float32, torch.device("cpu"))
                    for reader in (fp8, wide)
                ]
                assert torch.equal(*parts)


def test_a_mesh_that_cannot_cut_the_model(deepseek_checkpoint: Path) -> None:
    with pytest.raises(WeightError, match=r"embed_tokens.* 2048, .* over the 3 ranks .* vocab"):
        explain_checkpoint(deepseek_checkpoint, tp=3)


def test_progress_ends_at_one(deepseek_checkpoint: Path) -> None:
    seen: list[tuple[str, float]] = []
    load_model(deepseek_checkpoint, page_size=8, progress=lambda *each: seen.append(each))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "lm_head.weight" in {name for name, _ in seen}


def test_fingerprints_follow_contents_not_names(deepseek_checkpoint: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(deepseek_checkpoint)
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"][0] = 0
    save_file(tensors, copy / "model.safetensors")
    assert fingerprint(copy) != fingerprint(deepseek_checkpoint)


def test_a_cache_of_the_wrong_form_is_refused(deepseek_checkpoint: Path) -> None:
    model = load_model(deepseek_checkpoint, page_size=8)
    with pytest.raises(ValueError, match="no arena for cache group 'full'"):
        model.bind_cache({})
    with pytest.raises(ValueError, match=r"must be \[num_pages, 3, 8, 80\] torch.float32"):
        model.bind_cache({"full": torch.zeros(4, 3, 16, 80)})
    with pytest.raises(RuntimeError, match="call bind_cache"):
        model.forward(
            ForwardBatch(
                torch.tensor([5]),
                torch.tensor([0]),
                torch.tensor([0]),
                torch.tensor([0, 1], dtype=torch.int32),
                torch.tensor([1], dtype=torch.int32),
                torch.tensor([[0]], dtype=torch.int32),
                1,
                torch.tensor([0]),
            )
        )
