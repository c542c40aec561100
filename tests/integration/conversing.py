"""Tool conversations of the demo model's world, held through the OpenAI and Anthropic SDKs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import openai

from baton_cli.demo_story import TrainedStory, story_for

MODEL = Path(__file__).parents[2] / "examples" / "demo_model" / "model"
NAME = "test-model"
MAX_ROUNDS = 6


def story() -> TrainedStory:
    """A held-out conversation of three requests: a search, a reading and a calculation."""
    found = story_for(MODEL, None)
    assert isinstance(found, TrainedStory)
    return found


def openai_tools(told: TrainedStory) -> list[Any]:
    return [{"type": "function", "function": dict(tool)} for tool in told.tools]


def anthropic_tools(told: TrainedStory) -> list[Any]:
    return [
        {
            "name": tool["name"],
            "description": tool["description"],
            "input_schema": tool["parameters"],
        }
        for tool in told.tools
    ]


def with_openai(
    client: openai.OpenAI, told: TrainedStory, model: str = NAME
) -> tuple[list[str], list[int], int]:
    """(answers, cached prompt tokens of each completion, calls made)."""
    messages: list[Any] = [{"role": "system", "content": told.system}]
    answers, cached, calls = [], [], 0
    for question in told.questions:
        messages.append({"role": "user", "content": question})
        for _ in range(MAX_ROUNDS):
            done = client.chat.completions.create(
                model=model, messages=messages, tools=openai_tools(told), max_tokens=160
            )
            assert done.usage is not None and done.usage.prompt_tokens_details is not None
            cached.append(done.usage.prompt_tokens_details.cached_tokens or 0)
            said = done.choices[0].message
            messages.append(said.model_dump(exclude_none=True))
            if not said.tool_calls:
                assert done.choices[0].finish_reason == "stop"
                answers.append(said.content or "")
                break
            assert done.choices[0].finish_reason == "tool_calls"
            for call in said.tool_calls:
                assert call.type == "function"
                calls += 1
                result = told.call(call.function.name, call.function.arguments)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return answers, cached, calls


def with_anthropic(client: anthropic.Anthropic, told: TrainedStory) -> tuple[list[str], int]:
    """(answers, calls made), streaming. SMG 1.13 tells Anthropic's clients of no cached tokens."""
    messages: list[Any] = []
    answers, calls = [], 0
    for question in told.questions:
        messages.append({"role": "user", "content": question})
        for _ in range(MAX_ROUNDS):
            with client.messages.stream(
                model=NAME,
                system=told.system,
                messages=messages,
                tools=anthropic_tools(told),
                max_tokens=160,
            ) as stream:
                done = stream.get_final_message()
            messages.append(
                {"role": "assistant", "content": [block.to_dict() for block in done.content]}
            )
            asked = [block for block in done.content if block.type == "tool_use"]
            if not asked:
                assert done.stop_reason == "end_turn"
                answers.append("".join(b.text for b in done.content if b.type == "text"))
                break
            assert done.stop_reason == "tool_use"
            calls += len(asked)
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": block.id,
                    "content": told.call(block.name, json.dumps(block.input)),
                }
                for block in asked
            ]
            messages.append({"role": "user", "content": results})
    return answers, calls
