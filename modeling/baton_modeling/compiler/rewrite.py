"""Rewrite rules on the lowered program. Each keeps the result and says its name in ``explain``."""

from __future__ import annotations

from collections import Counter

from baton_modeling.compiler.branches import split_branches
from baton_modeling.compiler.operations import Kind, Lowered, Operation, layer_of
from baton_modeling.layers.norm import Add, RMSNorm

ADD_NORM_RULE = "add + norm"
REDUCE_ADD_NORM_RULE = "all-reduce + add + norm"
DEFERRED_RULE = "reduce deferred across the layer boundary"


def fuse_add_norm(lowered: Lowered) -> None:
    """A residual addition and the norm that reads its sum become one operation.

    When an addend comes straight from an all-reduce that nobody else reads, the all-reduce joins
    them, so that a backend with a fused collective has all three in one place.
    """
    uses = Counter(slot for operation in lowered.operations for slot in operation.inputs)
    uses.update(lowered.outputs)
    norms = {
        operation.inputs[0]: operation
        for operation in reversed(lowered.operations)
        if isinstance(operation.module, RMSNorm)
    }
    makers = {slot: op for op in lowered.operations for slot in op.outputs}
    gone: set[int] = set()
    for operation in lowered.operations:
        norm = norms.get(operation.outputs[0]) if isinstance(operation.module, Add) else None
        if norm is None:
            continue
        gone.add(id(norm))
        operation.kind, operation.norm, operation.module = Kind.ADD_NORM, norm.module, None
        operation.outputs = (operation.outputs[0], norm.outputs[0])
        operation.rules = (ADD_NORM_RULE,)
        reduce = _sole_reduce(operation, makers, uses)
        if reduce is not None:
            gone.add(id(reduce))
            others = tuple(slot for slot in operation.inputs if slot != reduce.outputs[0])
            operation.inputs = (reduce.inputs[0], *others)
            operation.axis, operation.rules = reduce.axis, (REDUCE_ADD_NORM_RULE,)
            if layer_of(reduce.producer) != layer_of(operation.label):
                operation.rules += (DEFERRED_RULE,)
            operation.producer, operation.consumer = reduce.producer, reduce.consumer
    lowered.operations = [op for op in lowered.operations if id(op) not in gone]


def _sole_reduce(
    addition: Operation, makers: dict[int, Operation], uses: Counter[int]
) -> Operation | None:
    if addition.inputs[0] == addition.inputs[1]:
        return None
    for slot in reversed(addition.inputs):
        maker = makers.get(slot)
        if maker is not None and maker.kind is Kind.ALL_REDUCE and uses[slot] == 1:
            return maker
    return None


RULES = (fuse_add_norm, split_branches)
