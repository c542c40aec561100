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
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.embedding import Embedding, OutputHead
from baton_modeling.layers.gqa import GroupedAttention, HeadNorm, HeadShape, head_cache
from baton_modeling.layers.linear import JoinedColumnLinear, RowLinear, SwiGLU
from baton_modeling.layers.moe import Experts, SoftmaxRouter
from baton_modeling.layers.norm import Add, RMSNorm
from baton_modeling.layers.rotary import Rope, RotaryTable, parse_rope


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
    g = Graph()
    cos, sin = g.apply(RotaryTable("model.rotary", c.rope, c.heads.rotary))
    x = g(Embedding("model.embed_tokens", c.vocab, c.hidden))
    for layer in range(c.layers):
        name = f"model.layers.{layer}"
        h = g(RMSNorm(f"{name}.input_layernorm", c.hidden, c.eps), x)
        h = attention(g, c, f"{name}.self_attn", layer, h, cos, sin)
        x = g(Add(f"{name}.attention_residual", c.hidden), x, h)
        h = g(RMSNorm(f"{name}.post_attention_layernorm", c.hidden, c.eps), x)
        if layer in c.dense_layers:
            h = g(SwiGLU(f"{name}.mlp", c.hidden, c.inner, "dense_tp"), h)
        else:
            h = mixture(g, c, f"{name}.mlp", h)
        x = g(Add(f"{name}.mlp_residual", c.hidden), x, h)
    x = g(RMSNorm("model.norm", c.hidden, c.eps), x)
    g.output(
        g(OutputHead("lm_head", c.hidden, c.vocab, "model.embed_tokens" if c.tied else None), x)
    )
    skipped = (r".*\.rotary_emb\.inv_freq", *((r"lm_head\.weight",) if c.tied else ()))
    return FamilyModel(g, lambda mesh: head_cache(c.heads, c.layers, mesh, dtype), skipped, c.block)


def attention(
    g: Graph, c: Decoder, name: str, layer: int, x: Value, cos: Value, sin: Value
) -> Value:
    """Grouped-query attention; every rank has its heads and their part of the cache."""
    s = c.heads
    sizes = (("q", s.heads * s.size), ("k", s.kv_heads * s.size), ("v", s.kv_heads * s.size))
    sources = [(f"{name}.{which}_proj", size) for which, size in sizes]
    project = JoinedColumnLinear(f"{name}.qkv", c.hidden, sources, "attn_tp", bias=c.qkv_bias)
    q, k, v = g.apply(project, x)
    if c.head_norms:
        q = g(HeadNorm(f"{name}.q_norm", s.heads, s.size, c.eps), q)
        k = g(HeadNorm(f"{name}.k_norm", s.kv_heads, s.size, c.eps), k)
    attend = GroupedAttention(name, s, layer, window=c.windows[layer])
    out = g(attend, q, k, v, cos, sin)
    width = s.heads * s.size
    return g(RowLinear(f"{name}.o_proj", width, c.hidden, "attn_tp", bias=c.out_bias), out)


def mixture(g: Graph, c: Decoder, name: str, x: Value) -> Value:
    """Softmax-routed experts."""
    router = SoftmaxRouter(f"{name}.gate", c.hidden, c.experts, c.top_k, normalise=c.normalise)
    weights, chosen = g.apply(router, x)
    return g(Experts(f"{name}.experts", c.hidden, c.expert_inner, c.experts), x, weights, chosen)
