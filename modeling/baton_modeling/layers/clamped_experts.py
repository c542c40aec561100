"""gpt-oss's experts: biases, a clamped gate, all experts in one tensor, perhaps packed in MXFP4."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding, Step
from baton_modeling.graph import Compute, Dispatch, Module, Signature
from baton_modeling.layers.mxfp4 import BLOCK, unpacked
from baton_modeling.placements import REPLICATED, Partial, Shard
from baton_modeling.weights import Weight


class ClampedExperts(Module):
    """As layers.moe.Experts, with the gate of gpt-oss (model card, 2025, section 2.2).

    packed: the checkpoint stores the two projections in MXFP4. Stored plain they are
    [E, inputs, outputs], packed they are [E, outputs, inputs]; gate and up alternate.
    """

    rowwise = True

    def __init__(
        self,
        name: str,
        hidden: int,
        inner: int,
        experts: int,
        *,
        alpha: float,
        limit: float,
        packed: bool,
    ) -> None:
        self.name, self.hidden, self.inner, self.experts = name, hidden, inner, experts
        self.alpha, self.limit, self.packed = alpha, limit, packed
        self.dispatch = Dispatch("ep", experts)

    def signature(self) -> Signature:
        inputs = (REPLICATED, REPLICATED, REPLICATED)
        return Signature(inputs, ({"ep": Partial(), "moe_tp": Partial()},))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def weights(self) -> Mapping[str, Weight]:
        experts, hidden, inner = self.experts, self.hidden, self.inner

        def cut(name: str, *shape: int, inner_at: int | None, **kind: torch.dtype) -> Weight:
            shards = {"ep": Shard(0)}
            if inner_at is not None:
                shards["moe_tp"] = Shard(inner_at)
            return Weight.of(f"{self.name}.{name}", experts, *shape, shards=shards, **kind)

        biases = {
            "gate_up_bias": cut("gate_up_proj_bias", 2 * inner, inner_at=1),
            "down_bias": cut("down_proj_bias", hidden, inner_at=None),
        }
        if not self.packed:
            return {
                "gate_up": cut("gate_up_proj", hidden, 2 * inner, inner_at=2),
                "down": cut("down_proj", inner, hidden, inner_at=1),
                **biases,
            }
        wide, long, half, raw = hidden // BLOCK, inner // BLOCK, BLOCK // 2, torch.uint8
        return {
            "gate_up": cut("gate_up_proj_blocks", 2 * inner, wide, half, inner_at=1, dtype=raw),
            "gate_up_scales": cut("gate_up_proj_scales", 2 * inner, wide, inner_at=1, dtype=raw),
            "down": cut("down_proj_blocks", hidden, long, half, inner_at=2, dtype=raw),
            "down_scales": cut("down_proj_scales", hidden, long, inner_at=2, dtype=raw),
            **biases,
        }

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        if self.packed:
            gate_up = unpacked(weights["gate_up"], weights["gate_up_scales"], binding.dtype)
            down = unpacked(weights["down"], weights["down_scales"], binding.dtype)
        else:
            gate_up, down = weights["gate_up"].transpose(1, 2), weights["down"].transpose(1, 2)
        gate_up, down = _apart(gate_up), down.contiguous()
        gate_up_bias, down_bias = _apart(weights["gate_up_bias"]), weights["down_bias"]
        if binding.mesh.axis("moe_tp").coordinate(binding.mesh.rank) > 0:
            down_bias = torch.zeros_like(down_bias)  # it belongs to the sum once
        sizes = {"experts": len(gate_up), "hidden": self.hidden, "inner": down.shape[2]}
        many = binding.operator(ops.moe_experts_clamped, None, **sizes)
        few = binding.decoding(ops.moe_experts_clamped, None, **sizes)
        first = binding.mesh.axis("ep").coordinate(binding.mesh.rank) * len(gate_up)
        operands = (gate_up, gate_up_bias, down, down_bias, first, self.alpha, self.limit)

        def compute(step: Step, x: Tensor, scales: Tensor, chosen: Tensor) -> Tensor:
            return (many if step.has_prefill else few)(x, scales, chosen, *operands)

        return compute


def _apart(alternating: Tensor) -> Tensor:
    """[E, 2 I, ...] with gate and up in turn -> gates first, then the ups."""
    return torch.cat([alternating[:, 0::2], alternating[:, 1::2]], 1)
