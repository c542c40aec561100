"""MiniMax-M2 (MiniMax, 2025): grouped-query attention with partial rotation, sigmoid experts.

Queries and keys are normed over all heads at once, so under tensor parallelism the compiler
gathers them before that norm and cuts them again after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton_modeling.families.family import ConfigReader, FamilyModel
from baton_modeling.families.grouped import grouped_decoder, projected
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.gqa import GroupedAttention, HeadShape
from baton_modeling.layers.linear import RowLinear
from baton_modeling.layers.moe import Experts, SigmoidRouter, SigmoidRouting
from baton_modeling.layers.norm import RMSNorm
from baton_modeling.layers.rotary import Rope, parse_rope


@dataclass(frozen=True)
class MiniMaxM2:
    """A checked config."""

    vocab: int
    hidden: int
    layers: int
    inner: int
    heads: HeadShape
    routing: SigmoidRouting
    rope: Rope
    eps: float
    tied: bool
    block: tuple[int, int] | None


def parse(config: Mapping[str, Any]) -> MiniMaxM2:
    """Check ``config``; CheckpointError names the field whose value is not supported."""
    read = ConfigReader("minimax_m2", config)
    read.require("hidden_act", "silu")
    read.require("scoring_func", "sigmoid")
    read.require("use_routing_bias", True)
    read.require("use_qk_norm", True)
    read.require("qk_norm_type", "per_layer")
    read.require("shared_intermediate_size", 0)
    read.require("attn_type_list", [1] * read.whole("num_hidden_layers"))  # 1: full attention
    read.require("sliding_window")
    heads = read.whole("num_attention_heads")
    size = read.whole("head_dim", read.whole("hidden_size") // heads)
    rope = parse_rope(config)
    partial = config.get("rotary_dim") if rope.partial == 1.0 else None
    rotary = int(size * rope.partial) if partial is None else read.whole("rotary_dim")
    return MiniMaxM2(
        vocab=read.whole("vocab_size"),
        hidden=read.whole("hidden_size"),
        layers=read.whole("num_hidden_layers"),
        inner=read.whole("intermediate_size"),
        heads=HeadShape(heads, read.whole("num_key_value_heads", heads), size, rotary),
        routing=SigmoidRouting(
            read.whole("num_local_experts"), read.whole("num_experts_per_tok"), 1, 1, True, 1.0
        ),
        rope=rope,
        eps=read.number("rms_norm_eps", 1e-6),
        tied=read.flag("tie_word_embeddings", False),
        block=read.quantisation(),
    )


def build(config: Mapping[str, Any], dtype: torch.dtype) -> FamilyModel:
    """The model of ``config`` as a graph; ``dtype`` is that of its cache."""
    c = parse(config)
    drafting = rf"model\.layers\.{c.layers}\..*"
    return grouped_decoder(c, dtype, attention, mixture, skipped=(drafting,), block=c.block)


def attention(
    g: Graph, c: MiniMaxM2, name: str, layer: int, x: Value, cos: Value, sin: Value
) -> Value:
    """The norms span all heads; the compiler makes the heads whole for them."""
    s, width = c.heads, c.heads.heads * c.heads.size
    q, k, v = projected(g, c, name, x)
    q = g(RMSNorm(f"{name}.q_norm", width, c.eps), q)
    k = g(RMSNorm(f"{name}.k_norm", s.kv_heads * s.size, c.eps), k)
    out = g(GroupedAttention(name, s, layer), q, k, v, cos, sin)
    return g(RowLinear(f"{name}.o_proj", width, c.hidden, "attn_tp"), out)


def mixture(g: Graph, c: MiniMaxM2, name: str, layer: int, x: Value) -> Value:
    """Sigmoid-routed experts without groups."""
    name = f"{name}.block_sparse_moe"
    bias = f"{name}.e_score_correction_bias"
    weights, chosen = g.apply(SigmoidRouter(f"{name}.gate", c.hidden, c.routing, bias), x)
    experts = Experts(f"{name}.experts", c.hidden, c.inner, c.routing.experts, ("w1", "w3", "w2"))
    return g(experts, x, weights, chosen)
