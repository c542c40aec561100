"""Norms and the residual addition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.graph import Compute, Elementwise, Signature
from baton_modeling.placements import REPLICATED, Resolved, Shard
from baton_modeling.weights import Weight


class NormWeight:
    """The weight of a norm. Zero-centred ones are stored less one, and applied in float32."""

    def __init__(self, name: str, size: int, zero_centred: bool) -> None:
        self.name, self.size, self.zero_centred = name, size, zero_centred

    def declared(self) -> Mapping[str, Weight]:
        wide = torch.float32 if self.zero_centred else None
        return {"weight": Weight.of(f"{self.name}.weight", self.size, dtype=wide)}

    def loaded(self, weights: Mapping[str, Tensor]) -> Tensor:
        return weights["weight"] + 1 if self.zero_centred else weights["weight"]


class RMSNorm(Elementwise):
    """Root-mean-square norm of each row; works on whole rows, of all tokens or of a shard."""

    def __init__(self, name: str, hidden: int, eps: float, *, zero_centred: bool = False) -> None:
        self.name, self.hidden, self.eps = name, hidden, eps
        self.weight = NormWeight(name, hidden, zero_centred)

    def signature(self) -> Signature:
        return Signature((REPLICATED,))

    def follow(self, offered: Sequence[Resolved]) -> Resolved | None:
        layout = offered[0]
        return layout if all(p == Shard(0) for p in layout.values()) else None

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def weights(self) -> Mapping[str, Weight]:
        return self.weight.declared()

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        norm = binding.operator(ops.rms_norm, hidden=self.hidden)
        weight, eps = self.weight.loaded(weights), self.eps
        return lambda step, x: norm(x, weight, eps)

    def bind_with_add(
        self, binding: Binding, weights: Mapping[str, Tensor]
    ) -> Callable[[Step, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The norm fused with the addition before it: (x, residual) -> (sum, its norm)."""
        norm = binding.operator(ops.add_rms_norm, hidden=self.hidden)
        weight, eps = self.weight.loaded(weights), self.eps
        return lambda step, x, residual: norm(x, residual, weight, eps)


class Add(Elementwise):
    """The sum of two values. Two partial sums stay partial: one reduction then serves both."""

    def __init__(self, name: str, hidden: int) -> None:
        self.name, self.hidden = name, hidden

    def signature(self) -> Signature:
        return Signature((REPLICATED, REPLICATED))

    def follow(self, offered: Sequence[Resolved]) -> Resolved | None:
        left, right = offered
        return left if dict(left) == dict(right) else None

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        return lambda step, left, right: left + right
