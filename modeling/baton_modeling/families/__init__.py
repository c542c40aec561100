"""Model families: one file each, found by config.json's ``model_type``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from baton_modeling.description import CheckpointError
from baton_modeling.families.family import FamilyModel

Build = Callable[[Mapping[str, Any], torch.dtype], FamilyModel]

# model_type -> module of this package with build().
FAMILIES: dict[str, str] = {
    "deepseek_v3": "deepseek_v3",
    "deepseek_v2": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
    "llama": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "qwen3_moe": "llama",
    "minimax_m2": "minimax_m2",
    "gpt_oss": "gpt_oss",
    "qwen3_next": "qwen3_next",
    "qwen3_5": "qwen3_next",
    "qwen3_5_text": "qwen3_next",
    "qwen3_5_moe": "qwen3_next",
    "qwen3_5_moe_text": "qwen3_next",
}


def family_of(model_type: str) -> Build:
    """The family's ``build(config, dtype)``; CheckpointError lists the families there are."""
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    module = importlib.import_module(f"baton_modeling.families.{FAMILIES[model_type]}")
    build: Build = module.build
    return build
