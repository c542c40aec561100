"""DeepSeek-V3 (DeepSeek-AI, 2024): latent attention and group-routed experts.

Also Kimi K2, whose text model has this form with one expert group; Kimi K2.5, which wraps one in a
vision model that is not read; and DeepSeek-V2 (2024), whose experts are chosen by a softmax.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton_modeling.cache import CacheLayout, HeadBlock, entry_group
from baton_modeling.families.family import ConfigReader, Drafting, FamilyModel
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.draft import Concat, GivenHidden, KeepHidden
from baton_modeling.layers.embedding import Embedding, OutputHead
from baton_modeling.layers.linear import ColumnLinear, JoinedLinear, Linear, RowLinear, SwiGLU
from baton_modeling.layers.mla import LatentAttention, LatentShape
from baton_modeling.layers.moe import Experts, SigmoidRouter, SigmoidRouting, SoftmaxRouter
from baton_modeling.layers.norm import Add, RMSNorm
from baton_modeling.layers.rotary import Rope, RotaryTable, parse_rope, yarn_mscale
from baton_modeling.mesh import Mesh

# The norms inside attention keep this epsilon whatever the config says.
_LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class DeepseekV3:
    """A checked config. q_lora_rank 0: queries are projected directly.

    softmax: experts are scored by a softmax (V2) and not by sigmoids with a bias.
    prefix: of the names of all weights.
    """

    prefix: str
    vocab: int
    hidden: int
    layers: int
    dense_layers: int
    dense_inner: int
    expert_inner: int
    shared_experts: int
    routing: SigmoidRouting
    softmax: bool
    attention: LatentShape
    q_lora_rank: int
    attention_bias: bool
    rope: Rope
    interleaved: bool
    eps: float
    tied: bool
    block: tuple[int, int] | None
    draft_layers: int

    @property
    def root(self) -> str:
        """Where the layers are."""
        return f"{self.prefix}model"

    @property
    def embedding(self) -> Embedding:
        """The token embedding, the model's and the drafter's."""
        return Embedding(f"{self.root}.embed_tokens", self.vocab, self.hidden)

    @property
    def head(self) -> OutputHead:
        """The output head, the model's and the drafter's."""
        tied_to = f"{self.root}.embed_tokens" if self.tied else None
        return OutputHead(f"{self.prefix}lm_head", self.hidden, self.vocab, tied_to)

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(query size), sharpened by YaRN's temperature when positions are stretched."""
        scale = 1 / math.sqrt(self.attention.query)
        if self.rope.kind == "yarn" and self.rope.mscale_all_dim:
            scale *= yarn_mscale(self.rope.factor, self.rope.mscale_all_dim) ** 2
        return scale


def parse(config: Mapping[str, Any]) -> DeepseekV3:
    """Check ``config``; CheckpointError names the field whose value is not supported."""
    second = config["model_type"] == "deepseek_v2"
    read = ConfigReader(str(config["model_type"]), config)
    read.require("hidden_act", "silu")
    read.require("scoring_func", "softmax" if second else "sigmoid")
    read.require("topk_method", *(("greedy", "group_limited_greedy") if second else ("noaux_tc",)))
    read.require("moe_layer_freq", 1)
    read.require("mlp_bias", False)
    if second:  # whether the weights are then scaled as well is told differently by its sources
        read.require("norm_topk_prob", False)
    grouped = not second or config.get("topk_method") == "group_limited_greedy"
    heads = read.whole("num_attention_heads")
    read.require("num_key_value_heads", heads)
    routing = SigmoidRouting(
        read.whole("n_routed_experts"),
        read.whole("num_experts_per_tok"),
        read.whole("n_group", 1) if grouped else 1,
        read.whole("topk_group", 1) if grouped else 1,
        read.flag("norm_topk_prob", not second),
        read.number("routed_scaling_factor", 1.0),
    )
    rope = parse_rope(config)
    if rope.partial != 1.0:
        raise read.refusal("rope_parameters", "partial rotation is not supported")
    if routing.n_group > 1 and routing.experts < 2 * routing.n_group:
        raise read.refusal("n_group", "a group needs at least two experts to be scored")
    return DeepseekV3(
        prefix="language_model." if "text_config" in config else "",
        vocab=read.whole("vocab_size"),
        hidden=read.whole("hidden_size"),
        layers=read.whole("num_hidden_layers"),
        dense_layers=read.whole("first_k_dense_replace", 0),
        dense_inner=read.whole("intermediate_size"),
        expert_inner=read.whole("moe_intermediate_size"),
        shared_experts=read.whole("n_shared_experts", 0),
        routing=routing,
        softmax=second,
        attention=LatentShape(
            heads,
            read.whole("qk_nope_head_dim"),
            read.whole("qk_rope_head_dim"),
            read.whole("v_head_dim"),
            read.whole("kv_lora_rank"),
        ),
        q_lora_rank=read.whole("q_lora_rank", 0),
        attention_bias=read.flag("attention_bias", False),
        rope=rope,
        interleaved=read.flag("rope_interleave", True),
        eps=read.number("rms_norm_eps", 1e-6),
        tied=read.flag("tie_word_embeddings", False),
        block=read.quantisation(),
        draft_layers=0 if second else _draft_layers(read),
    )


