"""Kimi K2.5: the text model of a vision checkpoint, beside transformers' own class for the whole.

The checkpoint has the names that are published: the language model under ``language_model.``, the
vision tower and its projector beside it. transformers reads those names, so it is the judge of
them; what it would write itself renames the language model's layers by mistake.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from baton_modeling import CheckpointError, explain_checkpoint, load_model

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import check, tokens

VISION = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def published(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    plain = make_checkpoint("deepseek_v3")
    out = tmp_path_factory.mktemp("kimi") / "checkpoint"
    shutil.copytree(plain, out)
    text = json.loads((plain / "config.json").read_text())
    text["model_type"] = "kimi_k2"  # as published
    config = AutoConfig.for_model("kimi_k25", text_config=dict(text), vision_config=VISION)
    fields = {
        **config.to_dict(),
        "architectures": ["KimiK25ForConditionalGeneration"],
        "text_config": text,
        "tie_word_embeddings": False,
    }
    (out / "config.json").write_text(json.dumps(fields))
    weights = load_file(plain / "model.safetensors")
    wrapped = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    wrapped["vision_tower.encoder.final_layernorm.weight"] = torch.ones(32)
    wrapped["mm_projector.proj.0.bias"] = torch.zeros(128)
    save_file(wrapped, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_text_is_as_in_transformers(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    oracle = AutoModelForImageTextToText.from_pretrained(published, dtype=torch.float32).eval()
    with caplog.at_level(logging.INFO, "baton_modeling"):
        model = load_model(published, page_size=PAGE_SIZE)
    assert "2 tensors" in caplog.text and "mm_projector, vision_tower" in caplog.text
    prompt = tokens(1, 120)
    with torch.no_grad():
        expected = oracle(torch.tensor([prompt])).logits[0]
    check(Driver(model).prefill(Row(list(prompt)), [70, 47, 1, 1, 1]), expected)
    whole = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert Driver(model).generate(prompt, 12) == whole[0, len(prompt) :].tolist()


def test_it_is_explained_and_what_cannot_be_read_is_refused(
    published: Path, tmp_path: Path
) -> None:
    assert "language_model.model.layers.1.mlp.experts" in str(explain_checkpoint(published, tp=2))
    packed = tmp_path / "packed"
    shutil.copytree(published, packed)
    fields = json.loads((packed / "config.json").read_text())
    fields["text_config"]["quantization_config"] = {"quant_method": "compressed-tensors"}
    (packed / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"quantization_config.*compressed-tensors"):
        load_model(packed, page_size=PAGE_SIZE)
