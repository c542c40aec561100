"""Measured cost tables: equal on all ranks, kept in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton_modeling import Lockstep, tensor_parallel_mesh
from baton_modeling.compiler.costs import COLLECTIVES, CostTable
from baton_modeling.compiler.tuning import load_costs, measure, save_costs


def test_ranks_agree_on_what_they_measured(tmp_path: Path) -> None:
    mesh = tensor_parallel_mesh(2)
    group = Lockstep(mesh)

    def rank(index: int) -> CostTable:
        return measure(group.comm(index), mesh.axis("attn_tp"), repeats=2)

    first, second = group.run(rank)
    assert first == second
    assert set(first.costs) == set(COLLECTIVES)
    assert all(cost.latency_us > 0 and cost.gigabytes_per_s > 0 for cost in first.costs.values())
    save_costs(first, tmp_path / "costs.json")
    assert load_costs(tmp_path / "costs.json") == first


@pytest.mark.parametrize(
    "text", ["[", '{"tokens": 1}', '{"tokens": 1, "costs": {}}', '{"costs": {"all_reduce": 1}}']
)
def test_a_file_that_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="costs"):
        load_costs(path)
