"""`baton router | prefill | decode | kvstore`: one process of a cluster."""

import argparse
import importlib
from typing import Any

from baton_cli.config import ROLES, Role
from baton_cli.config_flags import add_config_flags, config_of
from baton_cli.logs import log_to_stderr
from baton_cli.tree import dump_tree

_WHAT: dict[Role, str] = {
    "router": "the front door: API, tokenising, routing, failover",
    "prefill": "a worker that computes prompts and hands their pages over",
    "decode": "a worker that pulls pages and generates tokens",
    "kvstore": "the page directory and its storage tiers",
}

_HOW = "Runs until SIGTERM or SIGINT, then drains; a second signal ends it at once."


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the four commands."""
    for role in ROLES:
        parser = commands.add_parser(
            role,
            help=_WHAT[role],
            description=f"{_WHAT[role].capitalize()}.\n\n{_HOW}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_config_flags(parser, required=True)
        if role != "router":
            parser.add_argument("--name", help="which one of the tree (default: the only one)")
        parser.add_argument(
            "--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"]
        )
        parser.set_defaults(run=run, role=role, name=None)


def run(options: argparse.Namespace) -> int:
    """Runs the service."""
    tree = config_of(options)
    section = tree.section(options.role, options.name)
    if options.print_config:
        print(dump_tree(section.model_dump(mode="json")), end="")
        return 0
    log_to_stderr(options.log_level)
    service: Any = importlib.import_module(f"baton_{options.role}")

    import uvloop  # twice as fast as asyncio's own at a few dozen streams

    uvloop.run(service.serve(section))
    return 0
