"""The token embedding and the output head, both cut over the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from baton_kernels import ops
from baton_modeling.binding import Binding
from baton_modeling.graph import Compute, Module, Signature
from baton_modeling.placements import OWN_TOKENS, REPLICATED, Partial, Shard
from baton_modeling.weights import Weight


class Embedding(Module):
    """Rows of the embedding of this step's tokens; each rank knows its part of the vocabulary."""

    def __init__(self, name: str, vocab: int, hidden: int, axis: str = "vocab") -> None:
        self.name, self.vocab, self.hidden, self.axis = name, vocab, hidden, axis

    def signature(self) -> Signature:
        return Signature((), ({self.axis: Partial(), **OWN_TOKENS},))

    def features(self) -> tuple[int, ...]:
        return (self.hidden,)

    def weights(self) -> Mapping[str, Weight]:
        cut = {self.axis: Shard(0)}
        return {"table": Weight.of(f"{self.name}.weight", self.vocab, self.hidden, shards=cut)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        lookup, table = binding.operator(ops.embedding), weights["table"]
        first = binding.mesh.axis(self.axis).coordinate(binding.mesh.rank) * len(table)
        return lambda step: lookup(step.batch.token_ids, table, first)


class OutputHead(Module):
    """Logits in float32. ``tied_to`` names the embedding whose weight it shares."""

    rowwise = True

    def __init__(
        self, name: str, hidden: int, vocab: int, tied_to: str | None = None, axis: str = "vocab"
    ) -> None:
        self.name, self.hidden, self.vocab, self.axis = name, hidden, vocab, axis
        self.source = tied_to or name

    def signature(self) -> Signature:
        return Signature((REPLICATED,), ({self.axis: Shard(1)},))

    def features(self) -> tuple[int, ...]:
        return (self.vocab,)

    def weights(self) -> Mapping[str, Weight]:
        cut = {self.axis: Shard(0)}
        return {"weight": Weight.of(f"{self.source}.weight", self.vocab, self.hidden, shards=cut)}

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        linear, weight = binding.operator(ops.linear), weights["weight"]
        return lambda step, x: linear(x, weight, None).float()
