"""Grouped-query attention over the paged cache, and the norm of its heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.cache import CacheGroup, CacheLayout, HeadBlock, entry_group
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.layers.norm import NormWeight
from baton_modeling.mesh import Mesh
from baton_modeling.placements import OWN_TOKENS, Shard
from baton_modeling.weights import Weight, even_slice


@dataclass(frozen=True)
class HeadShape:
    """Query heads, key/value heads, elements per head, and how many of them are rotated."""

    heads: int
    kv_heads: int
    size: int
    rotary: int


def head_cache(shape: HeadShape, layers: int, mesh: Mesh, dtype: torch.dtype) -> CacheLayout:
    """The cache of ``layers`` layers on one rank: keys and values of its heads, one group."""
    return CacheLayout((head_group(shape, layers, mesh, dtype),))


def head_group(shape: HeadShape, layers: int, mesh: Mesh, dtype: torch.dtype) -> CacheGroup:
    """The group of attention layers among others."""
    ranks = mesh.axis("attn_tp").size
    even_slice(shape.kv_heads, "attn_tp", mesh, "attention", "the number of key/value heads")
    heads = HeadBlock(shape.kv_heads, shape.size)
    return entry_group("full", layers, (heads, heads), ranks, dtype)


class HeadNorm(Module):
    """Root-mean-square norm of every head on its own, one weight for all heads."""

    rowwise = True

    def __init__(
        self,
        name: str,
        heads: int,
        size: int,
        eps: float,
        axis: str = "attn_tp",
        *,
        zero_centred: bool = False,
    ) -> None:
        self.name, self.heads, self.size, self.eps, self.axis = name, heads, size, eps, axis
        self.weight = NormWeight(name, size, zero_centred)

    def signature(self) -> Signature:
        return Signature(({self.axis: Shard(1)},), ({self.axis: Shard(1)},))

    def features(self) -> tuple[int, ...]:
        return (self.heads * self.size,)

    def weights(self) -> Mapping[str, Weight]:
        return self.weight.declared()

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        norm = binding.operator(ops.rms_norm, hidden=self.size)
        weight, eps, size = self.weight.loaded(weights), self.eps, self.size
        heads = binding.local(self.heads, self.axis)
        return lambda step, x: norm(x.reshape(-1, heads, size), weight, eps).flatten(1)


class SigmoidGate(Module):
    """``x * sigmoid(gate)``, both cut by heads: attention with an output gate."""

    rowwise = True

    def __init__(self, name: str, width: int, axis: str = "attn_tp") -> None:
        self.name, self.width, self.axis = name, width, axis

    def signature(self) -> Signature:
        heads = {self.axis: Shard(1)}
        return Signature((heads, heads), (heads,))

    def features(self) -> tuple[int, ...]:
        return (self.width,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        gated = binding.operator(ops.sigmoid_mul)
        return lambda step, x, gate: gated(x, gate)


class GroupedAttention(Module):
    """Attention of queries, keys and values [T, heads * size], heads cut over the axis.

    Rotates queries and keys, stores keys and values, and attends: decode rows and prompt chunks
    each with their kernel. window: tokens a query sees, itself included; 0 is all of them (the
    cache keeps all of them either way). sinks: each head has a score without a value.
    """

    def __init__(
        self,
        name: str,
        shape: HeadShape,
        layer: int,
        group: str = "full",
        axis: str = "attn_tp",
        *,
        window: int = 0,
        sinks: bool = False,
    ) -> None:
        self.name, self.shape, self.layer, self.group, self.axis = name, shape, layer, group, axis
        self.window, self.sinks = window, sinks

    def signature(self) -> Signature:
        heads = {self.axis: Shard(1), **OWN_TOKENS}
        return Signature((heads, heads, heads, OWN_TOKENS, OWN_TOKENS), (heads,))

    def features(self) -> tuple[int, ...]:
        return (self.shape.heads * self.shape.size,)

    def weights(self) -> Mapping[str, Weight]:
        if not self.sinks:
            return {}
        cut, wide = {self.axis: Shard(0)}, torch.float32
        return {"sinks": Weight.of(f"{self.name}.sinks", self.shape.heads, shards=cut, dtype=wide)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        size, rotary = self.shape.size, self.shape.rotary
        heads = binding.local(self.shape.heads, self.axis)
        kv_heads = binding.local(self.shape.kv_heads, self.axis)
        scale = 1 / math.sqrt(size)
        limits = (kv_heads, scale, self.window, weights.get("sinks"))
        cache = binding.cache(self.group, self.layer)
        sizes = {"heads": heads, "kv_heads": kv_heads, "head_size": size}
        sizes |= {"window": self.window, "sinks": int(self.sinks)}
        sizes |= {"converts": int(binding.converts_cache)}
        rotate = binding.operator(ops.rotate)
        write = binding.cache_write((kv_heads * size, kv_heads * size))
        attend_one = binding.decoding(ops.gqa_decode, None, **sizes)
        attend_chunk = binding.operator(ops.gqa_prefill, None, **sizes)

        def attend(step: Step, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            both = torch.cat([q, k], 1).view(-1, heads + kv_heads, size)
            turned = rotate(both[..., :rotary], cos, sin, False)
            if rotary < size:
                turned = torch.cat([turned, both[..., rotary:]], -1)
            queries, keys = torch.split(turned, [heads, kv_heads], dim=1)
            entries = torch.cat([keys.flatten(1), v], 1)
            write(cache.tensor, entries, step.write_pages, step.write_offsets)
            n = step.decode_rows
            if not step.has_prefill:
                return attend_one(queries, cache.tensor, step.decode, *limits).flatten(1)
            chunk = attend_chunk(queries[n:], cache.tensor, step.prefill, *limits)
            if n == 0:
                return chunk.flatten(1)
            ones = attend_one(queries[:n], cache.tensor, step.decode, *limits)
            return torch.cat([ones, chunk]).flatten(1)

        return attend
