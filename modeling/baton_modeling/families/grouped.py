"""The pre-norm decoder of grouped-query families: what they have in common.

A family says how tokens are mixed and what follows; embedding, norms, residuals and head are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from baton_modeling.families.family import FamilyModel
from baton_modeling.graph import Graph, Value
from baton_modeling.layers.embedding import Embedding, OutputHead
from baton_modeling.layers.gqa import HeadShape, head_cache
from baton_modeling.layers.linear import JoinedColumnLinear
from baton_modeling.layers.norm import Add, RMSNorm
from baton_modeling.layers.rotary import Rope, RotaryTable


class Grouped(Protocol):
    """The fields of a family's config that the decoder needs."""

    @property
    def vocab(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> HeadShape: ...
    @property
    def rope(self) -> Rope: ...
    @property
    def eps(self) -> float: ...
    @property
    def tied(self) -> bool: ...


C = TypeVar("C", bound=Grouped)
# (graph, config, name of the module, layer, input, cos, sin) -> output
Attention = Callable[[Graph, C, str, int, Value, Value, Value], Value]
# (graph, config, name of the layer, layer, input) -> output
FeedForward = Callable[[Graph, C, str, int, Value], Value]


def grouped_decoder(
    c: C,
    dtype: torch.dtype,
    attention: Attention[C],
    feed_forward: FeedForward[C],
    *,
    skipped: tuple[str, ...] = (),
    block: tuple[int, int] | None = None,
) -> FamilyModel:
    """The model; ``dtype`` is that of its cache, ``skipped`` and ``block`` as in FamilyModel."""
    g = Graph()
    cos, sin = g.apply(RotaryTable("model.rotary", c.rope, c.heads.rotary))
    x = g(Embedding("model.embed_tokens", c.vocab, c.hidden))
    for layer in range(c.layers):
        name = f"model.layers.{layer}"
        h = g(RMSNorm(f"{name}.input_layernorm", c.hidden, c.eps), x)
        h = attention(g, c, f"{name}.self_attn", layer, h, cos, sin)
        x = g(Add(f"{name}.attention_residual", c.hidden), x, h)
        h = g(RMSNorm(f"{name}.post_attention_layernorm", c.hidden, c.eps), x)
        h = feed_forward(g, c, name, layer, h)
        x = g(Add(f"{name}.mlp_residual", c.hidden), x, h)
    x = g(RMSNorm("model.norm", c.hidden, c.eps), x)
    tied_to = "model.embed_tokens" if c.tied else None
    g.output(g(OutputHead("lm_head", c.hidden, c.vocab, tied_to), x))
    unused = (r".*\.rotary_emb\.inv_freq", *((r"lm_head\.weight",) if c.tied else ()))
    return FamilyModel(
        g, lambda mesh: head_cache(c.heads, c.layers, mesh, dtype), (*unused, *skipped), block
    )


def projected(
    g: Graph, c: Grouped, name: str, x: Value, *, bias: bool = False
) -> tuple[Value, Value, Value]:
    """Queries, keys and values of a layer's input, in one product."""
    s = c.heads
    sizes = (("q", s.heads * s.size), ("k", s.kv_heads * s.size), ("v", s.kv_heads * s.size))
    sources = [(f"{name}.{which}_proj", size) for which, size in sizes]
    q, k, v = g.apply(JoinedColumnLinear(f"{name}.qkv", c.hidden, sources, "attn_tp", bias=bias), x)
    return q, k, v
