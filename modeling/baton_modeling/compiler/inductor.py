"""Functions of tensors compiled by TorchInductor, for fixed shapes, without guards.

A function is traced to a graph of torch operators whose weights are made inputs. The layers of a
model have equal graphs, so each is compiled once; a call never compiles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Sequence[Tensor]]

# By the graph's code, its inputs' shapes and the number of threads, which is compiled in.
_compiled: dict[Any, Function] = {}
_lock = threading.Lock()  # tracing is not thread-safe, and ranks may be threads


class ExecutionError(ValueError):
    """A way to execute that is not possible here."""


def require_compiler() -> None:
    """ExecutionError when this machine has no C++ compiler, which compiled regions need."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ExecutionError(
            "execution: compiled needs a C++ compiler on every worker's machine and found none; "
            "install g++ or clang++ (or name one in CXX), or choose execution: eager"
        ) from error


def compiled(function: Function, examples: Sequence[Tensor]) -> Function:
    """``function`` for contiguous tensors of exactly the examples' shapes and dtypes.

    The function must not look at values on the host nor change its inputs.
    """
    with _lock, torch.inference_mode():
        graph: GraphModule = make_fx(function)(*examples)
        weights = _lift_weights(graph, len(examples))
        inputs: list[Any] = [*examples, *weights]
        shapes = tuple((tuple(x.shape), x.stride(), x.dtype, str(x.device)) for x in inputs)
        key = (graph.code, shapes, torch.get_num_threads())
        if key not in _compiled:
            _compiled[key] = torch._inductor.compile(graph, inputs)
        run = _compiled[key]
    return lambda *tensors: run(*tensors, *weights)


def _lift_weights(graph: GraphModule, inputs: int) -> list[Tensor]:
    """Make the tensors that the graph holds its last inputs, and return them."""
    weights: list[Tensor] = []
    nodes = list(graph.graph.nodes)
    last = nodes[inputs - 1]
    for node in nodes:
        if node.op == "get_attr":
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"weight_{len(weights)}")
            weights.append(getattr(graph, node.target))
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    graph.recompile()
    return weights
