"""Choosing an implementation: requirements, bands, overrides, explanations."""

from __future__ import annotations

import pytest
import torch

from baton_kernels import (
    Band,
    KernelError,
    Operator,
    Requirements,
    ShapeRule,
    Site,
    as_text,
    check_overrides,
    explain_all,
    ops,
    parse_overrides,
)

CPU = Site("cpu", torch.float32, {"rank": 48})
HOPPER = Site("cuda", torch.bfloat16, {"rank": 512}, (9, 0))


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.fixture
def operator() -> Operator[[torch.Tensor], torch.Tensor]:
    operator = Operator(double)
    hopper = Requirements(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({torch.bfloat16}),
        min_capability=(9, 0),
        shapes=(ShapeRule("rank", "a multiple of 64", lambda n: n % 64 == 0),),
    )
    operator.register("hopper", band=Band.TUNED, requirements=hopper)(lambda x: x + x)
    operator.register("anywhere", band=Band.PORTABLE)(lambda x: x + x)
    return operator


def chosen(operator: Operator[..., object], site: Site, **overrides: str) -> str:
    return next(v.implementation for v in operator.explain(site, overrides) if v.chosen)


def test_the_highest_band_that_can_run_wins(operator: Operator[..., object]) -> None:
    assert chosen(operator, CPU) == "anywhere"
    assert chosen(operator, HOPPER) == "hopper"
    assert chosen(operator, Site("cuda", torch.bfloat16, {"rank": 512}, (8, 0))) == "anywhere"


def test_every_refusal_has_its_reason(operator: Operator[..., object]) -> None:
    verdict = next(v for v in operator.explain(CPU) if v.implementation == "hopper")
    assert verdict.reason == (
        "device is cpu, needs cuda; dtype is float32, needs bfloat16; "
        "needs compute capability 9.0 or later; rank is 48, must be a multiple of 64"
    )
    unknown = Site("cuda", torch.bfloat16, {}, (9, 0))
    assert "rank must be a multiple of 64 and is not known here" in {
        v.reason for v in operator.explain(unknown)
    }


def test_an_override_is_taken_but_never_past_a_requirement(
    operator: Operator[..., object],
) -> None:
    assert chosen(operator, HOPPER, double="reference") == "reference"
    with pytest.raises(KernelError, match="double=hopper was asked for but cannot run here"):
        operator.bind(CPU, {"double": "hopper"})
    with pytest.raises(KernelError, match="no implementation 'fast'; it has reference, hopper"):
        operator.bind(CPU, {"double": "fast"})


def test_overrides_are_parsed_and_checked_by_name() -> None:
    assert parse_overrides(" rms_norm=reference, mla_decode=gathered,") == {
        "rms_norm": "reference",
        "mla_decode": "gathered",
    }
    for text in ("rms_norm", "=reference", "rms_norm="):
        with pytest.raises(KernelError, match="operator=implementation"):
            parse_overrides(text)
    check_overrides({"rms_norm": "reference"}, ops.OPERATORS)
    with pytest.raises(KernelError, match="no operator 'rmsnorm'; the operators are"):
        check_overrides({"rmsnorm": "reference"}, ops.OPERATORS)
    with pytest.raises(KernelError, match="rms_norm has no implementation 'x'"):
        check_overrides({"rms_norm": "x"}, ops.OPERATORS)


def test_a_name_is_registered_once(operator: Operator[..., object]) -> None:
    with pytest.raises(KernelError, match="already has an implementation 'anywhere'"):
        operator.register("anywhere", band=Band.PLUGIN)(double)


def test_the_listing_marks_one_implementation_of_every_operator() -> None:
    verdicts = explain_all(CPU, {"rms_norm": "reference"})
    chosen_by = {v.operator: v.implementation for v in verdicts if v.chosen}
    assert set(chosen_by) == set(ops.OPERATORS)
    assert chosen_by["rms_norm"] == "reference"
    assert chosen_by["mla_decode"] == "gathered"
    lines = as_text(verdicts).splitlines()
    assert len(lines) == len(verdicts)
    assert any("triton_split" in line and "device is cpu, needs cuda" in line for line in lines)


def test_every_operator_has_a_generator_and_a_docstring() -> None:
    for operator in ops.OPERATORS.values():
        assert operator.inputs(0)
        assert operator.__doc__
