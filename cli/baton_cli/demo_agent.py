"""The agent of the demonstration: asks, streams the answer, executes calls, goes on."""

import json
import time
import uuid
from dataclasses import dataclass

import grpc
from rich.console import Console
from rich.markup import escape

from baton.v1 import inference_pb2 as pb
from baton.v1.inference_pb2_grpc import InferenceServiceStub
from baton_cli.demo_story import Story
from baton_cli.talking import Answer, Printers, read_chat

# Answers of one turn; a model that calls tools for ever is stopped here.
MAX_CALLS_PER_TURN = 6


@dataclass(frozen=True)
class Call:
    """One request to the router: in which turn, what for, what it cost."""

    turn: int
    step: int
    what: str
    usage: pb.Usage
    seconds: float


class Agent:
    """Holds the conversation of a story with a router."""

    def __init__(self, dialled: grpc.aio.Channel, story: Story, console: Console) -> None:
        self._stub = InferenceServiceStub(dialled)
        self._story = story
        self._console = console
        self._request = pb.ChatRequest(
            messages=[pb.ChatMessage(role="system", content=story.system)],
            tools=[
                pb.Tool(
                    name=tool["name"],
                    description=tool["description"],
                    parameters_json=json.dumps(tool["parameters"]),
                )
                for tool in story.tools
            ],
            sampling=pb.SamplingParams(temperature=0.0),
            stop=pb.StopParams(max_tokens=story.max_tokens),
            session_id=f"demo-{uuid.uuid4().hex[:8]}",
        )
        self.calls: list[Call] = []

    async def run(self) -> None:
        """All turns. Raises AioRpcError when the router refuses."""
        for turn, question in enumerate(self._story.questions):
            self._console.print(f"\n[bold cyan]user[/]       {escape(question)}")
            self._request.messages.add(role="user", content=question)
            scripted = self._story.scripted_call(turn)
            if scripted is None:
                await self._live_turn(turn)
            else:
                await self._scripted_turn(turn, *scripted)

    async def _live_turn(self, turn: int) -> None:
        what = "question"
        for step in range(MAX_CALLS_PER_TURN):
            answer = await self._ask(turn, step, what)
            self._request.messages.add(
                role="assistant", content=answer.content, tool_calls=answer.tool_calls
            )
            if not answer.tool_calls:
                return
            for call in answer.tool_calls:
                self._execute(call)
            what = f"+ {', '.join(call.name for call in answer.tool_calls)}"

    async def _scripted_turn(self, turn: int, name: str, arguments: str) -> None:
        answer = await self._ask(turn, 0, "question")
        call = pb.ToolCall(id=f"call-{turn}", name=name, arguments_json=arguments)
        self._console.print(f"[dim]script[/]     {escape(f'{name}({arguments})')}")
        self._request.messages.add(role="assistant", content=answer.content, tool_calls=[call])
        self._execute(call)
        answer = await self._ask(turn, 1, f"+ {name}")
        self._request.messages.add(role="assistant", content=answer.content)

    def _execute(self, call: pb.ToolCall) -> None:
        result = self._story.call(call.name, call.arguments_json)
        shown = result.replace("\n", "\n           ")
        self._console.print(f"[bold yellow]tool[/]       {escape(shown)}")
        self._request.messages.add(role="tool", tool_call_id=call.id, content=result)

    async def _ask(self, turn: int, step: int, what: str) -> Answer:
        self._console.print("[bold green]assistant[/]  ", end="")
        start = time.monotonic()
        answer = await read_chat(self._stub.Chat(self._request, timeout=120.0), self._printers())
        self._console.print()
        usage = answer.finished.usage
        self.calls.append(Call(turn, step, what, usage, time.monotonic() - start))
        return answer

    def _printers(self) -> Printers:
        def plain(text: str) -> None:
            # A random model writes control characters too; a terminal obeys them.
            printable = "".join(c if c.isprintable() else " " for c in text)
            self._console.print(escape(printable), end="", soft_wrap=True)

        def dim(text: str) -> None:
            self._console.print(f"[dim]{escape(text)}[/]", end="", soft_wrap=True)

        def call(tool_call: pb.ToolCall) -> None:
            text = escape(f"{tool_call.name}({tool_call.arguments_json})")
            self._console.print(f"[magenta]{text}[/] ", end="", soft_wrap=True)

        return Printers(content=plain, reasoning=dim, tool_call=call)
