"""gpt-oss (OpenAI, 2025): sinks, sliding windows in every second layer, clamped gates in experts.

Published weights are in MXFP4; they are unpacked as they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton_modeling.families.family import ConfigReader, FamilyModel
from baton_modeling.families.grouped import grouped_decoder, projected
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.clamped_experts import ClampedExperts
from baton_modeling.layers.gqa import GroupedAttention, HeadShape
from baton_modeling.layers.linear import RowLinear
from baton_modeling.layers.moe import SoftmaxRouter
from baton_modeling.layers.mxfp4 import BLOCK
from baton_modeling.layers.rotary import Rope, parse_rope


@dataclass(frozen=True)
class GptOss:
    """A checked config. windows: of each layer, 0 for full attention."""

    vocab: int
    hidden: int
    inner: int
    heads: HeadShape
    windows: tuple[int, ...]
    bias: bool
    experts: int
    top_k: int
    alpha: float
    limit: float
    packed: bool
    rope: Rope
    eps: float
    tied: bool

    @property
    def layers(self) -> int:
        return len(self.windows)


def parse(config: Mapping[str, Any]) -> GptOss:
    """Check ``config``; CheckpointError names the field whose value is not supported."""
    read = ConfigReader("gpt_oss", config)
    read.require("hidden_act", "silu")
    heads = read.whole("num_attention_heads")
    size = read.whole("head_dim", read.whole("hidden_size") // heads)
    windows = read.windows(default=lambda layer: layer % 2 == 0)
    packed = read.packed("mxfp4")
    inner, hidden = read.whole("intermediate_size"), read.whole("hidden_size")
    if packed and (inner % BLOCK or hidden % BLOCK):
        raise read.refusal("intermediate_size", f"MXFP4 needs sizes that are multiples of {BLOCK}")
    return GptOss(
        vocab=read.whole("vocab_size"),
        hidden=hidden,
        inner=inner,
        heads=HeadShape(heads, read.whole("num_key_value_heads", heads), size, size),
        windows=windows,
        bias=read.flag("attention_bias", True),
        experts=read.whole("num_local_experts"),
        top_k=read.whole("num_experts_per_tok"),
        alpha=read.number("swiglu_alpha", 1.702),
        limit=read.number("swiglu_limit", 7.0),
        packed=packed,
        rope=parse_rope(config),
        eps=read.number("rms_norm_eps", 1e-5),
        tied=read.flag("tie_word_embeddings", False),
    )


def build(config: Mapping[str, Any], dtype: torch.dtype) -> FamilyModel:
    """The model of ``config`` as a graph; ``dtype`` is that of its cache."""
    return grouped_decoder(parse(config), dtype, attention, mixture)


def attention(
    g: Graph, c: GptOss, name: str, layer: int, x: Value, cos: Value, sin: Value
) -> Value:
    """Grouped-query attention; a sink takes what a head does not want to attend to."""
    width = c.heads.heads * c.heads.size
    q, k, v = projected(g, c, name, x, bias=c.bias)
    attend = GroupedAttention(name, c.heads, layer, window=c.windows[layer], sinks=True)
    out = g(attend, q, k, v, cos, sin)
    return g(RowLinear(f"{name}.o_proj", width, c.hidden, "attn_tp", bias=c.bias), out)


def mixture(g: Graph, c: GptOss, name: str, layer: int, x: Value) -> Value:
    """The best experts, weighted by a softmax over them alone."""
    name = f"{name}.mlp"
    router = SoftmaxRouter(
        f"{name}.router", c.hidden, c.experts, c.top_k, normalise=True, bias=True
    )
    weights, chosen = g.apply(router, x)
    experts = ClampedExperts(
        f"{name}.experts",
        c.hidden,
        c.inner,
        c.experts,
        alpha=c.alpha,
        limit=c.limit,
        packed=c.packed,
    )
    return g(experts, x, weights, chosen)
