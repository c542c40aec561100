"""Every implementation that can run on this GPU agrees with its operator's reference there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baton_kernels import ops
from baton_kernels.paging import PagedRows
from baton_kernels.registry import Site
from baton_kernels.states import StateRows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
CASES = [
    (name, implementation, dtype)
    for name, operator in sorted(ops.OPERATORS.items())
    for implementation in operator.implementations
    for dtype in TOLERANCES
]


def moved(value: object, device: str) -> object:
    """A generator's argument on another device; every call gets memory of its own."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, PagedRows):
        parts = (value.query_starts, value.context_tokens, value.page_tables)
        return PagedRows(*(part.to(device) for part in parts), value.page_size)
    if isinstance(value, StateRows):
        return StateRows(
            *(part.to(device) for part in (value.query_starts, value.reads, value.writes))
        )
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        return type(value)(*(moved(item, device) for item in value))
    return value


def tensors(values: list[object]) -> list[Tensor]:
    return [v.float().cpu() for v in values if isinstance(v, Tensor) and v.is_floating_point()]


@pytest.mark.parametrize(("name", "implementation", "dtype"), CASES)
def test_an_implementation_agrees_with_its_reference(
    name: str, implementation: str, dtype: torch.dtype
) -> None:
    operator = ops.OPERATORS[name]
    chosen = operator.implementations[implementation]
    if unmet := chosen.requirements.unmet(Site.on("cuda", dtype)):
        pytest.skip("; ".join(unmet))
    for seed in range(3):
        args, kwargs = operator.inputs(seed, dtype=dtype)
        results = []
        for function, device in ((operator.reference, "cpu"), (chosen.function, "cuda")):
            given = [moved(a, device) for a in args]
            named = {key: moved(a, device) for key, a in kwargs.items()}
            result = function(*given, **named)
            out = list(result) if isinstance(result, tuple) else [result]
            # What an operator writes in place (a cache, a state) counts as its result.
            results.append(tensors([*out, *given, *named.values()]))
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(
                actual, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype], equal_nan=True
            )
