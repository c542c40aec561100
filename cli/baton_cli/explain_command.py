"""`baton explain`: the straight-line program that the compiler made of a model."""

import argparse
import sys
from pathlib import Path


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "explain",
        help="the program that the compiler made of a model",
        description="Prints each edge of the model's program, its placements, the collective "
        "chosen for it, its bytes per token and the rule that fired, and the totals of each layer "
        "and of a step. Loads no weights.",
        epilog="example: baton explain --model DIR --mesh dp=2,attn_tp=2,ep=4 --json",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a checkpoint")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--tp", type=int, default=1, metavar="N", help="tensor parallelism")
    ranks.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="sizes of the mesh axes dp, attn_tp, dense_tp, ep, moe_tp, vocab; others are 1",
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--cost-table", type=Path, metavar="FILE", help="costs measured by baton tune-comm"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    import torch

    from baton_modeling import explain_checkpoint, parse_mesh
    from baton_modeling.compiler.tuning import load_costs

    dtype: torch.dtype = getattr(torch, options.dtype)
    try:
        explanation = explain_checkpoint(
            options.model,
            tp=options.tp,
            mesh=parse_mesh(options.mesh) if options.mesh else None,
            dtype=dtype,
            costs=load_costs(options.cost_table) if options.cost_table else None,
        )
    except ValueError as error:  # every refusal of the modeling room is one
        print(f"baton: {error}", file=sys.stderr)
        return 1
    print(explanation.json() if options.json else explanation)
    return 0
