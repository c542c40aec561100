"""Data-parallel attention: each group of ranks has its own requests, experts serve all of them.

Groups have different numbers of tokens in a step, and some steps leave a group without any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton_modeling import (
    CompiledModel,
    CompileError,
    CountingComm,
    Lockstep,
    Mesh,
    Options,
    explain_checkpoint,
    load_model,
)
from baton_modeling.communicators import Communicator
from baton_modeling.compiler.costs import COLLECTIVES, CollectiveCost, CostTable

from .driver import PAGE_SIZE
from .groups import ALWAYS_DISPATCH, ALWAYS_GATHER, STEPS, expected_logits, run_group, step_sizes
from .test_parity import check

DP2_EP2 = Mesh({"dp": 2, "ep": 2})


MESHES = {
    "dp2-ep2": DP2_EP2,
    "dp2-ep2-dense-tp2": Mesh({"dp": 2, "ep": 2, "dense_tp": 2}),
    "dp2-moe-tp2": Mesh({"dp": 2, "moe_tp": 2}),
    "dp2-attn-tp2-ep4": Mesh({"dp": 2, "attn_tp": 2, "dense_tp": 2, "ep": 4, "vocab": 2}),
    "dp2-attn-tp2-ep2-moe-tp2": Mesh(
        {"dp": 2, "attn_tp": 2, "ep": 2, "moe_tp": 2, "dense_tp": 4, "vocab": 2}
    ),
}


@pytest.mark.parametrize("costs", [ALWAYS_GATHER, ALWAYS_DISPATCH], ids=["gather", "dispatch"])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("variant", ["deepseek_v3", "qwen3_next"])
def test_groups_with_uneven_and_empty_batches(
    make_checkpoint: Callable[..., Path], variant: str, mesh: Mesh, costs: CostTable
) -> None:
    checkpoint = make_checkpoint(variant)
    expected = expected_logits(checkpoint)
    lockstep = Lockstep(mesh)
    options = Options(costs=costs)

    def rank(index: int) -> tuple[list[Tensor], CountingComm, CompiledModel]:
        comm = CountingComm(lockstep.comm(index))
        model = load(checkpoint, mesh.at(index), comm, options)
        return run_group(model, mesh.axis("dp").coordinate(index)), comm, model

    counted: Counter[tuple[str, str]] = Counter()
    explained: Counter[tuple[str, str]] = Counter()
    for index, (steps, comm, model) in enumerate(lockstep.run(rank)):
        for logits, wanted in zip(steps, expected, strict=True):
            check(logits, wanted)
        program = model.explain()
        assert comm.calls == {k: n * len(STEPS) for k, n in program.collectives().items()}
        sizes = step_sizes(mesh.axis("dp").coordinate(index))
        mine: Counter[tuple[str, str]] = sum((program.bytes(*each) for each in sizes), Counter())
        # How many rows come to one rank is the router's decision; over all ranks they add up.
        assert without_routed(comm.bytes) == without_routed(mine)
        counted += comm.bytes
        explained += mine
    assert counted == explained


def without_routed(sizes: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    return {key: size for key, size in sizes.items() if key[0] != "all_to_all"}


def load(
    checkpoint: Path, mesh: Mesh, comm: Communicator, options: Options | None = None
) -> CompiledModel:
    return load_model(checkpoint, mesh=mesh, comm=comm, page_size=PAGE_SIZE, options=options)


def test_replicas_within_a_group_are_equal(deepseek_checkpoint: Path) -> None:
    mesh = MESHES["dp2-attn-tp2-ep2-moe-tp2"]
    lockstep = Lockstep(mesh)
    options = Options(costs=ALWAYS_DISPATCH, verify=True)

    def rank(index: int) -> None:
        model = load(deepseek_checkpoint, mesh.at(index), lockstep.comm(index), options)
        run_group(model, mesh.axis("dp").coordinate(index))

    lockstep.run(rank)


def test_the_least_that_groups_must_exchange(deepseek_checkpoint: Path) -> None:
    """Attention, router, shared expert and the dense layer work on a group's own tokens.

    By hand: a layer of experts brings everybody's tokens together and the sums back, or sends rows
    there and back once the counts are known; dense layers and the embedding exchange nothing; the
    logits are gathered once. Hidden size 128, 8 experts of which 2 are chosen, float32.
    """
    gathered = explain_checkpoint(
        deepseek_checkpoint, mesh=DP2_EP2, dtype=torch.float32, costs=ALWAYS_GATHER
    )
    assert gathered.collectives() == {("all_gather", "dp"): 2 + 1, ("reduce_scatter", "ep"): 2}
    layers = gathered.totals()
    assert set(layers) == {"layers.1", "layers.2", "step"}
    assert layers["layers.1"].bytes_sent_per == {"own token": 128 * 4, "token": 128 * 4 / 2}

    sent = explain_checkpoint(
        deepseek_checkpoint, mesh=DP2_EP2, dtype=torch.float32, costs=ALWAYS_DISPATCH
    )
    counts = {("all_gather", "ep"): 2, ("all_to_all", "ep"): 4, ("all_gather", "dp"): 1}
    assert sent.collectives() == counts
    assert sent.bytes(30, 30, own=(10, 10)) == {
        ("all_gather", "ep"): 8 * 8 * 2,
        ("all_to_all", "ep"): 10 * 2 * 128 * 4 * 4,
        ("all_gather", "dp"): 10 * 2048 * 4,
    }


def test_the_cost_table_decides_between_gather_and_dispatch(deepseek_checkpoint: Path) -> None:
    """With few experts chosen among many ranks fewer bytes travel than in a gather."""

    def routed(gigabytes_per_s: float) -> bool:
        table = CostTable(
            {name: CollectiveCost(10.0, gigabytes_per_s) for name in COLLECTIVES}, tokens=4096
        )
        program = explain_checkpoint(
            deepseek_checkpoint, mesh=Mesh({"dp": 8, "ep": 8}), costs=table
        )
        return any(name == "all_to_all" for name, _ in program.collectives())

    assert routed(1.0)
    assert not routed(1e6)  # only the calls cost: two are fewer than three


def test_axes_that_share_ranks_are_refused_by_name(deepseek_checkpoint: Path) -> None:
    with pytest.raises(CompileError, match=r"model\.embed_tokens places .* axes vocab and dp"):
        explain_checkpoint(deepseek_checkpoint, mesh=Mesh({"dp": 2, "vocab": 2}))


@pytest.mark.parametrize("variant", ["qwen3_moe", "minimax_m2"])
def test_grouped_query_families(make_checkpoint: Callable[..., Path], variant: str) -> None:
    checkpoint = make_checkpoint(variant)
    mesh = Mesh({"dp": 2, "attn_tp": 2, "ep": 2, "moe_tp": 2, "dense_tp": 2})
    expected = expected_logits(checkpoint)
    lockstep = Lockstep(mesh)

    def rank(index: int) -> list[Tensor]:
        model = load(checkpoint, mesh.at(index), lockstep.comm(index))
        return run_group(model, mesh.axis("dp").coordinate(index))

    for steps in lockstep.run(rank):
        for logits, wanted in zip(steps, expected, strict=True):
            check(logits, wanted)
