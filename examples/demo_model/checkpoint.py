"""The demo model as a DeepSeek-V3 checkpoint in Hugging Face's format, and back.

The multi-token prediction layer is stored as DeepSeek stores it: as layer
`num_hidden_layers`, with its own names for the shared embedding and head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .chat import Encoder
from .model import DemoModel, Shape
from .tokenizer import END_OF_TURN, MAX_CONTEXT, PAD

_STACKED = (".experts.gate_proj", ".experts.up_proj", ".experts.down_proj")
_BIAS = "e_score_correction_bias"


def config_of(shape: Shape, *, end: int, pad: int) -> dict[str, Any]:
    """config.json, with the fields that published DeepSeek-V3 configurations have."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": [end, pad],
        "pad_token_id": pad,
        "dtype": "bfloat16",
        "first_k_dense_replace": shape.dense_layers,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.dense_width,
        "kv_lora_rank": shape.latent,
        "max_position_embeddings": MAX_CONTEXT,
        "moe_intermediate_size": shape.expert_width,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.chosen,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": shape.query_rank,
        "qk_nope_head_dim": shape.nope,
        "qk_rope_head_dim": shape.rope,
        "rms_norm_eps": shape.eps,
        "rope_interleave": True,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "rope_theta": shape.theta,
        "routed_scaling_factor": shape.routed_scale,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": shape.value,
        "vocab_size": shape.vocabulary,
    }


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json of ours describes."""
    return Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        dense_layers=config["first_k_dense_replace"],
        heads=config["num_attention_heads"],
        query_rank=config["q_lora_rank"],
        latent=config["kv_lora_rank"],
        nope=config["qk_nope_head_dim"],
        rope=config["qk_rope_head_dim"],
        value=config["v_head_dim"],
        dense_width=config["intermediate_size"],
        expert_width=config["moe_intermediate_size"],
        experts=config["n_routed_experts"],
        chosen=config["num_experts_per_tok"],
        routed_scale=config["routed_scaling_factor"],
        theta=config["rope_parameters"]["rope_theta"],
        eps=config["rms_norm_eps"],
    )


def _stored_name(name: str, layers: int) -> str:
    if name.startswith("lm_head."):
        return name
    return "model." + name.replace("mtp.", f"layers.{layers}.", 1)


def save_checkpoint(model: DemoModel, directory: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors.

    Weights in bfloat16, but the experts' bias in float32, as its users want it.
    The tokenizer must be there already.
    """
    layers = model.shape.layers
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.cpu() if _BIAS in name else value.cpu().to(torch.bfloat16)
        stored = _stored_name(name, layers)
        if stored.endswith(_STACKED):
            before, _, leaf = stored.rpartition(".")
            for expert, weight in enumerate(value):
                tensors[f"{before}.{expert}.{leaf}.weight"] = weight.clone()
        else:
            tensors[stored] = value.clone()
    predictor = f"model.layers.{layers}"
    tensors[f"{predictor}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{predictor}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    encoder = Encoder(directory)
    end, pad = encoder.token(END_OF_TURN), encoder.token(PAD)
    config = config_of(model.shape, end=end, pad=pad)
    generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
    for file, value in (("config.json", config), ("generation_config.json", generation)):
        (directory / file).write_text(json.dumps(value, indent=2) + "\n")


def load_checkpoint(directory: Path, device: torch.device | None = None) -> DemoModel:
    """The model of a checkpoint that `save_checkpoint` wrote, in float32, for inference."""
    config = json.loads((directory / "config.json").read_text())
    model = DemoModel(shape_of(config))
    stored = load_file(directory / "model.safetensors")
    state: dict[str, Tensor] = {}
    for name in model.state_dict():
        key = _stored_name(name, model.shape.layers)
        if key.endswith(_STACKED):
            before, _, leaf = key.rpartition(".")
            experts = range(model.shape.experts)
            value = torch.stack([stored[f"{before}.{e}.{leaf}.weight"] for e in experts])
        else:
            value = stored[key]
        state[name] = value.float()
    model.load_state_dict(state)
    return model.eval().to(device or torch.device("cpu"))
