"""Rotary position embeddings: the frequencies a config asks for, and the step's cos and sin."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding
from baton_modeling.description import CheckpointError
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.placements import OWN_TOKENS


@dataclass(frozen=True)
class Rope:
    """Rotary parameters, from ``rope_parameters`` or from ``rope_theta`` and ``rope_scaling``.

    kind: ``default``, ``linear``, ``yarn`` or ``llama3``; the fields they use have their names in
    configs.
    partial: part of each head that is rotated.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    partial: float = 1.0


_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "partial_rotary_factor",
    "low_freq_factor",
    "high_freq_factor",
}


def parse_rope(
    config: Mapping[str, Any], partial: float = 1.0, without_meaning: Collection[str] = ()
) -> Rope:
    """Rotary parameters of a config in the published or in transformers 5's form.

    partial: part of a head that is rotated when the config does not say.
    without_meaning: fields that change nothing where this model is used.
    Raises CheckpointError naming the kind or field that is not supported.
    """
    fields = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(fields.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = fields.get("rope_type") or fields.get("type") or "default"
    unknown = sorted(set(fields) - _KNOWN - set(without_meaning))
    if unknown:
        raise CheckpointError(f"rope parameters {', '.join(unknown)} are not supported")
    stated = fields.get("partial_rotary_factor") or config.get("partial_rotary_factor")
    partial = float(stated or partial)
    if kind in ("default", "dynamic"):
        # Dynamic NTK only changes positions past max_position_embeddings, which are not served.
        return Rope(theta, partial=partial)
    if kind not in ("linear", "yarn", "llama3"):
        raise CheckpointError(
            f"rope type {kind!r} is not supported; default, linear, dynamic, yarn and llama3 are"
        )
    if kind == "linear" and not fields.get("factor"):
        raise CheckpointError("rope type 'linear' needs a factor, and there is none")
    original = int(
        fields.get("original_max_position_embeddings") or config["max_position_embeddings"]
    )
    factor = fields.get("factor")
    return Rope(
        theta,
        kind,
        float(config["max_position_embeddings"] / original if factor is None else factor),
        original,
        float(fields.get("beta_fast") or 32.0),
        float(fields.get("beta_slow") or 1.0),
        fields.get("mscale"),
        fields.get("mscale_all_dim"),
        fields.get("attention_factor"),
        bool(fields.get("truncate", True)),
        float(fields.get("low_freq_factor") or 1.0),
        float(fields.get("high_freq_factor") or 4.0),
        partial,
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature (Peng et al., 2023, section 3.4), as DeepSeek scales it."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def table_scale(rope: Rope) -> float:
    """What cos and sin are multiplied by."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
    return yarn_mscale(rope.factor)


def frequencies(rope: Rope, dim: int) -> Tensor:
    """Angle per position of each of the dim/2 pairs, float32.

    YaRN: low frequencies are interpolated by ``factor``, high ones kept, with a linear ramp
    between the dimensions that turn beta_slow and beta_fast times over the original context.
    """
    powers = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.kind == "default":
        return 1.0 / powers
    if rope.kind == "linear":
        return 1.0 / powers / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, 1.0 / powers)

    def dimension(turns: float) -> float:
        span = rope.original_context / (turns * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return ramp / (rope.factor * powers) + (1 - ramp) / powers


def _llama3(rope: Rope, angles: Tensor) -> Tensor:
    """Llama 3.1: wavelengths beyond the original context are stretched, short ones kept."""
    turns = rope.original_context * angles / (2 * math.pi)  # over the original context
    width = rope.high_freq_factor - rope.low_freq_factor
    keep = ((turns - rope.low_freq_factor) / width).clamp(0, 1)
    return (1 - keep) * angles / rope.factor + keep * angles


class RotaryTable(Module):
    """cos and sin of this step's positions, computed once for all layers."""

    def __init__(self, name: str, rope: Rope, dim: int) -> None:
        self.name, self.rope, self.dim = name, rope, dim

    def signature(self) -> Signature:
        return Signature((), (OWN_TOKENS, OWN_TOKENS))

    def features(self) -> tuple[int, ...]:
        return (self.dim // 2, self.dim // 2)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        table = binding.operator(ops.rotary_table, torch.float32)
        angles = frequencies(self.rope, self.dim).to(binding.device)
        scale = table_scale(self.rope)
        return lambda step: table(step.batch.positions, angles, scale)
