"""Llama (Touvron et al., 2023) and its dense descendants Qwen2 and Qwen3, and Qwen3-MoE.

A pre-norm decoder with grouped-query attention. The descendants differ in three places: biases
on the projections, a norm of each query and key head, and experts in place of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton_modeling.families.family import ConfigReader, FamilyModel
from baton_modeling.families.grouped import grouped_decoder, projected
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.gqa import GroupedAttention, HeadNorm, HeadShape
from baton_modeling.layers.linear import RowLinear, SwiGLU
from baton_modeling.layers.moe import Experts, SoftmaxRouter
from baton_modeling.layers.rotary import Rope, parse_rope


@dataclass(frozen=True)
class Decoder:
    """A checked config.

    experts: 0 for a dense model; then expert_inner, top_k and normalise mean nothing.
    dense_layers: layers with a plain feed-forward beside expert layers.
    """

    vocab: int
    hidden: int
    layers: int
    inner: int
    heads: HeadShape
    qkv_bias: bool
    out_bias: bool
    windows: tuple[int, ...]
    head_norms: bool
    rope: Rope
    eps: float
    tied: bool
    block: tuple[int, int] | None
    experts: int = 0
    expert_inner: int = 0
    top_k: int = 0
    normalise: bool = False
    dense_layers: frozenset[int] = frozenset()


def parse(config: Mapping[str, Any]) -> Decoder:
    """Check ``config``; CheckpointError names the field whose value is not supported."""
    family = str(config["model_type"])
    read = ConfigReader(family, config)
    read.require("hidden_act", "silu")
    read.require("mlp_bias", False)
    layers, heads = read.whole("num_hidden_layers"), read.whole("num_attention_heads")
    size = read.whole("head_dim", read.whole("hidden_size") // heads)
    rope = parse_rope(config)
    bias = read.flag("attention_bias", False)
    moe = family == "qwen3_moe"
    return Decoder(
        vocab=read.whole("vocab_size"),
        hidden=read.whole("hidden_size"),
        layers=layers,
        inner=read.whole("intermediate_size"),
        heads=HeadShape(
            heads, read.whole("num_key_value_heads", heads), size, int(size * rope.partial)
        ),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        windows=_windows(read, family),
        head_norms=family in ("qwen3", "qwen3_moe"),
        rope=rope,
        eps=read.number("rms_norm_eps", 1e-6),
        tied=read.flag("tie_word_embeddings", False),
        block=read.quantisation(),
        experts=_experts(read) if moe else 0,
        expert_inner=read.whole("moe_intermediate_size") if moe else 0,
        top_k=read.whole("num_experts_per_tok") if moe else 0,
        normalise=moe and read.flag("norm_topk_prob", False),
        dense_layers=_dense_layers(read, layers) if moe else frozenset(range(layers)),
    )


def _windows(read: ConfigReader, family: str) -> tuple[int, ...]:
    """Qwen2 and Qwen3 may slide in their upper layers, Qwen3-MoE in all of them."""
    if family != "llama" and not read.flag("use_sliding_window", False):
        read.require("layer_types", ["full_attention"] * read.whole("num_hidden_layers"))
        return (0,) * read.whole("num_hidden_layers")
    if family == "llama":
        read.require("sliding_window")
        return read.windows()
    first = 0 if family == "qwen3_moe" else read.whole("max_window_layers", 28)
    return read.windows(default=lambda layer: layer >= first)


def _experts(read: ConfigReader) -> int:
    """The count under its published name, or the one transformers 5 writes."""
    return read.whole("num_experts" if "num_experts" in read.config else "num_local_experts")


def _dense_layers(read: ConfigReader, layers: int) -> frozenset[int]:
    """Layers of a mixture model that keep a plain feed-forward."""
    step = read.whole("decoder_sparse_step", 1)
    named = set(read.config.get("mlp_only_layers") or [])
    return frozenset(i for i in range(layers) if i in named or (i + 1) % max(step, 1))


def build(config: Mapping[str, Any], dtype: torch.dtype) -> FamilyModel:
    """The model of ``config`` as a graph; ``dtype`` is that of its cache."""
    c = parse(config)
    return grouped_decoder(c, dtype, attention, feed_forward, block=c.block)


def attention(
    g: Graph, c: Decoder, name: str, layer: int, x: Value, cos: Value, sin: Value
) -> Value:
    """Grouped-query attention; every rank has its heads and their part of the cache."""
    s, width = c.heads, c.heads.heads * c.heads.size
    q, k, v = projected(g, c, name, x, bias=c.qkv_bias)
    if c.head_norms:
        q = g(HeadNorm(f"{name}.q_norm", s.heads, s.size, c.eps), q)
        k = g(HeadNorm(f"{name}.k_norm", s.kv_heads, s.size, c.eps), k)
    out = g(GroupedAttention(name, s, layer, window=c.windows[layer]), q, k, v, cos, sin)
    return g(RowLinear(f"{name}.o_proj", width, c.hidden, "attn_tp", bias=c.out_bias), out)


def feed_forward(g: Graph, c: Decoder, name: str, layer: int, x: Value) -> Value:
    """The gated feed-forward, or softmax-routed experts in its place."""
    name = f"{name}.mlp"
    if layer in c.dense_layers:
        return g(SwiGLU(name, c.hidden, c.inner, "dense_tp"), x)
    router = SoftmaxRouter(f"{name}.gate", c.hidden, c.experts, c.top_k, normalise=c.normalise)
    weights, chosen = g.apply(router, x)
    return g(Experts(f"{name}.experts", c.hidden, c.expert_inner, c.experts), x, weights, chosen)
