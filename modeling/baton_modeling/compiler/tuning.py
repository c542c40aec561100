"""Measuring collectives on the machine at hand, and keeping the figures in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import yaml
from torch import Tensor

from baton_modeling.communicators import Communicator
from baton_modeling.compiler.costs import COLLECTIVES, CollectiveCost, CostTable, wire_bytes
from baton_modeling.mesh import Axis

_SMALL, _LARGE = 256, 1 << 20  # elements; float32


def measure(
    comm: Communicator, axis: Axis, repeats: int = 20, device: torch.device | None = None
) -> CostTable:
    """Costs of the collectives over ``axis`` for tensors on ``device`` (default: the CPU).

    Every rank of the axis must call it.

    The latency is the median time of a kilobyte, the rate what four megabytes take beyond it.
    The ranks agree on the slowest figures, so that all compile the same program.
    """
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "all_reduce": lambda x: comm.all_reduce(x, axis),
        "reduce_scatter": lambda x: comm.reduce_scatter(x, axis, 0),
        "all_gather": lambda x: comm.all_gather(x[: len(x) // axis.size], axis, 0),
        "all_to_all": lambda x: comm.all_to_all(x, axis, *[[len(x) // axis.size] * axis.size] * 2),
    }
    device = device or torch.device("cpu")
    costs = {}
    for name in COLLECTIVES:
        small, large = (
            _time(runs[name], size * axis.size, repeats, device) for size in (_SMALL, _LARGE)
        )
        mine = torch.tensor([[small, large]], dtype=torch.float64, device=device)
        both = comm.all_gather(mine, axis, 0)
        latency, longest = both.amax(0).tolist()
        wire = wire_bytes(name, (_LARGE - _SMALL) * axis.size * 4, axis.size)
        rate = wire / max(longest - latency, 1e-9) / 1e9
        costs[name] = CollectiveCost(latency * 1e6, rate)
    return CostTable(costs)


def _time(
    run: Callable[[Tensor], Tensor], elements: int, repeats: int, device: torch.device
) -> float:
    """Median seconds of one call, the first few not counted."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    taken = []
    for _ in range(repeats + 3):
        x = torch.ones(elements, device=device)
        start = finished()
        run(x)
        taken.append(finished() - start)
    return median(taken[3:])


def as_fields(table: CostTable) -> dict[str, object]:
    """The table as load_costs reads it."""
    fields = {
        name: {"latency_us": cost.latency_us, "gigabytes_per_s": cost.gigabytes_per_s}
        for name, cost in table.costs.items()
    }
    return {"tokens": table.tokens, "costs": fields}


def as_text(table: CostTable, *, yaml_form: bool) -> str:
    """The table as YAML or as JSON."""
    fields = as_fields(table)
    if yaml_form:
        return yaml.safe_dump(fields, sort_keys=False)
    return json.dumps(fields, indent=1) + "\n"


def save_costs(table: CostTable, path: Path) -> None:
    """Write the table, as YAML if the file is called so, else as JSON."""
    path.write_text(as_text(table, yaml_form=path.suffix in (".yaml", ".yml")))


def load_costs(path: Path) -> CostTable:
    """Read a table written by save_costs; ValueError says what is wrong with it."""
    try:
        fields = yaml.safe_load(path.read_text())  # JSON is YAML
        costs = {name: CollectiveCost(**cost) for name, cost in fields["costs"].items()}
        return CostTable(costs, int(fields["tokens"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of collective costs: {error}") from error
