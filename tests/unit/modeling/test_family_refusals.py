"""What a family does not support it refuses by field and value, before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton_modeling import CheckpointError
from baton_modeling.families import family_of
from baton_modeling.layers.rotary import frequencies, parse_rope

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"sliding_window": 128}, "llama: .*sliding_window = 128; supported: absent"),
    ("llama", {"mlp_bias": True}, "mlp_bias = True; supported: False"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'linear' needs a factor"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["chunked"] * 3}, "layer_types"),
    (
        "qwen2_windows",
        {"sliding_window": None},
        "sliding_window = None; layers that slide need a positive window",
    ),
    ("qwen2_windows", {"layer_types": ["full_attention"]}, "for each of 3 layers"),
    ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, "supported: mxfp4"),
    (
        "gpt_oss",
        {"quantization_config": {"quant_method": "mxfp4"}, "intermediate_size": 40},
        "multiples of 32",
    ),
    ("gpt_oss", {"swiglu_limit": "7"}, "swiglu_limit = '7'; a number is needed"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "deepseek_v2: .*scoring_func = 'sigmoid'"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc'"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob = True; supported: False"),
    ("minimax_m2", {"attn_type_list": [0, 1, 1]}, r"attn_type_list = \[0, 1, 1\]"),
    ("minimax_m2", {"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
]


@pytest.mark.parametrize(("variant", "changes", "message"), CASES)
def test_a_value_that_is_not_supported(
    make_checkpoint: Callable[..., Path], variant: str, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((make_checkpoint(variant) / "config.json").read_text())
    build = family_of(config["model_type"])
    build(config, torch.float32)
    with pytest.raises(CheckpointError, match=message):
        build({**config, **changes}, torch.float32)


def test_a_dynamic_rotation_is_the_plain_one_within_the_context() -> None:
    fields = {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 4.0}
    dynamic = parse_rope({"rope_parameters": fields, "max_position_embeddings": 64})
    plain = parse_rope({"rope_theta": 500.0})
    assert torch.equal(frequencies(dynamic, 16), frequencies(plain, 16))
