"""One rank of a gloo mesh: computes a prompt, prints logits' file and collective counts.

python gloo_rank.py RANK WORLD RENDEZVOUS_FILE CHECKPOINT OUT
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from driver import PAGE_SIZE, Driver, Row

from baton_modeling import CountingComm, GlooComm, Options, load_model, tensor_parallel_mesh


def main(rank: int, world: int, rendezvous: str, checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    try:
        mesh = tensor_parallel_mesh(world, rank)
        comm = CountingComm(GlooComm(mesh))
        model = load_model(checkpoint, mesh=mesh, comm=comm, page_size=PAGE_SIZE)
        driver = Driver(model)
        prompt = [17 * i % 2000 + 16 for i in range(90)]
        logits = driver.prefill(Row(prompt), [50, 37, 1, 1, 1])
        assert comm.calls == {k: 5 * n for k, n in model.explain().collectives().items()}
        continuation = driver.generate(prompt, 16)
        # Again, checking that gloo leaves the same bits on both ranks: readers rely on it, who
        # take every rank's pages from one of them.
        checked = load_model(
            checkpoint,
            mesh=mesh,
            comm=comm.inner,
            page_size=PAGE_SIZE,
            options=Options(verify=True),
        )
        Driver(checked).prefill(Row(prompt), [50, 39, 1])
        torch.save({"logits": logits, "continuation": continuation}, out)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
