"""Every implementation that can run here agrees with its operator's reference."""

from __future__ import annotations

import pytest
import torch

from baton_kernels import Operator, PagedRows, Site, ops

CASES = [
    pytest.param(operator, name, id=f"{operator.name}-{name}")
    for operator in ops.OPERATORS.values()
    for name in operator.implementations
    if name != "reference"
]


def _agree(
    operator: Operator[..., object], name: str, *args: object, tolerance: float = 2e-6, **kw: object
) -> None:
    implementation = operator.implementations[name]
    dtype = kw.get("dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    if implementation.requirements.unmet(Site("cpu", dtype)):
        return  # not for this device or dtype
    expected_args, expected_kw = operator.inputs(*args, **kw)
    actual_args, actual_kw = operator.inputs(*args, **kw)
    expected = operator.reference(*expected_args, **expected_kw)
    actual = implementation.function(*actual_args, **actual_kw)
    if expected is not None:
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    # Caches and states change in place; nothing else may, nor any slot that is not written.
    for changed, wanted in zip(actual_args, expected_args, strict=True):
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(
                changed, wanted, atol=tolerance, rtol=tolerance, equal_nan=True
            )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("operator", "name"), CASES)
def test_agrees_with_the_reference(operator: Operator[..., object], name: str, seed: int) -> None:
    _agree(operator, name, seed)


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_agrees_in_bfloat16(operator: Operator[..., object], name: str) -> None:
    _agree(operator, name, 1, dtype=torch.bfloat16, tolerance=3e-2)


@pytest.mark.parametrize("operator", [ops.mla_decode, ops.gqa_decode])
@pytest.mark.parametrize(
    "contexts", [[0, 1, 8, 0, 9], [8, 16, 64], [1], [0], [], [200, 3, 63, 64, 65]]
)
def test_decode_over_ragged_contexts(operator: Operator[..., object], contexts: list[int]) -> None:
    for name in operator.implementations:
        _agree(operator, name, 3, contexts=contexts)


@pytest.mark.parametrize("operator", [ops.mla_prefill, ops.gqa_prefill])
@pytest.mark.parametrize(
    ("contexts", "queries"),
    [
        ([1], [1]),
        ([40, 7, 9], [40, 0, 1]),  # whole prompt, idle row, one token after a cached prefix
        ([64, 65], [3, 60]),
        ([300], [280]),
        ([0, 5], [0, 5]),
    ],
)
def test_prefill_over_ragged_chunks(
    operator: Operator[..., object], contexts: list[int], queries: list[int]
) -> None:
    for name in operator.implementations:
        _agree(operator, name, 5, contexts=contexts, queries=queries, tolerance=5e-6)


@pytest.mark.parametrize("name", ops.mla_prefill.implementations)
def test_prefill_of_one_token_is_decode(name: str) -> None:
    (queries, w_uk, w_uv, cache, rows, scale), _ = ops.mla_prefill.inputs(
        2, contexts=[30, 5, 8], queries=[1, 1, 1]
    )
    assert isinstance(queries, torch.Tensor) and isinstance(w_uk, torch.Tensor)
    assert isinstance(w_uv, torch.Tensor) and isinstance(cache, torch.Tensor)
    assert isinstance(rows, PagedRows) and isinstance(scale, float)
    function = ops.mla_prefill.implementations[name].function
    whole = function(queries, w_uk, w_uv, cache, rows, scale)
    nope, rank = w_uk.shape[1:]
    absorbed = torch.einsum("bhn,hnr->bhr", queries[..., :nope], w_uk)
    latent = ops.mla_decode(
        torch.cat([absorbed, queries[..., nope:]], -1), cache, rows, rank, scale
    )
    expected = torch.einsum("bhr,hvr->bhv", latent, w_uv)
    torch.testing.assert_close(whole, expected, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("name", ops.moe_experts.implementations)
def test_experts_of_few_and_many_tokens(name: str, tokens: int) -> None:
    if tokens:
        _agree(ops.moe_experts, name, 1, tokens=tokens)
        return
    (x, weights, experts, gate_up, down, first), _ = ops.moe_experts.inputs(1, tokens=1)
    function = ops.moe_experts.implementations[name].function
    empty = function(x[:0], weights[:0], experts[:0], gate_up, down, first)
    assert empty.shape == (0, 32)


def test_shards_of_experts_sum_to_the_layer() -> None:
    (x, weights, _, gate_up, down, _), _ = ops.moe_experts.inputs(3)
    experts = torch.randint(0, 6, (7, 2), generator=torch.Generator().manual_seed(0))
    whole = ops.moe_experts(x, weights, experts, gate_up, down, 0)
    parts = [
        ops.moe_experts(x, weights, experts, gate_up[a:b], down[a:b], a)
        for a, b in ((0, 2), (2, 5), (5, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_group_limit_keeps_experts_of_the_best_groups() -> None:
    logits = torch.tensor([[5.0, 5.0, 4.9, -9.0, 4.9, -9.0]])
    bias = torch.zeros(6)
    # Groups {0,1}, {2,3}, {4,5}: only the first is eligible, though 2 and 4 score higher than none.
    weights, experts = ops.route_sigmoid(logits, bias, 2, 3, 1, True, 1.0)
    assert sorted(experts[0].tolist()) == [0, 1]
    assert weights.sum().item() == pytest.approx(1.0)


def test_the_routing_bias_chooses_but_does_not_weigh() -> None:
    logits = torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    bias = torch.tensor([9.0, 9.0, 0.0, 0.0])
    weights, experts = ops.route_sigmoid(logits, bias, 2, 1, 1, False, 1.0)
    assert sorted(experts[0].tolist()) == [0, 1]
    torch.testing.assert_close(weights, torch.full((1, 2), 0.5))
