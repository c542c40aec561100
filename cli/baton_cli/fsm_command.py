"""`baton fsm`: the request lifecycle, printed from the table the scheduler was compiled with."""

import argparse

from baton_scheduler import fsm_mermaid, fsm_table

_FORMATS = {"table": fsm_table, "mermaid": fsm_mermaid}


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "fsm",
        help="the scheduler's request lifecycle",
        description="Prints what the compiled scheduler answers to each event in each state: the "
        "state it leads to, `ignored`, or `·` for rejected. docs/scheduler.md explains them.",
    )
    parser.add_argument(
        "--format",
        choices=sorted(_FORMATS),
        default="table",
        help="a markdown table (default), or a mermaid state diagram of the accepted cells",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    print(_FORMATS[options.format](), end="")
    return 0
