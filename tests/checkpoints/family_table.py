"""The table of families and features in docs/models.md, found by building every family.

python tests/checkpoints/family_table.py --write

A feature is listed if a graph has it: graphs are built from the configs of the test checkpoints,
and again with a field changed to see whether the family takes or refuses it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from baton_modeling import CheckpointError, Mesh
from baton_modeling.cache import GroupKind
from baton_modeling.families import FAMILIES, family_of
from baton_modeling.families.family import FamilyModel
from baton_modeling.graph import Module
from baton_modeling.layers.clamped_experts import ClampedExperts
from baton_modeling.layers.gdn import GatedDelta
from baton_modeling.layers.gqa import GroupedAttention, HeadNorm, SigmoidGate
from baton_modeling.layers.linear import SwiGLU
from baton_modeling.layers.mla import LatentAttention
from baton_modeling.layers.moe import SigmoidRouter, SoftmaxRouter
from baton_modeling.layers.norm import RMSNorm

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
HEADER = (
    "`model_type`",
    "file",
    "attention",
    "cache",
    "feed-forward",
    "rotation",
    "weights",
    "drafts",
)
ROTATIONS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
QUANTISATIONS: dict[str, dict[str, Any]] = {
    "FP8 blocks": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "MXFP4 experts": {"quant_method": "mxfp4"},
}
# Model types whose configs are those of another: the wrapper of a text model, a second name.
SAME_AS = {
    "kimi_k2": "deepseek_v3",
    "kimi_k25": "deepseek_v3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}


def build(config: Mapping[str, Any]) -> FamilyModel:
    return family_of(config["model_type"])(config, torch.float32)


def accepts(config: Mapping[str, Any], **changes: object) -> bool:
    try:
        build({**config, **changes})
    except CheckpointError:
        return False
    return True


def configs() -> dict[str, list[dict[str, Any]]]:
    """Configs by model type, as transformers writes them."""
    from transformers import AutoConfig

    fields = json.loads((Path(__file__).parent / "variants.json").read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for variant in fields["variants"].values():
        base = fields["bases"][variant["base"]]
        chosen = {**base["common"], **base["tiny"], **variant["fields"]}
        kind = variant["model_type"]
        config = AutoConfig.for_model(kind, vocab_size=2048, **chosen)
        found.setdefault(kind, []).append(config.to_dict())
    for kind, other in SAME_AS.items():
        found[kind] = [{**config, "model_type": kind} for config in found[other]]
    return found


def attention(modules: list[Module]) -> Iterator[str]:
    if any(isinstance(m, LatentAttention) for m in modules):
        yield "latent (MLA), absorbed decode"
    if any(isinstance(m, GatedDelta) for m in modules):
        yield "Gated DeltaNet"
    grouped = [m for m in modules if isinstance(m, GroupedAttention)]
    if grouped:
        yield "grouped-query"
    if any(isinstance(m, SigmoidGate) for m in modules):
        yield "output gate"
    if any(isinstance(m, HeadNorm) for m in modules):
        yield "norm of each head"
    if any(isinstance(m, RMSNorm) and m.name.endswith("self_attn.q_norm") for m in modules):
        yield "norm over all heads"
    if any(name.startswith("bias") and ".qkv" in m.name for m in modules for name in m.weights()):
        yield "biases"
    if any(m.shape.rotary < m.shape.size for m in grouped):
        yield "partial rotation"
    if any(m.window for m in grouped):
        yield "sliding windows"
    if any(m.sinks for m in grouped):
        yield "sinks"


def feed_forward(modules: list[Module]) -> Iterator[str]:
    if any(isinstance(m, SwiGLU) and m.name.endswith(".mlp") for m in modules):
        yield "SwiGLU"
    if any(isinstance(m, SigmoidRouter) for m in modules):
        yield "sigmoid-routed experts"
    if any(isinstance(m, SoftmaxRouter) for m in modules):
        yield "softmax-routed experts"
    if any(isinstance(m, SigmoidRouter) and m.routing.n_group > 1 for m in modules) or any(
        isinstance(m, SoftmaxRouter) and m.choice[2] > 1 for m in modules
    ):
        yield "groups of experts"
    if any("shared_expert" in m.name for m in modules):
        yield "shared expert"
    if any(isinstance(m, ClampedExperts) for m in modules):
        yield "clamped gate"


def rotations(config: Mapping[str, Any]) -> list[str]:
    fields = {"rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    partial = (config.get("rope_parameters") or {}).get("partial_rotary_factor")
    if partial is not None:
        fields["partial_rotary_factor"] = partial
    return [
        kind
        for kind in ROTATIONS
        if accepts(config, rope_parameters={**fields, "rope_type": kind}, rope_scaling=None)
    ]


def drafts(config: Mapping[str, Any]) -> bool:
    one_layer = {"num_nextn_predict_layers": 1, "mtp_num_hidden_layers": 1}
    return build({**config, **one_layer}).drafting is not None


def rows() -> Iterator[tuple[str, ...]]:
    """One row per model type."""
    for kind, examples in sorted(configs().items(), key=lambda item: list(FAMILIES).index(item[0])):
        models = [build(config) for config in examples]
        modules = [each.module for model in models for each in model.graph.applications]
        groups = {group.kind for model in models for group in model.cache(Mesh({})).groups}
        first = examples[0]
        weights = ["bf16, float32"]
        weights += [
            name
            for name, fields in QUANTISATIONS.items()
            if accepts(first, quantization_config=fields, hidden_size=128, intermediate_size=128)
        ]
        yield (
            f"`{kind}`",
            f"`families/{FAMILIES[kind]}.py`",
            ", ".join(dict.fromkeys(attention(modules))),
            ", ".join(
                {GroupKind.FULL: "entries of all tokens", GroupKind.STATE: "states"}[group]
                for group in sorted(groups, key=lambda each: each.value)
            ),
            ", ".join(dict.fromkeys(feed_forward(modules))),
            ", ".join(rotations(first)),
            ", ".join(weights),
            "yes" if drafts(first) else "",
        )


def table() -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def documented() -> str:
    """The table as docs/models.md has it."""
    text = DOCS.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    if not parser.parse_args().write:
        print(table())
        return
    text = DOCS.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCS.write_text(f"{before}\n{table()}\n{after}")


if __name__ == "__main__":
    main()
