"""Every field of a request: what is accepted, what is refused, with which reason and words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_router.config import ModelConfig
from baton_router.requests import Job, RequestReader
from baton_rpc import Refusal


class NoWorkers:
    """A pool before any worker has come."""

    max_context: int | None = None
    largest_pool_tokens: int | None = None


@pytest.fixture(scope="session")
def reader(small_checkpoint: Path) -> RequestReader:
    config = ModelConfig(path=small_checkpoint, name="toy")
    return RequestReader(config, NoWorkers())  # type: ignore[arg-type]


def generate(**fields: Any) -> pb.GenerateRequest:
    if not {"text", "token_ids"} & fields.keys():
        fields["token_ids"] = pb.TokenIds(ids=[20, 21, 22])
    return pb.GenerateRequest(**fields)


def ids(*values: int) -> pb.TokenIds:
    return pb.TokenIds(ids=values)


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(messages=messages or [say("user", "hi")], **fields)


def say(role: str, content: str = "x", **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=role, content=content, **fields)


def tool(parameters: str = "", name: str = "f") -> pb.Tool:
    return pb.Tool(name=name, description="d", parameters_json=parameters)


async def read(reader: RequestReader, request: pb.GenerateRequest | pb.ChatRequest) -> Job:
    reader.check_model(request.model)
    if isinstance(request, pb.ChatRequest):
        prompt, _ = await reader.chat_prompt(request)
    else:
        prompt = await reader.prompt(request)
    return reader.job(prompt, request)


def sampling(**fields: Any) -> pb.GenerateRequest:
    return generate(sampling=pb.SamplingParams(**fields))


def stop(**fields: Any) -> pb.GenerateRequest:
    return generate(stop=pb.StopParams(**fields))


CALL = pb.ToolCall(id="1", name="f", arguments_json='{"a": 1}')
NAN, INF = float("nan"), float("inf")
BAD = {
    "other model": (generate(model="gpt"), "UNKNOWN_MODEL", "'toy'"),
    "no prompt": (pb.GenerateRequest(), "MISSING_FIELD", "text or token_ids"),
    "empty ids": (generate(token_ids=ids()), "INVALID_PROMPT", "at least one token"),
    "empty text": (generate(text=""), "INVALID_PROMPT", "at least one token"),
    "id = vocabulary": (generate(token_ids=ids(1, 400)), "INVALID_PROMPT", "token_ids[1] is 400"),
    "largest id": (generate(token_ids=ids(2**32 - 1)), "INVALID_PROMPT", "4294967295"),
    "context full": (generate(token_ids=ids(*[9] * 4096)), "PROMPT_TOO_LONG", "at most 4095"),
    "temperature < 0": (sampling(temperature=-0.1), "INVALID_SAMPLING", "at least 0"),
    "temperature NaN": (sampling(temperature=NAN), "INVALID_SAMPLING", "sampling.temperature"),
    "temperature inf": (sampling(temperature=INF), "INVALID_SAMPLING", "is inf"),
    "top_p 0": (sampling(top_p=0), "INVALID_SAMPLING", "in (0, 1]"),
    "top_p > 1": (sampling(top_p=1.01), "INVALID_SAMPLING", "in (0, 1]"),
    "top_p NaN": (sampling(top_p=NAN), "INVALID_SAMPLING", "sampling.top_p"),
    "min_p < 0": (sampling(min_p=-0.5), "INVALID_SAMPLING", "in [0, 1]"),
    "min_p > 1": (sampling(min_p=1.5), "INVALID_SAMPLING", "in [0, 1]"),
    "frequency": (sampling(frequency_penalty=2.1), "INVALID_SAMPLING", "in [-2, 2]"),
    "presence": (sampling(presence_penalty=-2.1), "INVALID_SAMPLING", "in [-2, 2]"),
    "presence -inf": (sampling(presence_penalty=-INF), "INVALID_SAMPLING", "is -inf"),
    "repetition 0": (sampling(repetition_penalty=0), "INVALID_SAMPLING", "above 0"),
    "repetition inf": (sampling(repetition_penalty=INF), "INVALID_SAMPLING", "above 0"),
    "bias id": (sampling(logit_bias={400: 1}), "INVALID_SAMPLING", "token 400"),
    "bias 101": (sampling(logit_bias={7: 101}), "INVALID_SAMPLING", "in [-100, 100]"),
    "bias NaN": (sampling(logit_bias={7: NAN}), "INVALID_SAMPLING", "in [-100, 100]"),
    "max_tokens 0": (stop(max_tokens=0), "INVALID_STOP", "at least 1"),
    "max_tokens": (stop(max_tokens=4094), "INVALID_STOP", "at most 4093"),
    "17 stops": (stop(stop=[str(i) for i in range(17)]), "INVALID_STOP", "at most 16"),
    "empty stop": (stop(stop=["a", ""]), "INVALID_STOP", "0 bytes"),
    "long stop": (stop(stop=["é" * 129]), "INVALID_STOP", "258 bytes"),
    "stop id": (stop(stop_token_ids=[3, 400]), "INVALID_STOP", "token 400"),
    "logprobs": (generate(output=pb.OutputParams(logprobs=21)), "INVALID_OUTPUT", "0 to 20"),
    "no messages": (pb.ChatRequest(), "MISSING_FIELD", "messages"),
    "role": (chat(say("wizard")), "INVALID_MESSAGES", "system, user, assistant, tool"),
    "no role": (chat(say("")), "INVALID_MESSAGES", "messages[0].role"),
    "user calls": (chat(say("user", tool_calls=[CALL])), "INVALID_MESSAGES", "only an assistant"),
    "user answers": (chat(say("user", tool_call_id="1")), "INVALID_MESSAGES", "only a tool"),
    "answer to nothing": (chat(say("tool", tool_call_id="7")), "INVALID_MESSAGES", "'7'"),
    "arguments": (
        chat(say("assistant", tool_calls=[pb.ToolCall(name="f", arguments_json="{")])),
        "INVALID_MESSAGES",
        "messages[0].tool_calls[0].arguments_json: not JSON",
    ),
    "arguments list": (
        chat(say("assistant", tool_calls=[pb.ToolCall(name="f", arguments_json="[]")])),
        "INVALID_MESSAGES",
        "must be a JSON object",
    ),
    "nameless call": (
        chat(say("assistant", tool_calls=[pb.ToolCall(arguments_json="{}")])),
        "INVALID_MESSAGES",
        "the tool's name",
    ),
    "required": (chat(tool_choice="required"), "UNSUPPORTED_TOOL_CHOICE", "auto and none"),
    "a tool's name as choice": (chat(tool_choice="f"), "UNSUPPORTED_TOOL_CHOICE", "'f'"),
    "schema syntax": (chat(tools=[tool("{")]), "INVALID_TOOLS", "not JSON"),
    "schema NaN": (chat(tools=[tool('{"type": "object", "x": NaN}')]), "INVALID_TOOLS", "NaN"),
    "schema depth": (chat(tools=[tool("[" * 99999)]), "INVALID_TOOLS", "64 levels"),
    "half a surrogate": (
        chat(tools=[tool('{"type": "object", "description": "\\ud800"}')]),
        "INVALID_TOOLS",
        "surrogate",
    ),
    "not an object's": (chat(tools=[tool('{"type": "string"}')]), "INVALID_TOOLS", "an object"),
    "list schema": (chat(tools=[tool("[]")]), "INVALID_TOOLS", "an object"),
    "unknown type": (
        chat(tools=[tool('{"type": "object", "properties": {"a": {"type": "text"}}}')]),
        "INVALID_TOOLS",
        "parameters_json.properties.a.type",
    ),
    "properties": (
        chat(tools=[tool('{"type": "object", "properties": []}')]),
        "INVALID_TOOLS",
        "object of schemas",
    ),
    "items": (
        chat(tools=[tool('{"type": "object", "properties": {"a": {"items": 3}}}')]),
        "INVALID_TOOLS",
        "a.items",
    ),
    "required list": (
        chat(tools=[tool('{"type": "object", "required": "a"}')]),
        "INVALID_TOOLS",
        "property names",
    ),
    "tool name": (chat(tools=[tool(name="a b")]), "INVALID_TOOLS", "tools[0].name"),
    "same name": (chat(tools=[tool(), tool()]), "INVALID_TOOLS", "two tools"),
    "chat model": (chat(model="x"), "UNKNOWN_MODEL", "'x'"),
    "chat sampling": (chat(sampling=pb.SamplingParams(top_p=2)), "INVALID_SAMPLING", "top_p"),
}


@pytest.mark.parametrize("name", BAD)
async def test_refused(reader: RequestReader, name: str) -> None:
    request, reason, words = BAD[name]
    with pytest.raises(Refusal) as raised:
        await read(reader, request)
    assert raised.value.reason_name == f"ERROR_REASON_{reason}"
    assert words in raised.value.message


async def test_defaults_are_the_models(reader: RequestReader) -> None:
    job = await read(reader, generate())
    used = job.terms.sampling
    assert (used.temperature, used.top_p, used.top_k, used.repetition_penalty) == (0.5, 1, 0, 1)
    assert list(job.terms.stop.eos_token_ids) == [2, 0]
    assert job.ledger.max_tokens == 4096 - 3
    other = await read(reader, generate())
    assert used.seed != other.terms.sampling.seed, "an unset seed is drawn"


async def test_everything_that_is_set_arrives(reader: RequestReader) -> None:
    asked = pb.SamplingParams(
        temperature=0, top_p=0.25, top_k=7, min_p=0.5, frequency_penalty=-2, presence_penalty=2,
        repetition_penalty=1.5, logit_bias={399: -100, 0: 100}, seed=0,
    )  # fmt: skip
    ends = pb.StopParams(max_tokens=4093, stop=["a", "b"], stop_token_ids=[399], ignore_eos=True)
    output = pb.OutputParams(logprobs=20)
    job = await read(reader, generate(sampling=asked, stop=ends, output=output))
    used = job.terms.sampling
    for field in pb.SamplingParams.DESCRIPTOR.fields_by_name:
        assert getattr(used, field) == getattr(asked, field), field
    assert list(job.terms.stop.stop) == ["a", "b"]
    assert list(job.terms.stop.stop_token_ids) == [399]
    assert not job.terms.stop.eos_token_ids
    assert (job.terms.logprobs, job.ledger.max_tokens) == (20, 4093)
    assert job.ledger.stop_ids == {399}


async def test_largest_prompt(reader: RequestReader) -> None:
    job = await read(reader, generate(token_ids=ids(*[9] * 4095)))
    assert job.ledger.max_tokens == 1


async def test_sessions_of_two_tenants_are_two(reader: RequestReader) -> None:
    keys = set()
    for tenant, session in (("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")):
        job = await read(reader, generate(tenant=tenant, session_id=session))
        keys.add(job.terms.session)
    assert len(keys) == 4 and b"" in keys


async def test_tool_choice_none_renders_no_tools(reader: RequestReader) -> None:
    text, may_call = reader.render(chat(tools=[tool()], tool_choice="none"))
    assert not may_call and text == reader.render(chat())[0]
    text, may_call = reader.render(chat(tools=[tool()]))
    assert may_call and '"name": "f"' in text


async def test_tokenize_and_back(reader: RequestReader) -> None:
    text = "Ünïcödé <|done|> 🙂"
    tokens = await reader.tokenize(pb.TokenizeRequest(text=text))
    assert reader.detokenize(pb.DetokenizeRequest(token_ids=tokens)) == text
    skipped = pb.DetokenizeRequest(token_ids=tokens, skip_special_tokens=True)
    assert reader.detokenize(skipped) == text.replace("<|done|>", "")
    rendered = await reader.tokenize(pb.TokenizeRequest(chat=chat()))
    whole = reader.detokenize(pb.DetokenizeRequest(token_ids=rendered))
    assert whole == "<|turn|>user\nhi<|done|>\n<|turn|>assistant\n"
    with pytest.raises(Refusal, match="400"):
        reader.detokenize(pb.DetokenizeRequest(token_ids=[400]))
    with pytest.raises(Refusal, match="text or chat"):
        await reader.tokenize(pb.TokenizeRequest())


async def test_long_texts_are_tokenised_beside_the_loop(reader: RequestReader) -> None:
    text = "some words " * 20_000
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    tokens = await reader.tokenize(pb.TokenizeRequest(text=text))
    ticking.cancel()
    assert len(tokens) > 1000 and ticks > 3


def test_reasons_are_of_the_enum() -> None:
    assert {f"ERROR_REASON_{reason}" for _, reason, _ in BAD.values()} <= set(
        errors.ErrorReason.keys()
    )
