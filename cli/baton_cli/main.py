"""The `baton` command.

Subcommands import what they need when they run, not before: a router's
process must not load torch, and `baton --help` should not take seconds.
"""

import argparse
import sys
from collections.abc import Sequence

from baton_cli import (
    chat_command,
    demo_command,
    doctor_command,
    explain_command,
    fsm_command,
    gateway_command,
    generate_command,
    kernels_command,
    serve_command,
    tune_comm_command,
    up_command,
)
from baton_cli.processes import die_with_parent
from baton_cli.tree import ConfigError

DESCRIPTION = """\
Baton serves large language models to agents, with prefill and decode apart.

  baton up --model DIR         a cluster on this machine; stays up
  baton chat                   talk to it
  baton generate "Once upon"   continue a text
  baton demo                   a three-turn agent against a cluster of its own

One process of a cluster, as containers run them:
  baton router | prefill | decode | kvstore | gateway  --config cluster.yaml

Looking inside:
  baton explain --model DIR    the program that the compiler made of the model
  baton kernels                which operator implementations run here, and why
  baton tune-comm              what collectives cost here, for the compiler
  baton fsm                    the scheduler's request lifecycle
  baton doctor                 what this machine has, and what is missing
"""

_COMMANDS = (
    up_command,
    serve_command,
    gateway_command,
    generate_command,
    chat_command,
    demo_command,
    explain_command,
    kernels_command,
    tune_comm_command,
    fsm_command,
    doctor_command,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="baton",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`baton COMMAND --help` explains one command.",
    )
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_to(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the result is the process's exit code.

    0 done, 1 it failed and said why, 2 the command line or the configuration
    is wrong, 130 interrupted.
    """
    die_with_parent()
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print("baton: the configuration cannot be used", file=sys.stderr)
        for fault in error.faults:
            print(f"  {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has left; so do we, without a traceback.
        sys.stderr.close()
        return 1


def _version() -> str:
    from importlib.metadata import version

    return f"baton {version('baton-serve')}"


if __name__ == "__main__":
    sys.exit(main())
