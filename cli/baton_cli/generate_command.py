"""`baton generate`: continue a text, streaming."""

import argparse
import sys


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    from baton_cli.client_flags import add_client_flags

    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continues a text; the tokens appear as they are made.",
    )
    parser.add_argument("prompt", nargs="?", help="the text (default: read from stdin)")
    add_client_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from baton_cli.talking import run_client

    prompt = options.prompt if options.prompt is not None else sys.stdin.read()
    return run_client(lambda: _generate(options, prompt))


async def _generate(options: argparse.Namespace, prompt: str) -> int:
    from baton.v1 import inference_pb2 as pb
    from baton.v1.inference_pb2_grpc import InferenceServiceStub
    from baton_cli.client_flags import sampling_of, stop_of
    from baton_cli.talking import metadata_of, usage_line
    from baton_rpc import channel

    request = pb.GenerateRequest(
        model=options.model,
        text=prompt,
        sampling=sampling_of(options),
        stop=stop_of(options),
        session_id=options.session,
        tenant=options.tenant,
    )
    async with channel(options.target) as dialled:
        stream = InferenceServiceStub(dialled).Generate(
            request, timeout=options.timeout, metadata=metadata_of(options)
        )
        async for response in stream:
            if response.WhichOneof("event") == "delta":
                print(response.delta.text, end="", flush=True)
            elif response.WhichOneof("event") == "finished":
                print()
                if options.usage:
                    print(usage_line(response.finished.usage), file=sys.stderr)
    return 0
