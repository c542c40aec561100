"""One streamed answer after another: what `generate`, `chat` and `demo` have in common."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from baton.v1 import inference_pb2 as pb
from baton_rpc import bearer, refusal_of

Print = Callable[[str], None]


@dataclass
class Answer:
    """What a stream came to."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[pb.ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished: pb.Finished = field(default_factory=pb.Finished)


@dataclass(frozen=True)
class Printers:
    """Where the parts of an answer go as they arrive."""

    content: Print
    reasoning: Print
    tool_call: Callable[[pb.ToolCall], None]


async def read_chat(stream: AsyncIterable[pb.ChatResponse], show: Printers) -> Answer:
    """Reads a Chat stream to its end. Raises AioRpcError when it failed."""
    answer = Answer()
    async for response in stream:
        event = response.WhichOneof("event")
        if event == "delta":
            delta = response.delta
            answer.reasoning += delta.reasoning
            answer.content += delta.content
            answer.tool_calls.extend(delta.tool_calls)
            answer.token_ids.extend(delta.token_ids)
            if delta.reasoning:
                show.reasoning(delta.reasoning)
            if delta.content:
                show.content(delta.content)
            for call in delta.tool_calls:
                show.tool_call(call)
        elif event == "finished":
            answer.finished = response.finished
    return answer


def metadata_of(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The bearer token, when one is given."""
    return bearer(options.token) if options.token else ()


def usage_line(usage: pb.Usage) -> str:
    """Usage on one line, for a terminal."""
    route = pb.Route.Name(usage.route).removeprefix("ROUTE_").lower()
    times = usage.times
    parts = [
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)",
        f"{usage.generated_tokens} generated",
        f"route {route}",
        f"{usage.pages_moved} pages moved",
        f"TTFT {times.ttft_us / 1000:.0f} ms",
        f"total {times.total_us / 1000:.0f} ms",
    ]
    return " · ".join(parts)


def refused_text(error: grpc.aio.AioRpcError) -> str:
    """Why a call failed, for a person: code, reason, message."""
    refusal = refusal_of(error)
    if refusal is None:
        return f"{error.code().name}: {error.details()}"
    reason = refusal.reason_name.removeprefix("ERROR_REASON_")
    return f"{refusal.code.name} ({reason}): {refusal.message}"


def run_client(work: Callable[[], Awaitable[int]]) -> int:
    """Runs a client; failures become one line on stderr and exit code 1."""

    async def guarded() -> int:
        return await work()

    try:
        return asyncio.run(guarded())
    except grpc.aio.AioRpcError as error:
        print(f"baton: {refused_text(error)}", file=sys.stderr)
        if refusal_of(error) is None and error.code() is grpc.StatusCode.UNAVAILABLE:
            print("Is a cluster running there? `baton up --model DIR` starts one.", file=sys.stderr)
    except ValueError as error:
        print(f"baton: {error}", file=sys.stderr)
        return 2
    return 1
