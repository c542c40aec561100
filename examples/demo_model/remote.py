"""The demo model through a running cluster's gRPC Chat API."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc as pb_grpc

from .agent import Turn
from .tasks import Message
from .world import TOOLS

REQUEST_TIMEOUT_S = 120.0


def _message(message: Message) -> pb.ChatMessage:
    calls = [
        pb.ToolCall(
            id=f"call-{i}",
            name=call["function"]["name"],
            arguments_json=json.dumps(call["function"]["arguments"], ensure_ascii=False),
        )
        for i, call in enumerate(message.get("tool_calls", ()))
    ]
    return pb.ChatMessage(role=message["role"], content=message["content"], tool_calls=calls)


def _tools() -> list[pb.Tool]:
    return [
        pb.Tool(
            name=tool["function"]["name"],
            description=tool["function"]["description"],
            parameters_json=json.dumps(tool["function"]["parameters"]),
        )
        for tool in TOOLS
    ]


class ClusterModel:
    """Greedy decoding by a cluster; `concurrency` conversations at a time."""

    def __init__(self, target: str, concurrency: int, max_tokens: int = 200) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = pb_grpc.InferenceServiceStub(self._channel)
        self._pool = ThreadPoolExecutor(concurrency)
        self._max_tokens = max_tokens
        self.cached_tokens = 0
        self.prompt_tokens = 0

    def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
        """The next assistant turn of each conversation. Raises grpc.RpcError."""
        return list(self._pool.map(self._reply, conversations))

    def _reply(self, conversation: Sequence[Message]) -> Turn:
        request = pb.ChatRequest(
            messages=[_message(m) for m in conversation],
            tools=_tools(),
            sampling=pb.SamplingParams(temperature=0.0),
            stop=pb.StopParams(max_tokens=self._max_tokens),
            session_id=f"{zlib.crc32(conversation[1]['content'].encode()):08x}",
        )
        content, calls, tokens = "", list[tuple[str, dict[str, Any]]](), 0
        for response in self._stub.Chat(request, timeout=REQUEST_TIMEOUT_S):
            if response.HasField("delta"):
                content += response.delta.content
                calls += [(c.name, json.loads(c.arguments_json)) for c in response.delta.tool_calls]
            elif response.HasField("finished"):
                usage = response.finished.usage
                tokens = usage.generated_tokens
                self.prompt_tokens += usage.prompt_tokens
                self.cached_tokens += usage.cached_tokens
        return Turn(content, tuple(calls), tokens)
