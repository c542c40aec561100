"""Gated DeltaNet (Yang et al., 2024): linear attention with a state of fixed size per request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.cache import CacheGroup, GroupKind, HeadBlock
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.mesh import Mesh
from baton_modeling.placements import OWN_TOKENS, Shard
from baton_modeling.weights import Weight


@dataclass(frozen=True)
class DeltaShape:
    """Heads of queries and keys, heads of values, elements per head, and taps of the convolution.

    Each query/key head serves value_heads / key_heads value heads.
    """

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    taps: int

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_size

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_size

    @property
    def state(self) -> tuple[HeadBlock, ...]:
        """A layer's snapshot: the convolution's last inputs of every channel (queries, keys,
        values), then every head's matrix."""
        past = self.taps - 1
        keys = HeadBlock(self.key_heads, self.key_size * past)
        values = HeadBlock(self.value_heads, self.value_size * past)
        return keys, keys, values, HeadBlock(self.value_heads, self.key_size * self.value_size)


def state_group(shape: DeltaShape, layers: int, mesh: Mesh) -> CacheGroup:
    """The states of ``layers`` layers on one rank; float32, since rounding adds up."""
    ranks = mesh.axis("attn_tp").size
    return CacheGroup("state", layers, shape.state, torch.float32, ranks, GroupKind.STATE)


class GatedDelta(Module):
    """Short convolution and gated delta rule over the request's state, heads cut over the axis.

    Inputs: queries, keys, values, step-size logits b and decay logits a, one of the last two per
    value head. Output [T, value_heads * value_size]. The state is read from and written to the
    slots that the batch names.
    """

    def __init__(
        self, name: str, shape: DeltaShape, layer: int, group: str = "state", axis: str = "attn_tp"
    ) -> None:
        self.name, self.shape, self.layer, self.group, self.axis = name, shape, layer, group, axis

    def signature(self) -> Signature:
        heads = {self.axis: Shard(1), **OWN_TOKENS}
        return Signature((heads,) * 5, (heads,))

    def features(self) -> tuple[int, ...]:
        return (self.shape.value_width,)

    def weights(self) -> Mapping[str, Weight]:
        s, cut, wide = self.shape, {self.axis: Shard(0)}, torch.float32
        channels = (s.key_width, s.key_width, s.value_width)
        conv = [(f"{self.name}.conv1d.weight", (width, 1, s.taps)) for width in channels]
        return {
            "conv": Weight.joined(conv, shards=cut),
            "a_log": Weight.of(f"{self.name}.A_log", s.value_heads, shards=cut, dtype=wide),
            "dt_bias": Weight.of(f"{self.name}.dt_bias", s.value_heads, shards=cut, dtype=wide),
        }

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        s = self.shape
        key_heads = binding.local(s.key_heads, self.axis)
        value_heads = binding.local(s.value_heads, self.axis)
        widths = [key_heads * s.key_size, key_heads * s.key_size, value_heads * s.value_size]
        cache = binding.cache(self.group, self.layer)
        conv, a_log, dt_bias = weights["conv"].squeeze(1), weights["a_log"], weights["dt_bias"]
        past = len(conv) * (s.taps - 1)
        sizes = {"key_size": s.key_size, "value_size": s.value_size, "value_heads": value_heads}
        gates = binding.operator(ops.delta_gates)
        convolve_one = binding.decoding(ops.conv_decode, taps=s.taps)
        convolve_chunk = binding.operator(ops.conv_prefill, taps=s.taps)
        update_one = binding.decoding(ops.delta_decode, None, **sizes)
        update_chunk = binding.operator(ops.delta_prefill, None, **sizes)

        def run(step: Step, x: Tensor, a: Tensor, b: Tensor, *, decoding: bool) -> Tensor:
            rows = step.decode_states if decoding else step.prefill_states
            convolve = convolve_one if decoding else convolve_chunk
            update = update_one if decoding else update_chunk
            state = cache.tensor[:, 0]
            inputs = state[:, :past].view(-1, len(conv), s.taps - 1)
            matrices = state[:, past:].view(-1, value_heads, s.key_size, s.value_size)
            # float32 from here to the output's norm: what is rounded here, states keep.
            q, k, v = torch.split(convolve(x.float(), conv, inputs, rows), widths, 1)
            return update(
                q.view(-1, key_heads, s.key_size),
                k.view(-1, key_heads, s.key_size),
                v.view(-1, value_heads, s.value_size),
                *gates(a, b, a_log, dt_bias),
                matrices,
                rows,
            ).flatten(1)

        def mix(step: Step, q: Tensor, k: Tensor, v: Tensor, b: Tensor, a: Tensor) -> Tensor:
            x, n = torch.cat([q, k, v], 1), step.decode_rows
            if n == 0 or not step.has_prefill:
                return run(step, x, a, b, decoding=n > 0)
            ones = run(step, x[:n], a[:n], b[:n], decoding=True)
            return torch.cat([ones, run(step, x[n:], a[n:], b[n:], decoding=False)])

        return mix


class GatedHeadNorm(Module):
    """Root-mean-square norm of every head, times ``silu`` of its gate; one weight for all heads."""

    rowwise = True

    def __init__(self, name: str, heads: int, size: int, eps: float, axis: str = "attn_tp") -> None:
        self.name, self.heads, self.size, self.eps, self.axis = name, heads, size, eps, axis

    def signature(self) -> Signature:
        heads = {self.axis: Shard(1)}
        return Signature((heads, heads), (heads,))

    def features(self) -> tuple[int, ...]:
        return (self.heads * self.size,)

    def weights(self) -> Mapping[str, Weight]:
        return {"weight": Weight.of(f"{self.name}.weight", self.size)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        norm = binding.operator(ops.gated_rms_norm, hidden=self.size)
        weight, eps, size = weights["weight"], self.eps, self.size
        heads = binding.local(self.heads, self.axis)
        return lambda step, x, gate: norm(
            x.reshape(-1, heads, size), gate.reshape(-1, heads, size), weight, eps
        ).flatten(1)
