"""The placement compiler: every mesh computes what one rank computes, with few collectives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton_modeling import CompileError, CountingComm, Lockstep, Mesh, ReplicaMismatch
from baton_modeling.binding import Step
from baton_modeling.compiler.costs import CollectiveCost, CostTable
from baton_modeling.compiler.explain import explain
from baton_modeling.compiler.operations import Kind
from baton_modeling.graph import Compute, Graph, GraphError, Value
from baton_modeling.layers.embedding import Embedding, OutputHead
from baton_modeling.layers.linear import ColumnLinear, JoinedLinear, Linear, RowLinear, SwiGLU
from baton_modeling.layers.norm import Add, RMSNorm
from baton_modeling.lockstep import LockstepComm
from baton_modeling.mesh import Axis, tensor_parallel_mesh
from baton_modeling.model import compile_graph
from baton_modeling.placements import Partial, Shard
from baton_modeling.weights import WeightError

from .toy import HIDDEN, VOCAB, CumulativeSum, Declared, batch, run

MESHES = [
    tensor_parallel_mesh(2),
    tensor_parallel_mesh(4),
    Mesh({"attn_tp": 2, "dense_tp": 4, "vocab": 2}),
    Mesh({"dense_tp": 2}),
]


def random_graph(choices: list[int]) -> Graph:
    """A graph grown by a list of numbers: each adds one or two modules to random live values."""
    graph = Graph()
    values = [graph(Embedding("embed", VOCAB, HIDDEN))]

    def pick(number: int) -> Value:
        return values[number % len(values)]

    for index, number in enumerate(choices):
        kind, name, axis = number % 8, f"m{index}", ("attn_tp", "dense_tp")[number // 8 % 2]
        x = pick(number // 14)
        if kind == 0:
            values.append(graph(RMSNorm(name, HIDDEN, 1e-6), x))
        elif kind == 1:
            values.append(graph(Add(name, HIDDEN), x, pick(number // 50)))
        elif kind == 2:
            values.append(graph(SwiGLU(name, HIDDEN, 32, axis), x))
        elif kind == 3:
            column = graph(ColumnLinear(f"{name}c", HIDDEN, 24, axis, bias=True), x)
            values.append(graph(RowLinear(f"{name}r", 24, HIDDEN, axis, bias=True), column))
        elif kind == 4:
            values.append(graph(ColumnLinear(name, HIDDEN, HIDDEN, axis), x))
        elif kind == 5:
            joined = JoinedLinear(name, HIDDEN, [(f"{name}a", HIDDEN), (f"{name}b", 4)], (16, 4))
            values.append(graph.apply(joined, x)[0])
        elif kind == 6:
            values.append(graph(CumulativeSum(name, HIDDEN, axis), x))
        else:
            values.append(graph(Linear(name, HIDDEN, HIDDEN), x))
    x = values[-1]
    for value in values[-3:-1]:
        x = graph(Add(f"join {value.name}", HIDDEN), x, value)
    graph.output(graph(OutputHead("head", HIDDEN, VOCAB), graph(RMSNorm("norm", HIDDEN, 1e-6), x)))
    return graph


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from(MESHES),
    st.sampled_from([None, [4], [0, 3], []]),
)
def test_a_mesh_computes_what_one_rank_does(
    choices: list[int], mesh: Mesh, rows: list[int] | None
) -> None:
    step = batch(5, rows)
    expected, _ = run(random_graph(choices), step)
    group = Lockstep(mesh)

    def rank(index: int) -> tuple[Tensor, CountingComm]:
        comm = CountingComm(group.comm(index))
        logits, _ = run(random_graph(choices), step, mesh.at(index), comm, verify=False)
        return logits, comm

    explained = explain(compile_graph(random_graph(choices), mesh, 8), mesh, 8)
    for logits, comm in group.run(rank):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert comm.calls == explained.collectives()


def transformer_layer(graph: Graph, x: Value, layer: int) -> Value:
    name = f"layers.{layer}"
    h = graph(RMSNorm(f"{name}.norm1", HIDDEN, 1e-6), x)
    h = graph(ColumnLinear(f"{name}.qkv", HIDDEN, 24, "attn_tp"), h)
    h = graph(CumulativeSum(f"{name}.mix", 24, "attn_tp"), h)
    h = graph(RowLinear(f"{name}.o", 24, HIDDEN, "attn_tp"), h)
    x = graph(Add(f"{name}.add1", HIDDEN), x, h)
    h = graph(RMSNorm(f"{name}.norm2", HIDDEN, 1e-6), x)
    h = graph(SwiGLU(f"{name}.mlp", HIDDEN, 32, "dense_tp"), h)
    return graph(Add(f"{name}.add2", HIDDEN), x, h)


def dense_model(layers: int) -> Graph:
    graph = Graph()
    x = graph(Embedding("embed", VOCAB, HIDDEN))
    for layer in range(layers):
        x = transformer_layer(graph, x, layer)
    x = graph(RMSNorm("norm", HIDDEN, 1e-6), x)
    graph.output(graph(OutputHead("head", HIDDEN, VOCAB), x))
    return graph


def test_a_dense_layer_takes_two_fused_all_reduces() -> None:
    """The minimum under tensor parallelism: after attention and after the feed-forward."""
    mesh = tensor_parallel_mesh(2)
    lowered = compile_graph(dense_model(3), mesh, 2)
    explained = explain(lowered, mesh, 2)
    assert sum(explained.collectives().values()) == 1 + 2 * 3 + 1  # embedding, layers, logits
    fused = [op for op in lowered.operations if op.kind is Kind.ADD_NORM]
    within, across = ("all-reduce + add + norm",), "reduce deferred across the layer boundary"
    assert [op.rules for op in fused] == [within, (*within, across)] * 3
    assert not [op for op in lowered.operations if isinstance(op.module, Add)]
    # Two bytes an element: 5 reductions of all tokens, 2 of the wanted rows only, and the logits.
    assert explained.bytes(100, 3).total() == (5 * 100 + 2 * 3) * HIDDEN * 2 + 3 * VOCAB * 2 // 2


def test_one_rank_has_no_collectives() -> None:
    lowered = compile_graph(dense_model(2), Mesh({}), 2)
    assert not explain(lowered, Mesh({}), 2).collectives()


def test_two_partial_sums_are_reduced_once() -> None:
    graph = Graph()
    x = graph(Declared("input", {}), graph(Embedding("embed", VOCAB, HIDDEN)))
    routed = graph(SwiGLU("routed", HIDDEN, 32, "moe_tp"), x)
    shared = graph(SwiGLU("shared", HIDDEN, 32, "dense_tp"), x)
    graph.output(graph(Add("sum", HIDDEN), routed, shared))
    mesh = Mesh({"moe_tp": 2, "dense_tp": 2})
    assert explain(compile_graph(graph, mesh, 4), mesh, 4).collectives().total() == 1


class Late:
    """A stream that is behind: what it gives is NaN until the main line has waited."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.branches = 0

    def run(self, compute: Compute, step: Step, inputs: tuple[Tensor, ...]) -> Any:
        known = {id(late): result for late, result in self.pending}  # its own stream's results
        result = compute(step, *(known.get(id(tensor), tensor) for tensor in inputs))
        self.branches += 1
        if isinstance(result, Tensor):
            return self.late(result)
        return [self.late(tensor) for tensor in result]

    def late(self, result: Tensor) -> Tensor:
        self.pending.append((torch.full_like(result, float("nan")), result))
        return self.pending[-1][0]

    def join(self, tensors: tuple[Any, ...]) -> None:
        for late, result in self.pending:
            late.copy_(result)
        self.pending.clear()


