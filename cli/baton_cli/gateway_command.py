"""`baton gateway`: becomes the gateway's process, with the command line that fits the cluster."""

import argparse
import os
import shlex

from baton_cli.config_flags import add_config_flags, config_of
from baton_cli.gateway import GatewayConfig, gateway_command

DESCRIPTION = """\
Replaces itself by SMG (`smg launch`) over the router of the tree: the OpenAI
API (/v1/chat/completions, /v1/completions, /v1/responses) and the Anthropic
API (/v1/messages). The tree needs a section `gateway`, and its router then
serves SMG's worker protocol beside baton.v1.
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "gateway",
        help="SMG over the router: the OpenAI and Anthropic APIs",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flags(parser, required=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Does not return, unless to print the command."""
    config: GatewayConfig = config_of(options).section("gateway")
    command = gateway_command(config)
    if options.print_config:
        print(shlex.join(command))
        return 0
    os.execv(command[0], command)  # the kernel's promise of SIGTERM at our parent's death stays
    raise AssertionError("execv returned")
