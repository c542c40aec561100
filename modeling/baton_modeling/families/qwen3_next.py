"""Qwen3-Next (Qwen, 2025) and Qwen3.5: three layers of Gated DeltaNet to one of gated attention.

Attention has an output gate, norms have zero-centred weights, and the mixture has a shared expert
behind a gate of its own. Qwen3.5 stores the delta layers' projections one by one where Qwen3-Next
joins them head by head, and its published checkpoints wrap the language model in a vision model,
of which only the language model is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton_modeling.cache import CacheLayout
from baton_modeling.families.family import ConfigReader, Drafting, FamilyModel
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.draft import Concat, GivenHidden, KeepHidden
from baton_modeling.layers.embedding import Embedding, OutputHead
from baton_modeling.layers.gdn import DeltaShape, GatedDelta, GatedHeadNorm, state_group
from baton_modeling.layers.gqa import (
    GroupedAttention,
    HeadNorm,
    HeadShape,
    SigmoidGate,
    head_group,
)
from baton_modeling.layers.linear import (
    GroupedColumnLinear,
    JoinedColumnLinear,
    Linear,
    RowLinear,
    SwiGLU,
)
from baton_modeling.layers.moe import Experts, SoftmaxRouter
from baton_modeling.layers.norm import Add, RMSNorm
from baton_modeling.layers.rotary import Rope, RotaryTable, parse_rope
from baton_modeling.mesh import Mesh

FULL, LINEAR = "full_attention", "linear_attention"
# Where all three coordinates of a position are the same, as in text, these change nothing.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")


@dataclass(frozen=True)
class Mixture:
    """Routed experts and the shared one."""

    experts: int
    top_k: int
    normalise: bool
    inner: int
    shared_inner: int


@dataclass(frozen=True)
class Hybrid:
    """A checked config.

    root: where the language model's weights are. kinds: FULL or LINEAR, of each layer.
    mixtures: what is in place of the feed-forward, by layer; None keeps it.
    joined: queries, keys, values and gates of the delta layers are stored head by head.
    """

    root: str
    vocab: int
    hidden: int
    kinds: tuple[str, ...]
    heads: HeadShape
    delta: DeltaShape
    inner: int
    mixtures: tuple[Mixture | None, ...]
    joined: bool
    rope: Rope
    eps: float
    tied: bool
    block: tuple[int, int] | None
    draft_layers: int

    @property
    def head(self) -> OutputHead:
        """The output head, the model's and the drafter's."""
        tied_to = f"{self.root}.embed_tokens" if self.tied else None
        return OutputHead("lm_head", self.hidden, self.vocab, tied_to)

    def norm(self, name: str) -> RMSNorm:
        """A norm of the residual stream."""
        return RMSNorm(name, self.hidden, self.eps, zero_centred=True)


def parse(config: Mapping[str, Any]) -> Hybrid:
    """Check ``config``; CheckpointError names the field whose value is not supported."""
    family = str(config["model_type"])
    read = ConfigReader(family, config)
    read.require("hidden_act", "silu")
    read.require("attention_bias", False)
    size = read.whole("head_dim", 256)
    rope = parse_rope(config, partial=0.25, without_meaning=_OF_IMAGES)
    delta = DeltaShape(
        read.whole("linear_num_key_heads"),
        read.whole("linear_num_value_heads"),
        read.whole("linear_key_head_dim"),
        read.whole("linear_value_head_dim"),
        read.whole("linear_conv_kernel_dim"),
    )
    if delta.value_heads % delta.key_heads:
        raise read.refusal("linear_num_value_heads", f"a multiple of {delta.key_heads} is needed")
    layers = read.whole("num_hidden_layers")
    dense = "num_experts" not in config
    return Hybrid(
        root="model.language_model" if "text_config" in config else "model",
        vocab=read.whole("vocab_size"),
        hidden=read.whole("hidden_size"),
        kinds=_kinds(read, layers),
        heads=HeadShape(
            read.whole("num_attention_heads"),
            read.whole("num_key_value_heads"),
            size,
            int(size * rope.partial),
        ),
        delta=delta,
        inner=read.whole("intermediate_size", None if dense else 0),
        mixtures=(None,) * layers if dense else _mixtures(read, layers),
        joined=family == "qwen3_next",
        rope=rope,
        eps=read.number("rms_norm_eps", 1e-6),
        tied=read.flag("tie_word_embeddings", False),
        block=read.quantisation(),
        draft_layers=read.whole("mtp_num_hidden_layers", 1),
    )


def _kinds(read: ConfigReader, layers: int) -> tuple[str, ...]:
    """What mixes tokens in each layer, listed or every so many."""
    interval = read.whole("full_attention_interval", 4)
    kinds = read.config.get("layer_types") or [
        LINEAR if (layer + 1) % interval else FULL for layer in range(layers)
    ]
    if len(kinds) != layers or not {FULL, LINEAR}.issuperset(kinds):
        raise read.refusal("layer_types", f"{layers} of {FULL} and {LINEAR} are needed")
    return tuple(kinds)


def _mixtures(read: ConfigReader, layers: int) -> tuple[Mixture | None, ...]:
    """Every layer of a mixture model has experts but those that are named or skipped."""
    mixture = Mixture(
        read.whole("num_experts"),
        read.whole("num_experts_per_tok"),
        read.flag("norm_topk_prob", True),
        read.whole("moe_intermediate_size"),
        read.whole("shared_expert_intermediate_size"),
    )
    plain = set(read.config.get("mlp_only_layers") or ())
    step = max(1, read.whole("decoder_sparse_step", 1))
    return tuple(None if i in plain or (i + 1) % step else mixture for i in range(layers))


def build(config: Mapping[str, Any], dtype: torch.dtype) -> FamilyModel:
    """The model of ``config`` as a graph; ``dtype`` is that of its keys and values."""
    c = parse(config)
    skipped = (r"model\.visual\..*", *((r"lm_head\.weight",) if c.tied else ()))
    drafting = Drafting(
        model(c, drafting=True), drafter(c), lambda mesh: cache(c, mesh, dtype, 1), skipped
    )
    return FamilyModel(
        model(c),
        lambda mesh: cache(c, mesh, dtype),
        (r"mtp\..*", *skipped),
        c.block,
        drafting if c.draft_layers == 1 else None,
    )


def model(c: Hybrid, *, drafting: bool = False) -> Graph:
    """The language model; for drafting it keeps its normed hidden states."""
    g = Graph()
    cos, sin = g.apply(RotaryTable(f"{c.root}.rotary", c.rope, c.heads.rotary))
    x = g(Embedding(f"{c.root}.embed_tokens", c.vocab, c.hidden))
    for layer, kind in enumerate(c.kinds):
        place = c.kinds[:layer].count(kind)  # in its own cache group
        mixture = c.mixtures[layer]
        x = decoder(g, c, f"{c.root}.layers.{layer}", kind, place, mixture, x, cos, sin)
    x = g(c.norm(f"{c.root}.norm"), x)
    if drafting:
        x = g(KeepHidden(f"{c.root}.hidden", c.hidden), x)
    g.output(g(c.head, x))
    return g


def drafter(c: Hybrid) -> Graph:
    """The next token's embedding beside the model's hidden state, through one attention layer."""
    g = Graph()
    cos, sin = g.apply(RotaryTable("mtp.rotary", c.rope, c.heads.rotary))
    e = g(Embedding(f"{c.root}.embed_tokens", c.vocab, c.hidden))
    e = g(c.norm("mtp.pre_fc_norm_embedding"), e)
    h = g(c.norm("mtp.pre_fc_norm_hidden"), g(GivenHidden("mtp.given", c.hidden)))
    x = g(Concat("mtp.concat", c.hidden, c.hidden), e, h)
    x = g(Linear("mtp.fc", 2 * c.hidden, c.hidden), x)
    place, mixture = c.kinds.count(FULL), c.mixtures[-1]
    x = decoder(g, c, "mtp.layers.0", FULL, place, mixture, x, cos, sin)
    x = g(KeepHidden("mtp.hidden", c.hidden), g(c.norm("mtp.norm"), x))
    g.output(g(c.head, x))
    return g


def decoder(
    g: Graph,
    c: Hybrid,
    name: str,
    kind: str,
    place: int,
    mixture: Mixture | None,
    x: Value,
    cos: Value,
    sin: Value,
) -> Value:
    """One layer: what mixes tokens, then the feed-forward or the experts."""
    h = g(c.norm(f"{name}.input_layernorm"), x)
    if kind == FULL:
        h = attention(g, c, f"{name}.self_attn", place, h, cos, sin)
    else:
        h = delta_net(g, c, f"{name}.linear_attn", place, h)
    x = g(Add(f"{name}.attention_residual", c.hidden), x, h)
    h = g(c.norm(f"{name}.post_attention_layernorm"), x)
    if mixture is None:
        h = g(SwiGLU(f"{name}.mlp", c.hidden, c.inner, "dense_tp"), h)
    else:
        h = experts(g, c, mixture, f"{name}.mlp", h)
    return g(Add(f"{name}.mlp_residual", c.hidden), x, h)


def attention(
    g: Graph, c: Hybrid, name: str, place: int, x: Value, cos: Value, sin: Value
) -> Value:
    """Grouped-query attention; every head's output is gated by a map of the input."""
    s, width = c.heads, c.heads.heads * c.heads.size
    both = GroupedColumnLinear(f"{name}.q_proj", c.hidden, s.heads, (s.size, s.size), "attn_tp")
    q, gate = g.apply(both, x)
    sources = [(f"{name}.{which}_proj", s.kv_heads * s.size) for which in "kv"]
    k, v = g.apply(JoinedColumnLinear(f"{name}.kv", c.hidden, sources, "attn_tp"), x)
    q = g(HeadNorm(f"{name}.q_norm", s.heads, s.size, c.eps, zero_centred=True), q)
    k = g(HeadNorm(f"{name}.k_norm", s.kv_heads, s.size, c.eps, zero_centred=True), k)
    out = g(GroupedAttention(name, s, place), q, k, v, cos, sin)
    out = g(SigmoidGate(f"{name}.gate", width), out, gate)
    return g(RowLinear(f"{name}.o_proj", width, c.hidden, "attn_tp"), out)


