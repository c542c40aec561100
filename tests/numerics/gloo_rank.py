"""One rank of a gloo mesh: computes what its case says and saves it.

python -m numerics.gloo_rank RANK CASE RENDEZVOUS_FILE CHECKPOINT OUT
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from baton_modeling import (
    Communicator,
    CompiledModel,
    CountingComm,
    GlooComm,
    Mesh,
    Options,
    load_model,
    tensor_parallel_mesh,
)

from .driver import PAGE_SIZE, Driver, Row
from .groups import ALWAYS_DISPATCH, ALWAYS_GATHER, run_group

PROMPT = [17 * i % 2000 + 16 for i in range(90)]
CHUNKS = [50, 37, 1, 1, 1]
CASES = {"tp2": tensor_parallel_mesh(2), "dp2-ep2": Mesh({"dp": 2, "ep": 2})}


def one_batch(checkpoint: Path, mesh: Mesh) -> dict[str, Any]:
    """All ranks compute one prompt and continue it."""
    comm = CountingComm(GlooComm(mesh))
    model = load(checkpoint, comm, Options())
    logits = Driver(model).prefill(Row(PROMPT), CHUNKS)
    collectives = model.explain().collectives()
    assert comm.calls == {k: len(CHUNKS) * n for k, n in collectives.items()}
    # Readers rely on equal bits, who take every rank's pages from one of them.
    checked = load(checkpoint, comm.inner, Options(verify=True))
    Driver(checked).prefill(Row(PROMPT), [50, 39, 1])
    return {"logits": logits, "continuation": Driver(model).generate(PROMPT, 16)}


def groups(checkpoint: Path, mesh: Mesh) -> dict[str, Any]:
    """Each group computes its requests, experts reached in both ways."""
    comm, group = GlooComm(mesh), mesh.axis("dp").coordinate(mesh.rank)
    return {
        way: run_group(load(checkpoint, comm, Options(costs=costs)), group)
        for way, costs in (("gather", ALWAYS_GATHER), ("dispatch", ALWAYS_DISPATCH))
    }


def load(checkpoint: Path, comm: Communicator, options: Options) -> CompiledModel:
    return load_model(checkpoint, mesh=comm.mesh, comm=comm, page_size=PAGE_SIZE, options=options)


def main(rank: int, case: str, rendezvous: str, checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    mesh = CASES[case].at(rank)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=mesh.world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        compute = groups if mesh.axis("dp").size > 1 else one_batch
        torch.save(compute(checkpoint, mesh), out)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
