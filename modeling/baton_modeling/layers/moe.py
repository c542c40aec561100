"""Mixture of experts: routing and the experts themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.graph import Compute, Dispatch, Module, Signature
from baton_modeling.placements import REPLICATED, Partial, Shard
from baton_modeling.weights import Source, Weight


@dataclass(frozen=True)
class SigmoidRouting:
    """Parameters of group-limited sigmoid routing, named as in DeepSeek-V3's config."""

    experts: int
    top_k: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float


class SigmoidRouter(Module):
    """Chooses experts: [T, hidden] -> weights float32 [T, top_k], expert ids int64 [T, top_k]."""

    rowwise = True

    def __init__(
        self, name: str, hidden: int, routing: SigmoidRouting, bias: str | None = None
    ) -> None:
        self.name, self.hidden, self.routing = name, hidden, routing
        self.bias = bias or f"{name}.e_score_correction_bias"

    def signature(self) -> Signature:
        return Signature((REPLICATED,), (REPLICATED, REPLICATED))

    def features(self) -> tuple[int, ...]:
        return (self.routing.top_k, self.routing.top_k)

    def weights(self) -> Mapping[str, Weight]:
        # Routing is decided in float32: a rounded score picks another expert.
        experts, wide = self.routing.experts, torch.float32
        return {
            "gate": Weight.of(f"{self.name}.weight", experts, self.hidden, dtype=wide),
            "bias": Weight.of(self.bias, experts, dtype=wide),
        }

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear, torch.float32)
        route = binding.operator(ops.route_sigmoid, torch.float32, experts=self.routing.experts)
        gate, bias, r = weights["gate"], weights["bias"], self.routing

        def choose(step: Step, x: Tensor) -> tuple[Tensor, Tensor]:
            return route(
                linear(x.float(), gate, None),
                bias,
                r.top_k,
                r.n_group,
                r.topk_group,
                r.norm_topk_prob,
                r.routed_scaling_factor,
            )

        return choose


class SoftmaxRouter(Module):
    """The most probable experts: [T, hidden] -> weights float32, expert ids, both [T, top_k].

    groups, top_groups: only experts of the best groups are eligible. scale: of the weights. bias:
    the logits have one.
    """

    rowwise = True

    def __init__(
        self,
        name: str,
        hidden: int,
        experts: int,
        top_k: int,
        *,
        normalise: bool,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        bias: bool = False,
    ) -> None:
        self.name, self.hidden, self.experts, self.top_k = name, hidden, experts, top_k
        self.bias, self.choice = bias, (normalise, scale, groups, top_groups)

    def signature(self) -> Signature:
        return Signature((REPLICATED,), (REPLICATED, REPLICATED))

    def features(self) -> tuple[int, ...]:
        return (self.top_k, self.top_k)

    def weights(self) -> Mapping[str, Weight]:
        wide = torch.float32
        weights = {"gate": Weight.of(f"{self.name}.weight", self.experts, self.hidden, dtype=wide)}
        if self.bias:
            weights["bias"] = Weight.of(f"{self.name}.bias", self.experts, dtype=wide)
        return weights

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear = binding.operator(ops.linear, torch.float32)
        route = binding.operator(ops.route_softmax, torch.float32, experts=self.experts)
        gate, bias, top_k, choice = weights["gate"], weights.get("bias"), self.top_k, self.choice
        return lambda step, x: route(linear(x.float(), gate, bias), top_k, *choice)


class Experts(Module):
    """The routed experts: each rank holds some of them (ep), and of each a part (moe_tp)."""

    rowwise = True

    def __init__(
        self,
        name: str,
        hidden: int,
        inner: int,
        experts: int,
        parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        self.name, self.hidden, self.inner = name, hidden, inner
        self.experts, self.parts = experts, parts
        self.dispatch = Dispatch("ep", experts)

    def signature(self) -> Signature:
        inputs = (REPLICATED, REPLICATED, REPLICATED)
        return Signature(inputs, ({"ep": Partial(), "moe_tp": Partial()},))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def weights(self) -> Mapping[str, Weight]:
        gate, up, down = self.parts
        return {
            "gate_up": self._stack((self.inner, self.hidden), 0, "gate_up_proj", gate, up),
            "down": self._stack((self.hidden, self.inner), 1, "down_proj", down),
        }

    def _stack(self, shape: tuple[int, int], dim: int, fused: str, *parts: str) -> Weight:
        """Expert by expert, or all experts in one tensor, as transformers 5 keeps them."""
        groups = tuple(
            tuple(Source(f"{self.name}.{e}.{part}.weight", shape) for part in parts)
            for e in range(self.experts)
        )
        rows = shape[0]
        whole = (self.experts, rows * len(parts), shape[1])
        sources = tuple(
            Source(f"{self.name}.{fused}", whole, (1, i * rows, rows)) for i in range(len(parts))
        )
        cut = (("ep", Shard(0)), ("moe_tp", Shard(dim + 1)))
        together = Weight((sources,), cut, join=1)
        return Weight(
            groups, (("moe_tp", Shard(dim)),), stacked=True, stack_axis="ep", otherwise=together
        )

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        gate_up, down = weights["gate_up"], weights["down"]
        sizes = {"experts": len(gate_up), "hidden": self.hidden, "inner": down.shape[2]}
        many = binding.operator(ops.moe_experts, None, **sizes)
        few = binding.decoding(ops.moe_experts, None, **sizes)
        first = binding.mesh.axis("ep").coordinate(binding.mesh.rank) * len(gate_up)

        def compute(step: Step, x: Tensor, scales: Tensor, chosen: Tensor) -> Tensor:
            run = many if step.has_prefill else few
            return run(x, scales, chosen, gate_up, down, first)

        return compute
