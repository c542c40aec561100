"""`baton up`: a cluster on this machine that stays up until Ctrl-C."""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from baton_cli.config import ClusterConfig
from baton_cli.config_flags import add_config_flags, config_of, print_config
from baton_cli.run_directory import new_run_directory
from baton_cli.tree import ConfigError, Tree

if TYPE_CHECKING:  # these import grpc, which `baton --help` can do without
    from baton_cli.cluster import Cluster
    from baton_cli.start_display import Display

DESCRIPTION = """\
Starts kvstore, prefill workers, decode workers and a router as processes of
their own, waits until all are healthy, prints where they are, and stays up.
Ctrl-C or SIGTERM ends them in order: no request is cut off before its time.

  baton up --model DIR
  baton up --model DIR --prefill 2 --decode 2 --tp 2
  baton up --model DIR --gateway smg          OpenAI and Anthropic APIs as well
  baton up --config cluster.yaml --set router.listen=0.0.0.0:7000

Ports that nobody gives are free ones (the router's is 7000, the gateway's 8000,
if those are free).
Logs and the configuration as it ran are in .baton/run-*/.
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "up",
        help="a cluster on this machine; stays up",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_cluster_flags(parser)
    parser.add_argument(
        "--gateway", choices=["smg"], help="also start this gateway (the extra [gateway])"
    )
    parser.set_defaults(run=run)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """What shapes a cluster, beside a configuration file."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint in HF format")
    parser.add_argument("--prefill", type=int, metavar="N", help="prefill workers (default 1)")
    parser.add_argument("--decode", type=int, metavar="N", help="decode workers (default 1)")
    parser.add_argument("--tp", type=int, metavar="N", help="tensor parallelism of each worker")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=["model", "bfloat16", "fp8"],
        help="how keys, values and latents are kept (default: as the model's dtype)",
    )
    parser.add_argument(
        "--speculative-tokens",
        type=int,
        metavar="K",
        help="guess K tokens a step with the checkpoint's multi-token-prediction layer",
    )
    parser.add_argument(
        "--start-timeout", type=float, default=120.0, metavar="S", help="seconds to become healthy"
    )
    add_config_flags(parser, required=False)


def cluster_config(options: argparse.Namespace) -> ClusterConfig:
    """The cluster that the flags ask for, with every address chosen. Raises ConfigError."""
    config = config_of(options, None if options.config else _tree(options))
    shape = (options.model, options.prefill, options.decode, options.tp, options.kv_cache_dtype)
    speculates = options.speculative_tokens is not None
    if options.config and (any(shape) or speculates):
        raise ConfigError(
            [
                "--model, --prefill, --decode, --tp, --kv-cache-dtype and --speculative-tokens "
                "describe a cluster without --config; with one, say --set model.path=DIR or "
                "--set decode.*.tp=2"
            ]
        )
    if getattr(options, "gateway", None) and config.gateway is None:
        config.gateway = {"kind": options.gateway}
    config.choose_addresses()
    return config


def _tree(options: argparse.Namespace) -> Tree:
    if options.model is None:
        raise ConfigError(["say which model: --model DIR, or --config FILE"])
    if not (options.model / "config.json").is_file():
        raise ConfigError([f"--model {options.model}: no config.json there"])
    worker = {"tp": options.tp} if options.tp else {}
    # Threads that fight over cores cost more than they bring: share them out.
    prefill = 1 if options.prefill is None else options.prefill
    decode = 1 if options.decode is None else options.decode
    ranks = (prefill + decode) * (options.tp or 1)
    worker["threads"] = max(1, (os.cpu_count() or 1) // ranks)
    model: Tree = {"path": str(options.model.resolve())}
    if options.kv_cache_dtype:
        model["kv_cache_dtype"] = options.kv_cache_dtype
    if options.speculative_tokens is not None:
        model["speculative"] = {"method": "mtp", "tokens": options.speculative_tokens}
    return {
        "model": model,
        "prefill": [dict(worker) for _ in range(prefill)],
        "decode": [dict(worker) for _ in range(decode)],
    }


def run(options: argparse.Namespace) -> int:
    """Runs the cluster."""
    config = cluster_config(options)
    config.check()
    if options.print_config:
        return print_config(config)
    return asyncio.run(_up(config, options.start_timeout))


async def _up(config: ClusterConfig, timeout_s: float) -> int:
    from baton_cli.cluster import Cluster, ClusterError
    from baton_cli.start_display import Display
    from baton_rpc import stop_signal

    display = Display(Console(stderr=True, highlight=False))
    cluster = Cluster(config, new_run_directory())
    asked = asyncio.create_task(stop_signal().wait())
    try:
        starting = asyncio.create_task(display.start(cluster, timeout_s))
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return 130
        await starting
        display.addresses(cluster)
        return await _watch(cluster, asked, display)
    except ClusterError as error:
        display.failed("the cluster did not start", str(error))
        return 1
    finally:
        asked.cancel()
        await display.stop(cluster)


async def _watch(cluster: "Cluster", asked: asyncio.Task[bool], display: "Display") -> int:
    """Until a signal, the death of the router or the gateway, or the last worker's."""
    from baton_cli.cluster import death_report

    reported: set[str] = set()
    while True:
        death = asyncio.create_task(cluster.next_death(reported))
        await asyncio.wait({death, asked}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            death.cancel()
            return 0
        member = await death
        reported.add(member.name)
        display.failed(f"{member.name} died; the others go on", death_report(member))
        if member.role in ("router", "gateway") or not cluster.can_serve():
            display.failed("nothing is left that could answer", "")
            return 1
