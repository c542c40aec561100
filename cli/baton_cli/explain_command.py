"""`baton explain`: the straight-line program that the compiler made of a model."""

import argparse
import sys
from pathlib import Path


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "explain",
        help="the program that the compiler made of a model",
        description="Prints each edge of the model's program, the collective chosen for it, its "
        "bytes per token and the rule that fired. Loads no weights.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="tensor parallelism")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    import torch

    from baton_modeling import (
        CheckpointError,
        CompileError,
        MeshError,
        WeightError,
        explain_checkpoint,
    )

    dtype: torch.dtype = getattr(torch, options.dtype)
    try:
        explanation = explain_checkpoint(options.model, tp=options.tp, dtype=dtype)
    except (CheckpointError, CompileError, MeshError, WeightError) as error:
        print(f"baton: {error}", file=sys.stderr)
        return 1
    print(explanation.json() if options.json else explanation)
    return 0