def _draft_layers(read: ConfigReader) -> int:
    """The count under its published name, or the one transformers 5 knows it by."""
    return read.whole("num_nextn_predict_layers", read.whole("num_mtp_layers", 0))


def build(config: Mapping[str, Any], dtype: torch.dtype) -> FamilyModel:
    """The model of ``config`` as a graph; ``dtype`` is that of its cache."""
    c = parse(config)
    drafting = Drafting(
        model(c, drafting=True), drafter(c), lambda mesh: cache(c, mesh, dtype, 1), skipped(c, 1)
    )
    return FamilyModel(
        model(c),
        lambda mesh: cache(c, mesh, dtype),
        skipped(c),
        c.block,
        drafting if c.draft_layers else None,
    )


def model(c: DeepseekV3, *, drafting: bool = False) -> Graph:
    """The language model; for drafting it keeps its normed hidden states."""
    g = Graph()
    (cos, sin) = g.apply(RotaryTable(f"{c.root}.rotary", c.rope, c.attention.rope))
    x = g(c.embedding)
    for layer in range(c.layers):
        x = decoder(g, c, layer, x, cos, sin)
    x = g(RMSNorm(f"{c.root}.norm", c.hidden, c.eps), x)
    if drafting:
        x = g(KeepHidden(f"{c.root}.hidden", c.hidden), x)
    g.output(g(c.head, x))
    return g


def drafter(c: DeepseekV3) -> Graph:
    """Multi-token prediction (section 2.2): the next token's embedding beside the hidden state.

    Published checkpoints repeat the embedding and the head in this layer; the model's are used.
    """
    g, name = Graph(), f"{c.root}.layers.{c.layers}"
    (cos, sin) = g.apply(RotaryTable(f"{name}.rotary", c.rope, c.attention.rope))
    e = g(c.embedding)
    e = g(RMSNorm(f"{name}.enorm", c.hidden, c.eps), e)
    h = g(RMSNorm(f"{name}.hnorm", c.hidden, c.eps), g(GivenHidden(f"{name}.given", c.hidden)))
    x = g(Concat(f"{name}.concat", c.hidden, c.hidden), e, h)
    x = g(Linear(f"{name}.eh_proj", 2 * c.hidden, c.hidden), x)
    x = decoder(g, c, c.layers, x, cos, sin)
    x = g(RMSNorm(f"{name}.shared_head.norm", c.hidden, c.eps), x)
    g.output(g(c.head, g(KeepHidden(f"{name}.hidden", c.hidden), x)))
    return g


def decoder(g: Graph, c: DeepseekV3, layer: int, x: Value, cos: Value, sin: Value) -> Value:
    """One layer: latent attention, then the feed-forward or the experts."""
    name = f"{c.root}.layers.{layer}"
    h = g(RMSNorm(f"{name}.input_layernorm", c.hidden, c.eps), x)
    h = attention(g, c, f"{name}.self_attn", layer, h, cos, sin)
    x = g(Add(f"{name}.attention_residual", c.hidden), x, h)
    h = g(RMSNorm(f"{name}.post_attention_layernorm", c.hidden, c.eps), x)
    if layer < c.dense_layers:
        h = g(SwiGLU(f"{name}.mlp", c.hidden, c.dense_inner, "dense_tp"), h)
    else:
        h = mixture(g, c, f"{name}.mlp", h)
    return g(Add(f"{name}.mlp_residual", c.hidden), x, h)


