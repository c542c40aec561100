"""`baton demo`: a cluster of its own, a three-turn agent, a table of what it cost."""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from baton_cli.config import ClusterConfig
from baton_cli.run_directory import new_run_directory
from baton_cli.up_command import add_cluster_flags, cluster_config

if TYPE_CHECKING:
    from baton_cli.demo_story import Story

DESCRIPTION = """\
Starts router, prefill worker, decode worker and kvstore as separate processes,
lets an agent hold a conversation of three turns through the router's Chat API,
executes the tool calls, and shows what each call cost. Takes down what it
started.
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "demo",
        help="a three-turn agent against a cluster of its own",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_cluster_flags(parser)
    parser.add_argument(
        "--seed", type=int, help="another conversation (default: one that shows off)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the demonstration."""
    from baton_cli.demo_story import story_for

    config = cluster_config(options)
    config.check()
    story = story_for(config.model.path, options.seed)
    return asyncio.run(_demo(config, story, options.start_timeout))


async def _demo(config: ClusterConfig, story: "Story", timeout_s: float) -> int:
    import grpc

    from baton_cli.cluster import Cluster, ClusterError
    from baton_cli.demo_agent import Agent
    from baton_cli.demo_report import print_next, print_report
    from baton_cli.start_display import Display
    from baton_cli.talking import refused_text
    from baton_rpc import channel

    console = Console(highlight=False)
    display = Display(console)
    cluster = Cluster(config, new_run_directory())
    failed = True
    try:
        await display.start(cluster, timeout_s)
        async with channel(cluster.router.address) as dialled:
            agent = Agent(dialled, story, console)
            await agent.run()
        print_report(agent.calls, story, console)
        failed = False
    except ClusterError as error:
        display.failed("the cluster did not start", str(error))
    except grpc.aio.AioRpcError as error:
        display.failed("the router refused", refused_text(error))
        display.failed("", f"logs are in {cluster.run}")
    finally:
        await display.stop(cluster)
        if not failed:
            print_next(_short(config.model.path), console)
    return int(failed)


def _short(path: Path) -> str:
    """The path as a person in this folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
