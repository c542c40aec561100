"""`baton tune-comm`: measures the collectives of this machine for the compiler's cost table."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_TIMEOUT_S = 600.0


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "tune-comm",
        help="measure the collectives of this machine for the compiler",
        description="Starts the ranks as processes of this machine (gloo on the CPU, NCCL on "
        "GPUs), measures every collective between them, and writes the table that decides "
        "between equivalent ones: baton explain --cost-table FILE, or cost_table of an engine.",
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="calls per figure (default 20)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON, or YAML if called so; default: print JSON"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    refusal = _refusal(options)
    if refusal:
        print(f"baton: {refusal}", file=sys.stderr)
        return 1
    from baton_modeling.compiler.tuning import as_text, load_costs, save_costs

    with tempfile.TemporaryDirectory(prefix="baton-tune-") as scratch:
        table = Path(scratch) / "costs.json"
        failed = _measure(options, Path(scratch) / "rendezvous", table)
        if failed:
            print(f"baton: a rank failed:\n{failed}", file=sys.stderr)
            return 1
        costs = load_costs(table)
    if options.out is None:
        print(as_text(costs, yaml_form=False), end="")
    else:
        save_costs(costs, options.out)
        print(f"wrote {options.out}")
    return 0


def _refusal(options: argparse.Namespace) -> str:
    if options.ranks < 2:
        return f"--ranks is {options.ranks}; a collective needs at least 2"
    if options.repeats < 1:
        return f"--repeats is {options.repeats}; it must be at least 1"
    if options.device == "cuda":
        import torch

        if torch.cuda.device_count() < options.ranks:
            return (
                f"--device cuda with --ranks {options.ranks} needs a GPU for each, torch sees "
                f"{torch.cuda.device_count()} here"
            )
    return ""


def _measure(options: argparse.Namespace, rendezvous: Path, table: Path) -> str:
    """Run the ranks; what a failed one said, "" when the table is written."""
    common = [str(options.ranks), options.device, str(options.repeats), str(rendezvous), str(table)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "baton_cli.tune_comm_rank", str(rank), *common],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(options.ranks)
    ]
    try:
        said = [process.communicate(timeout=_TIMEOUT_S)[1] for process in ranks]
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S:.0f} s"
    finally:
        for process in ranks:
            process.kill()  # no effect on those that have ended
    failed = [text for process, text in zip(ranks, said, strict=True) if process.returncode]
    return failed[0] if failed else ""