def cache(c: DeepseekV3, mesh: Mesh, dtype: torch.dtype, drafting: int = 0) -> CacheLayout:
    """The latents, whole on every rank of a group that shares its requests."""
    latent, ranks = HeadBlock(1, c.attention.entry), mesh.axis("attn_tp").size
    return CacheLayout((entry_group("full", c.layers + drafting, (latent,), ranks, dtype),))


def attention(
    g: Graph, c: DeepseekV3, name: str, layer: int, x: Value, cos: Value, sin: Value
) -> Value:
    """Queries and the shared latent come from low-rank projections; only the latent is cached."""
    a, bias = c.attention, c.attention_bias
    kv_a, latent_sizes = (f"{name}.kv_a_proj_with_mqa", a.entry), (a.rank, a.rope)
    if c.q_lora_rank:
        q_a = (f"{name}.q_a_proj", c.q_lora_rank)
        down = JoinedLinear(
            f"{name}.qkv_a", c.hidden, [q_a, kv_a], (c.q_lora_rank, *latent_sizes), bias=bias
        )
        q, latent, key = g.apply(down, x)
        q = g(RMSNorm(f"{name}.q_a_layernorm", c.q_lora_rank, _LATENT_NORM_EPS), q)
        q = g(ColumnLinear(f"{name}.q_b_proj", c.q_lora_rank, a.heads * a.query, "attn_tp"), q)
    else:
        q = g(ColumnLinear(f"{name}.q_proj", c.hidden, a.heads * a.query, "attn_tp"), x)
        down = JoinedLinear(f"{name}.kv_a", c.hidden, [kv_a], latent_sizes, bias=bias)
        latent, key = g.apply(down, x)
    latent = g(RMSNorm(f"{name}.kv_a_layernorm", a.rank, _LATENT_NORM_EPS), latent)
    attend = LatentAttention(name, a, scale=c.softmax_scale, interleaved=c.interleaved, layer=layer)
    out = g(attend, q, latent, key, cos, sin)
    return g(RowLinear(f"{name}.o_proj", a.heads * a.value, c.hidden, "attn_tp", bias=bias), out)


def mixture(g: Graph, c: DeepseekV3, name: str, x: Value) -> Value:
    """Routed experts beside the shared one; both give partial sums, reduced together."""
    weights, chosen = g.apply(router(c, f"{name}.gate"), x)
    experts = Experts(f"{name}.experts", c.hidden, c.expert_inner, c.routing.experts)
    routed = g(experts, x, weights, chosen)
    if not c.shared_experts:
        return routed
    inner = c.expert_inner * c.shared_experts
    shared = g(SwiGLU(f"{name}.shared_experts", c.hidden, inner, "dense_tp"), x)
    return g(Add(f"{name}.sum", c.hidden), routed, shared)


def router(c: DeepseekV3, name: str) -> SigmoidRouter | SoftmaxRouter:
    """Both limit the choice to the best groups of experts."""
    r = c.routing
    if not c.softmax:
        return SigmoidRouter(name, c.hidden, r)
    return SoftmaxRouter(
        name,
        c.hidden,
        r.experts,
        r.top_k,
        normalise=r.norm_topk_prob,
        scale=r.routed_scaling_factor,
        groups=r.n_group,
        top_groups=r.topk_group,
    )


def skipped(c: DeepseekV3, drafting: int = 0) -> tuple[str, ...]:
    """Multi-token-prediction layers follow the main ones (they are for drafting), and buffers.

    Of a wrapper also the vision tower and what projects its output: they see no text.
    """
    unused = "|".join(str(c.layers + i) for i in range(drafting, 8))
    layers = rf"{re.escape(c.root)}\.layers\."
    shared = rf"{layers}{c.layers}\.(embed_tokens|shared_head\.head)\.weight"
    return (
        rf"{layers}({unused})\..*",
        r".*\.rotary_emb\.inv_freq",
        *((shared,) if drafting else ()),
        *((rf"{re.escape(c.prefix)}lm_head\.weight",) if c.tied else ()),
        *((r"(vision_tower|mm_projector)\..*",) if c.prefix else ()),
    )
