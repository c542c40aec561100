"""Multi-token prediction: what carries hidden states from the model to its drafting layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from baton_modeling.binding import Binding, Step
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.placements import OWN_TOKENS, REPLICATED


class KeepHidden(Module):
    """Passes hidden states on and keeps those of all tokens in the step, for a drafting layer.

    Not rowwise, although each row is its own: with it, no row is left out before it.
    """

    def __init__(self, name: str, hidden: int) -> None:
        self.name, self.hidden = name, hidden

    def signature(self) -> Signature:
        return Signature((OWN_TOKENS,), (OWN_TOKENS,))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        def keep(step: Step, x: Tensor) -> Tensor:
            step.hidden = x
            return x

        return keep


class GivenHidden(Module):
    """The hidden states a step was given: those the model had for the same positions."""

    def __init__(self, name: str, hidden: int) -> None:
        self.name, self.hidden = name, hidden

    def signature(self) -> Signature:
        return Signature((), (OWN_TOKENS,))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        def given(step: Step) -> Tensor:
            if step.hidden is None:
                raise ValueError("a draft needs the model's hidden states, and the step has none")
            return step.hidden

        return given


class Concat(Module):
    """Two values side by side."""

    rowwise = True

    def __init__(self, name: str, left: int, right: int) -> None:
        self.name, self.left, self.right = name, left, right

    def signature(self) -> Signature:
        return Signature((REPLICATED, REPLICATED))

    def features(self) -> tuple[int, ...]:
        return (self.left + self.right,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        return lambda step, left, right: torch.cat([left, right], 1)
