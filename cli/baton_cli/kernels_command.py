"""`baton kernels`: which implementation of every operator runs here, and why."""

import argparse
import sys


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "kernels",
        help="which implementation of every operator runs here, and why",
        description="Lists every implementation of every operator; * marks the chosen ones. What "
        "depends on a model's sizes is decided when the model is compiled. Overrides are read "
        "from BATON_KERNELS and validated.",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    import torch

    from baton_kernels import KernelError, load_plugins
    from baton_kernels.listing import as_text, explain_all
    from baton_kernels.registry import Site

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("baton: --device cuda: torch sees no GPU here", file=sys.stderr)
        return 1
    try:
        load_plugins()
        print(as_text(explain_all(Site.on(options.device, getattr(torch, options.dtype)))))
    except KernelError as error:
        print(f"baton: {error}", file=sys.stderr)
        return 1
    return 0