def two_branches() -> Graph:
    graph = Graph()
    x = graph(RMSNorm("norm", HIDDEN, 1e-6), graph(Embedding("embed", VOCAB, HIDDEN)))
    routed = graph(Linear("gate", HIDDEN, HIDDEN), x)
    routed = graph(SwiGLU("routed", HIDDEN, 32, "moe_tp"), routed)
    shared = graph(SwiGLU("shared", HIDDEN, 32, "dense_tp"), x)
    total = graph(Add("sum", HIDDEN), routed, shared)
    graph.output(graph(Add("residual", HIDDEN), x, total))
    return graph


def test_the_shorter_of_two_branches_runs_aside_and_is_issued_first() -> None:
    lowered = compile_graph(two_branches(), Mesh({}), 4)
    labels = [op.label for op in lowered.operations]
    assert labels == [
        "embed",
        "select embed -> norm",
        "norm",
        "shared",
        "gate",
        "routed",
        "sum",
        "residual",
    ]
    assert [op.label for op in lowered.operations if op.branch] == ["shared"]
    late = Late()
    logits, _ = run(two_branches(), batch(5), place=late)
    assert late.branches == 1
    assert torch.equal(logits, run(two_branches(), batch(5))[0])


def test_a_branch_that_communicates_stays_in_line() -> None:
    mesh = Mesh({"dense_tp": 2})
    graph = Graph()
    x = graph(Declared("input", {}), graph(Embedding("embed", VOCAB, HIDDEN)))
    left = graph(Declared("left", {}), graph(SwiGLU("a", HIDDEN, 32, "dense_tp"), x))
    right = graph(Declared("right", {}), graph(SwiGLU("b", HIDDEN, 32, "dense_tp"), x))
    graph.output(graph(Add("sum", HIDDEN), left, right))
    assert not any(op.branch for op in compile_graph(graph, mesh, 4).operations)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_branches_are_awaited_wherever_they_are_read(choices: list[int]) -> None:
    expected, _ = run(random_graph(choices), batch(5))
    logits, _ = run(random_graph(choices), batch(5), place=Late())
    assert torch.equal(logits, expected)


