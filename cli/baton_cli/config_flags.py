"""The flags by which every command is given its configuration."""

import argparse
from pathlib import Path

from baton_cli.config import ClusterConfig, load
from baton_cli.tree import Tree, dump_tree


def add_config_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--config, --set, --print-config."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config", type=Path, metavar="FILE", required=required, help="the cluster's YAML tree"
    )
    group.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override one value, such as router.routing.local_suffix_tokens=0 or "
        "decode.*.tp=2; the value is YAML; may be repeated",
    )
    group.add_argument(
        "--print-config", action="store_true", help="print the configuration and exit"
    )


def config_of(options: argparse.Namespace, given: Tree | None = None) -> ClusterConfig:
    """The configuration that the flags ask for. Raises ConfigError."""
    return load(options.config, options.overrides, given)


def print_config(config: ClusterConfig) -> int:
    """Prints the tree as YAML that --config accepts; the result is an exit code."""
    print(dump_tree(config.as_tree()), end="")
    return 0
