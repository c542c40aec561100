"""Graphs without checkpoints: weights are drawn by name and cut as a checkpoint reader would."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from baton_modeling import ForwardBatch, Mesh
from baton_modeling.binding import Binding, Step
from baton_modeling.communicators import Communicator, SingleComm
from baton_modeling.compiler.branches import Aside
from baton_modeling.compiler.emit import emit
from baton_modeling.compiler.operations import Lowered
from baton_modeling.compiler.verify import checker
from baton_modeling.graph import Compute, Graph, Module, Signature
from baton_modeling.model import compile_graph
from baton_modeling.placements import REPLICATED, Layout, Shard
from baton_modeling.weights import Source, Weight

HIDDEN = 16
VOCAB = 32


def whole(source: Source) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(source.name.encode()))
    tensor = torch.randn(source.shape, generator=generator, dtype=torch.float64)
    return tensor / source.shape[-1] ** 0.5


def load(weight: Weight, mesh: Mesh) -> Tensor:
    parts = [whole(source)[cut] for source, cut in weight.local(mesh)]
    width = len(weight.parts[0])
    groups = [torch.cat(parts[i : i + width]) for i in range(0, len(parts), width)]
    return torch.stack(groups) if weight.stacked else groups[0]


def batch(tokens: int, rows: list[int] | None = None) -> ForwardBatch:
    empty = torch.zeros(0, dtype=torch.int32)
    ids = torch.arange(tokens) * 7 % VOCAB
    wanted = torch.arange(tokens) if rows is None else torch.tensor(rows, dtype=torch.int64)
    return ForwardBatch(ids, torch.arange(tokens), empty, empty, empty, empty[:, None], 0, wanted)


def run(
    graph: Graph,
    step: ForwardBatch,
    mesh: Mesh | None = None,
    comm: Communicator | None = None,
    verify: bool = False,
    place: Aside | None = None,
) -> tuple[Tensor, Lowered]:
    mesh = mesh or Mesh({})
    comm = comm or SingleComm(mesh)
    lowered = compile_graph(graph, mesh, 8)
    binding = Binding(torch.device("cpu"), torch.float64, mesh, 8)
    program = emit(
        lowered,
        binding,
        comm,
        lambda module: {name: load(weight, mesh) for name, weight in module.weights().items()},
        checker(lowered, comm) if verify else None,
        place,
    )
    return program.run(Step(step, 8)), lowered


class CumulativeSum(Module):
    """Not rowwise, as attention: a row depends on the rows before it. Features are cut."""

    def __init__(self, name: str, features: int, axis: str) -> None:
        self.name, self.size, self.axis = name, features, axis

    def signature(self) -> Signature:
        return Signature(({self.axis: Shard(1)},), ({self.axis: Shard(1)},))

    def features(self) -> tuple[int, ...]:
        return (self.size,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        return lambda step, x: x.cumsum(0)


class Declared(Module):
    """The identity with placements of the test's choice."""

    def __init__(self, name: str, wants: Layout, gives: Layout = REPLICATED) -> None:
        self.name, self.wants, self.gives = name, wants, gives

    def signature(self) -> Signature:
        return Signature((self.wants,), (self.gives,))

    def features(self) -> tuple[int, ...]:
        return (HIDDEN,)

    def bind(self, binding: Binding, weights: Mapping[str, Tensor]) -> Compute:
        return lambda step, x: x
