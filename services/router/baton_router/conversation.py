"""Chat messages: roles and their fields, checked, in the form chat templates expect."""

from collections.abc import Sequence
from typing import Any, Final

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_router import strict_json
from baton_rpc import Refusal

ROLES: Final = ("system", "user", "assistant", "tool")


def template_messages(messages: Sequence[pb.ChatMessage]) -> list[dict[str, Any]]:
    """The conversation for a template. Raises Refusal (INVALID_MESSAGES, MISSING_FIELD)."""
    if not messages:
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD,
            "messages is empty; a conversation needs at least one message",
            {"field": "messages"},
        )
    called: set[str] = set()
    return [_message(message, f"messages[{i}]", called) for i, message in enumerate(messages)]


def _message(message: pb.ChatMessage, where: str, called: set[str]) -> dict[str, Any]:
    role = message.role
    if role not in ROLES:
        raise _refusal(f"{where}.role", f"{role!r} is not a role; there are {', '.join(ROLES)}")
    if message.tool_calls and role != "assistant":
        raise _refusal(f"{where}.tool_calls", f"only an assistant calls tools, not {role}")
    if message.tool_call_id and role != "tool":
        raise _refusal(f"{where}.tool_call_id", f"only a tool answers a call, not {role}")
    rendered: dict[str, Any] = {"role": role, "content": message.content}
    if role == "tool" and message.tool_call_id:
        if message.tool_call_id not in called:
            raise _refusal(
                f"{where}.tool_call_id",
                f"{message.tool_call_id!r} is not the id of an earlier tool call",
            )
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
        called.update(call.id for call in message.tool_calls)
    return rendered


def _call(call: pb.ToolCall, where: str) -> dict[str, Any]:
    if not call.name:
        raise _refusal(f"{where}.name", "a tool call needs the tool's name")
    try:
        arguments = strict_json.parse(call.arguments_json)
    except ValueError as error:
        raise _refusal(f"{where}.arguments_json", f"not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise _refusal(f"{where}.arguments_json", "must be a JSON object")
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _refusal(field: str, message: str) -> Refusal:
    return Refusal(errors.ERROR_REASON_INVALID_MESSAGES, f"{field}: {message}", {"field": field})