def delta_net(g: Graph, c: Hybrid, name: str, place: int, x: Value) -> Value:
    """Gated DeltaNet: z gates the output, a decays the state, b says how far it is corrected."""
    s = c.delta
    if c.joined:
        heads = s.value_heads // s.key_heads
        sizes = (s.key_size, s.key_size, heads * s.value_size, heads * s.value_size)
        wide, narrow = f"{name}.in_proj_qkvz", f"{name}.in_proj_ba"
        project = GroupedColumnLinear(wide, c.hidden, s.key_heads, sizes, "attn_tp")
        q, k, v, z = g.apply(project, x)
        b, a = g.apply(
            GroupedColumnLinear(narrow, c.hidden, s.key_heads, (heads, heads), "attn_tp"), x
        )
    else:
        parts = (
            ("qkv", s.key_width),
            ("qkv", s.key_width),
            ("qkv", s.value_width),
            ("z", s.value_width),
            ("b", s.value_heads),
            ("a", s.value_heads),
        )
        sources = [(f"{name}.in_proj_{part}", width) for part, width in parts]
        q, k, v, z, b, a = g.apply(
            JoinedColumnLinear(f"{name}.in_proj", c.hidden, sources, "attn_tp"), x
        )
    out = g(GatedDelta(name, s, place), q, k, v, b, a)
    out = g(GatedHeadNorm(f"{name}.norm", s.value_heads, s.value_size, c.eps), out, z)
    return g(RowLinear(f"{name}.out_proj", s.value_width, c.hidden, "attn_tp"), out)


def experts(g: Graph, c: Hybrid, m: Mixture, name: str, x: Value) -> Value:
    """Softmax-routed experts beside a shared one that its own gate scales."""
    router = SoftmaxRouter(f"{name}.gate", c.hidden, m.experts, m.top_k, normalise=m.normalise)
    weights, chosen = g.apply(router, x)
    routed = g(Experts(f"{name}.experts", c.hidden, m.inner, m.experts), x, weights, chosen)
    scale = f"{name}.shared_expert_gate"
    shared = SwiGLU(f"{name}.shared_expert", c.hidden, m.shared_inner, "dense_tp", scaled_by=scale)
    return g(Add(f"{name}.sum", c.hidden), routed, g(shared, x))


def cache(c: Hybrid, mesh: Mesh, dtype: torch.dtype, drafting: int = 0) -> CacheLayout:
    """Keys and values of the attention layers, states of the others: of this rank's heads."""
    full, linear = c.kinds.count(FULL) + drafting, c.kinds.count(LINEAR)
    return CacheLayout((head_group(c.heads, full, mesh, dtype), state_group(c.delta, linear, mesh)))
