"""One rank of `baton tune-comm`, a process of its own; rank 0 writes the table.

python -m baton_cli.tune_comm_rank RANK RANKS DEVICE REPEATS RENDEZVOUS_FILE TABLE_FILE
"""

import os
import sys
from datetime import timedelta
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Join the group, measure, leave."""
    import torch
    import torch.distributed as dist

    from baton_modeling import GlooComm, tensor_parallel_mesh
    from baton_modeling.compiler.tuning import measure, save_costs

    rank, ranks, kind, repeats, rendezvous, table = arguments
    mesh = tensor_parallel_mesh(int(ranks), int(rank))
    device = torch.device("cuda", mesh.rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=mesh.rank,
        world_size=mesh.world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        costs = measure(GlooComm(mesh), mesh.axis("attn_tp"), int(repeats), device)
        if mesh.rank == 0:
            save_costs(costs, Path(table))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
