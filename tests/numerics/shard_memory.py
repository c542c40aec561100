"""Load one rank of a checkpoint and print, as JSON, the memory that it took.

python -m numerics.shard_memory RANKS WARM_UP_CHECKPOINT CHECKPOINT
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch

from baton_modeling import CompiledModel, Lockstep, load_model, tensor_parallel_mesh


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("/proc/self/status has no VmRSS")
    return int(found.group(1)) << 10


def load(checkpoint: Path, ranks: int) -> CompiledModel:
    mesh = tensor_parallel_mesh(ranks)
    comm = Lockstep(mesh).comm(0)
    return load_model(checkpoint, mesh=mesh, comm=comm, dtype=torch.bfloat16, page_size=8)


def main(ranks: int, warm_up: Path, checkpoint: Path) -> None:
    first = load(warm_up, ranks)  # imports, thread pools and kernels are not the checkpoint's
    before = resident()
    model = load(checkpoint, ranks)
    print(json.dumps({"bytes": resident() - before, "layers": model.config.layers}))
    del first


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
