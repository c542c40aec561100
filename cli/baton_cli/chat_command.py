"""`baton chat`: a conversation in the terminal."""

import argparse
import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `baton --help` does without protobuf
    import grpc

    from baton.v1 import inference_pb2 as pb
    from baton_cli.talking import Answer

DESCRIPTION = """\
Talks to the model: one line is one message, the answer streams. Ctrl-D ends.

With --tools FILE (a JSON list of {name, description, parameters}) the model
may call tools; you are asked for each call's result.
"""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    from baton_cli.client_flags import add_client_flags

    parser = commands.add_parser(
        "chat",
        help="talk to the model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("message", nargs="?", help="say this first; without a terminal, only this")
    parser.add_argument("--system", help="the system message")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tools")
    add_client_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    from baton_cli.talking import run_client

    return run_client(lambda: _chat(options))


async def _chat(options: argparse.Namespace) -> int:
    from baton_rpc import channel

    async with channel(options.target) as dialled:
        return await _Conversation(options, dialled).run()


class _Conversation:
    def __init__(self, options: argparse.Namespace, dialled: "grpc.aio.Channel") -> None:
        from baton.v1 import inference_pb2 as pb
        from baton.v1.inference_pb2_grpc import InferenceServiceStub
        from baton_cli.client_flags import sampling_of, stop_of

        self._options = options
        self._stub = InferenceServiceStub(dialled)
        self._request = pb.ChatRequest(
            model=options.model,
            tools=read_tools(options.tools) if options.tools else [],
            sampling=sampling_of(options),
            stop=stop_of(options),
            session_id=options.session or uuid.uuid4().hex,
            tenant=options.tenant,
        )
        if options.system:
            self._request.messages.add(role="system", content=options.system)

    async def run(self) -> int:
        text: str | None = self._options.message
        interactive = sys.stdin.isatty()
        if text is None:
            text = await _ask("you> ")
        while text is not None:
            if text.strip():
                self._request.messages.add(role="user", content=text)
                await self._answer()
            if not interactive and self._options.message is not None:
                return 0
            text = await _ask("you> ")
        return 0

    async def _answer(self) -> None:
        """The model's turn: it speaks, calls tools, gets results, speaks again."""
        while True:
            answer = await self._turn()
            message = self._request.messages.add(
                role="assistant", content=answer.content, tool_calls=answer.tool_calls
            )
            if not message.tool_calls:
                return
            for call in message.tool_calls:
                result = await _ask(f"result of {call.name}> ")
                self._request.messages.add(role="tool", tool_call_id=call.id, content=result or "")

    async def _turn(self) -> "Answer":
        from baton_cli.talking import Printers, metadata_of, read_chat, usage_line

        stream = self._stub.Chat(
            self._request, timeout=self._options.timeout, metadata=metadata_of(self._options)
        )
        show = Printers(content=_write, reasoning=_write_dim, tool_call=_write_call)
        answer = await read_chat(stream, show)
        print()
        if self._options.usage:
            print(usage_line(answer.finished.usage), file=sys.stderr)
        return answer


def read_tools(path: Path) -> "list[pb.Tool]":
    """Tools of a JSON file, in this or the OpenAI shape. Raises ValueError."""
    from baton.v1 import inference_pb2 as pb

    try:
        written = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--tools {path}: {error}") from error
    tools = []
    for entry in written if isinstance(written, list) else [written]:
        tool = entry.get("function", entry) if isinstance(entry, dict) else {}
        if not isinstance(tool.get("name"), str):
            raise ValueError(f"--tools {path}: an entry without a name: {entry!r}")
        tools.append(
            pb.Tool(
                name=tool["name"],
                description=tool.get("description", ""),
                parameters_json=json.dumps(tool.get("parameters", {"type": "object"})),
            )
        )
    return tools


async def _ask(prompt: str) -> str | None:
    """One line of stdin, without stopping the event loop; None at its end."""
    try:
        return await asyncio.to_thread(input, prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _write_dim(text: str) -> None:
    print(f"\033[2m{text}\033[0m" if sys.stdout.isatty() else text, end="", flush=True)


def _write_call(call: "pb.ToolCall") -> None:
    print(f"\n[calls {call.name}({call.arguments_json})]", end="", flush=True)
