"""Linear maps: whole, cut by output (column), cut by input (row)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.placements import REPLICATED, Partial, Shard
from baton_modeling.weights import Weight


class Linear(Module):
    """``y = x W^T + b`` computed whole on every rank."""

    rowwise = True

    def __init__(self, name: str, inputs: int, outputs: int, *, bias: bool = False) -> None:
        self.name, self.inputs, self.outputs, self.bias = name, inputs, outputs, bias

    def signature(self) -> Signature:
        return Signature((REPLICATED,))

    def features(self) -> tuple[int, ...]:
        return (self.outputs,)

    def shards(self) -> tuple[Mapping[str, Shard], Mapping[str, Shard]]:
        """How the weight and the bias are cut."""
        return {}, {}

    def weights(self) -> Mapping[str, Weight]:
        cut, bias_cut = self.shards()
        weights = {
            "weight": Weight.of(f"{self.name}.weight", self.outputs, self.inputs, shards=cut)
        }
        if self.bias:
            weights["bias"] = Weight.of(f"{self.name}.bias", self.outputs, shards=bias_cut)
        return weights

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear)
        weight, bias = weights["weight"], weights.get("bias")
        return lambda step, x: linear(x, weight, bias)


class ColumnLinear(Linear):
    """Every rank of ``axis`` computes its part of the outputs."""

    def __init__(
        self, name: str, inputs: int, outputs: int, axis: str, *, bias: bool = False
    ) -> None:
        super().__init__(name, inputs, outputs, bias=bias)
        self.axis = axis

    def signature(self) -> Signature:
        return Signature((REPLICATED,), ({self.axis: Shard(1)},))

    def shards(self) -> tuple[Mapping[str, Shard], Mapping[str, Shard]]:
        return {self.axis: Shard(0)}, {self.axis: Shard(0)}


class RowLinear(Linear):
    """Every rank of ``axis`` multiplies its part of the inputs: a partial sum."""

    def __init__(
        self, name: str, inputs: int, outputs: int, axis: str, *, bias: bool = False
    ) -> None:
        super().__init__(name, inputs, outputs, bias=bias)
        self.axis = axis

    def signature(self) -> Signature:
        return Signature(({self.axis: Shard(1)},), ({self.axis: Partial()},))

    def shards(self) -> tuple[Mapping[str, Shard], Mapping[str, Shard]]:
        return {self.axis: Shard(1)}, {}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        # The bias belongs to the sum once, so one rank of the axis adds it.
        first = binding.mesh.axis(self.axis).coordinate(binding.mesh.rank) == 0
        kept = {k: v for k, v in weights.items() if first or k != "bias"}
        return super().bind(binding, kept)


class JoinedLinear(Module):
    """Whole linear maps of one input in a single product.

    sources: (checkpoint name, outputs) of each map. splits: widths of this module's outputs over
    the joined product; a map may give several.
    """

    rowwise = True

    def __init__(
        self,
        name: str,
        inputs: int,
        sources: Sequence[tuple[str, int]],
        splits: Sequence[int],
        *,
        bias: bool = False,
    ) -> None:
        if sum(splits) != sum(size for _, size in sources):
            raise ValueError(f"{name}: outputs {list(splits)} do not add up to {list(sources)}")
        self.name, self.inputs, self.bias = name, inputs, bias
        self.sources, self.splits = tuple(sources), tuple(splits)

    def signature(self) -> Signature:
        return Signature((REPLICATED,), (REPLICATED,) * len(self.splits))

    def features(self) -> tuple[int, ...]:
        return self.splits

    def weights(self) -> Mapping[str, Weight]:
        weights = {
            "weight": Weight.joined(
                [(f"{n}.weight", (size, self.inputs)) for n, size in self.sources]
            )
        }
        if self.bias:
            weights["bias"] = Weight.joined([(f"{n}.bias", (size,)) for n, size in self.sources])
        return weights

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear)
        weight, bias = weights["weight"], weights.get("bias")
        splits = list(self.splits)
        return lambda step, x: torch.split(linear(x, weight, bias), splits, dim=1)


class JoinedColumnLinear(Module):
    """Column-cut linear maps of one input in a single product; one output each (q, k and v).

    sources: (checkpoint name, outputs) of each; a name that comes again is the same tensor, and its
    next rows are meant.
    """

    rowwise = True

    def __init__(
        self,
        name: str,
        inputs: int,
        sources: Sequence[tuple[str, int]],
        axis: str,
        *,
        bias: bool = False,
    ) -> None:
        self.name, self.inputs, self.axis, self.bias = name, inputs, axis, bias
        self.sources = tuple(sources)

    def signature(self) -> Signature:
        return Signature((REPLICATED,), ({self.axis: Shard(1)},) * len(self.sources))

    def features(self) -> tuple[int, ...]:
        return tuple(size for _, size in self.sources)

    def weights(self) -> Mapping[str, Weight]:
        cut = {self.axis: Shard(0)}
        shapes = [(f"{name}.weight", (size, self.inputs)) for name, size in self.sources]
        weights = {"weight": Weight.joined(shapes, shards=cut)}
        if self.bias:
            biases = [(f"{name}.bias", (size,)) for name, size in self.sources]
            weights["bias"] = Weight.joined(biases, shards=cut)
        return weights

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear)
        weight, bias = weights["weight"], weights.get("bias")
        splits = [binding.local(size, self.axis) for _, size in self.sources]
        return lambda step, x: torch.split(linear(x, weight, bias), splits, dim=1)


class GroupedColumnLinear(Module):
    """Linear maps stored together group by group, cut by groups; one output each.

    The checkpoint's weight has rows [groups, sum(parts)]: for every head, say, its query and then
    its gate. Output i is [T, groups * parts[i]].
    """

    rowwise = True

    def __init__(
        self, name: str, inputs: int, groups: int, parts: Sequence[int], axis: str
    ) -> None:
        self.name, self.inputs, self.axis = name, inputs, axis
        self.groups, self.parts = groups, tuple(parts)

    def signature(self) -> Signature:
        return Signature((REPLICATED,), ({self.axis: Shard(1)},) * len(self.parts))

    def features(self) -> tuple[int, ...]:
        return tuple(self.groups * part for part in self.parts)

    def weights(self) -> Mapping[str, Weight]:
        rows = self.groups * sum(self.parts)
        cut = {self.axis: Shard(0)}
        return {"weight": Weight.of(f"{self.name}.weight", rows, self.inputs, shards=cut)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear)
        groups = binding.local(self.groups, self.axis)
        stored = weights["weight"].view(groups, sum(self.parts), self.inputs)
        weight = torch.cat(
            [part.flatten(0, 1) for part in torch.split(stored, list(self.parts), 1)]
        )
        splits = [groups * part for part in self.parts]
        return lambda step, x: torch.split(linear(x, weight, None), splits, dim=1)


class SwiGLU(Module):
    """The gated feed-forward ``down(silu(gate(x)) * up(x))``, its inner dimension cut.

    scaled_by: a map of the input to one number, whose sigmoid scales the result (a shared expert).
    """

    rowwise = True

    def __init__(
        self, name: str, hidden: int, inner: int, axis: str, *, scaled_by: str | None = None
    ) -> None:
        self.name, self.hidden, self.inner, self.axis = name, hidden, inner, axis
        self.scaled_by = scaled_by

    def signature(self) -> Signature:
        return Signature((REPLICATED,), ({self.axis: Partial()},))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def weights(self) -> Mapping[str, Weight]:
        wide = (self.inner, self.hidden)
        scale = {"scale": Weight.of(f"{self.scaled_by}.weight", 1, self.hidden)}
        return {
            **(scale if self.scaled_by else {}),
            "gate_up": Weight.joined(
                [(f"{self.name}.gate_proj.weight", wide), (f"{self.name}.up_proj.weight", wide)],
                shards={self.axis: Shard(0)},
            ),
            "down": Weight.of(
                f"{self.name}.down_proj.weight",
                self.hidden,
                self.inner,
                shards={self.axis: Shard(1)},
            ),
        }

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear)
        silu_mul = binding.operator(ops.silu_mul)
        gate_up, down = weights["gate_up"], weights["down"]
        if self.scaled_by is None:
            return lambda step, x: linear(silu_mul(linear(x, gate_up)), down)
        scaled, scale = binding.operator(ops.sigmoid_mul), weights["scale"]
        return lambda step, x: scaled(
            linear(silu_mul(linear(x, gate_up)), down), linear(x, scale, None)
        )