def test_a_conversion_is_shared_by_its_readers() -> None:
    graph = Graph()
    x = graph(Embedding("embed", VOCAB, HIDDEN))
    a, b = (graph(Linear(name, HIDDEN, HIDDEN), x) for name in "ab")
    graph.output(graph(Add("sum", HIDDEN), a, b))
    mesh = tensor_parallel_mesh(2)
    assert explain(compile_graph(graph, mesh, 4), mesh, 4).collectives().total() == 1


def test_an_impossible_edge_names_both_modules_and_the_axis() -> None:
    graph = Graph()
    x = graph(Linear("model.up", HIDDEN, HIDDEN), graph(Embedding("embed", VOCAB, HIDDEN)))
    graph.output(graph(Declared("model.broken", {"dense_tp": Partial()}), x))
    with pytest.raises(CompileError) as error:
        compile_graph(graph, tensor_parallel_mesh(2), 4)
    for word in ("model.up", "model.broken", "dense_tp", "partial sum"):
        assert word in str(error.value)


def test_features_that_do_not_divide_name_both_modules() -> None:
    graph = Graph()
    x = graph(Linear("wide", HIDDEN, HIDDEN), graph(Embedding("embed", 33, HIDDEN)))
    graph.output(graph(Declared("cut", {"dense_tp": Shard(1)}), x))
    with pytest.raises(CompileError, match=r"cut wants the output of wide .* dense_tp, but its 16"):
        compile_graph(graph, Mesh({"dense_tp": 3}), 4)


def test_weights_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WeightError, match=r"embed\.weight: dimension 0 is 32, .* 3 ranks of mesh"):
        run(dense_model(1), batch(2), tensor_parallel_mesh(3), Lockstep(MESHES[0]).comm(0))


def test_arity_and_foreign_values_are_refused() -> None:
    graph, other = Graph(), Graph()
    x = other(Embedding("embed", VOCAB, HIDDEN))
    with pytest.raises(GraphError, match="norm takes 1 inputs, 0 were given"):
        graph(RMSNorm("norm", HIDDEN, 1e-6))
    with pytest.raises(GraphError, match="input embed belongs to another graph"):
        graph(RMSNorm("norm", HIDDEN, 1e-6), x)


def test_the_cost_table_decides_how_to_reduce() -> None:
    cheap_halves = CostTable(
        {
            "all_reduce": CollectiveCost(500.0, 1.0),
            "reduce_scatter": CollectiveCost(10.0, 10.0),
            "all_gather": CollectiveCost(10.0, 10.0),
            "all_to_all": CollectiveCost(10.0, 10.0),
        }
    )
    mesh = tensor_parallel_mesh(2)
    kinds = {op.kind for op in compile_graph(dense_model(1), mesh, 4, cheap_halves).operations}
    assert Kind.REDUCE_SCATTER in kinds
    assert Kind.ALL_REDUCE not in kinds


class Careless(LockstepComm):
    """A communicator whose all-reduces go wrong on one rank, from the third on."""

    calls = 0

    def all_reduce(self, x: Tensor, axis: Axis) -> Tensor:
        total = super().all_reduce(x, axis)
        self.calls += 1
        if self.calls >= 3 and self.mesh.rank == 1:
            total += 1e-6
        return total


def test_the_debug_mode_names_the_first_module_that_differs() -> None:
    mesh = tensor_parallel_mesh(2)
    group = Lockstep(mesh)

    def rank(index: int) -> None:
        comm = Careless(group, mesh.at(index))
        run(dense_model(2), batch(4), mesh.at(index), comm, verify=True)

    with pytest.raises(
        ReplicaMismatch, match=r"layers\.1\.norm1 declares .* axis .*_tp, but ranks"
    ):
        group.run(rank)


def test_explain_has_the_same_facts_as_text_and_json() -> None:
    import json

    mesh = tensor_parallel_mesh(2)
    explained = explain(compile_graph(dense_model(2), mesh, 2), mesh, 2)
    facts = json.loads(explained.json())
    assert sum(entry["count"] for entry in facts["collectives"]) == 6
    text = str(explained)
    assert "all_reduce over attn_tp (2 ranks), 32 B/token   [all-reduce + add + norm]" in text
    assert "layers.0: 2 collectives" in text
