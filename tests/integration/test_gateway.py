"""The real SMG over a cluster: OpenAI's and Anthropic's APIs, tools, failures, the same tokens."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from tokenizers import Tokenizer

from baton.v1 import inference_pb2 as pb
from baton_router.chat_template import ChatTemplate

from .cluster import Cluster, Shape
from .conversing import MODEL, NAME, openai_tools, story, with_anthropic, with_openai
from .smg_process import post

LIMIT = 6
PROMPT = "There is no file /blue-hill/red-fox.txt. There is a file"
USER = {"role": "user", "content": "What does /blue-hill/red-fox.txt say?"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    shape = Shape(
        prefill=1,
        decode=2,
        gateway=True,
        routing={"local_suffix_tokens": 64},
        limits={"max_concurrent_requests": LIMIT},
    )
    cluster = Cluster(MODEL, tmp_path_factory.mktemp("gateway"), shape)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    return f"http://{cluster.section('gateway')['listen']}"


@pytest.fixture(scope="module")
def environment(url: str) -> Iterator[None]:
    """The variables that docs/clients.md names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        patch.setenv("OPENAI_API_KEY", "none")
        patch.setenv("ANTHROPIC_BASE_URL", url)
        patch.setenv("ANTHROPIC_API_KEY", "none")
        yield


@pytest.fixture(scope="module")
def client(environment: None) -> openai.OpenAI:
    return openai.OpenAI(max_retries=0)


@pytest.fixture(scope="module")
def claude(environment: None) -> anthropic.Anthropic:
    return anthropic.Anthropic(max_retries=0)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- endpoints


def test_chat_completions(client: openai.OpenAI) -> None:
    fields: Any = {"model": NAME, "messages": [USER], "max_tokens": 10}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    stream = client.chat.completions.create(
        **fields, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    usage = pieces[-1].usage
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 10
    assert len([p for p in pieces if p.choices and p.choices[0].delta.content]) > 1
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 10
    for entry in logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy


def test_several_samples(client: openai.OpenAI) -> None:
    fields: Any = {
        "model": NAME,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 40,
        "temperature": 2.0,
        "seed": 5,
        "extra_body": {"ignore_eos": True},
    }
    several = client.chat.completions.create(**fields, n=3)
    texts = {choice.index: choice.message.content for choice in several.choices}
    assert sorted(texts) == [0, 1, 2] and len(set(texts.values())) > 1
    assert client.chat.completions.create(**fields).choices[0].message.content == texts[0]
    streamed = ["", "", ""]
    for piece in client.chat.completions.create(**fields, n=3, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [texts[0], texts[1], texts[2]]


def test_completions(client: openai.OpenAI) -> None:
    fields: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 10}
    whole = client.completions.create(**fields)
    pieces = list(client.completions.create(**fields, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert whole.choices[0].text and whole.choices[0].finish_reason == "stop"


def test_responses(client: openai.OpenAI) -> None:
    fields: Any = {"model": NAME, "input": USER["content"], "max_output_tokens": 24}
    whole = client.responses.create(**fields)
    deltas = [
        event.delta
        for event in client.responses.create(**fields, stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == whole.output_text != ""


def test_messages(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": NAME, "messages": [USER], "max_tokens": 24}
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].to_dict() == whole.content[0].to_dict()
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0


def test_a_stop_string_is_named(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    plain = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=16).choices[0].text
    stop = plain[4:6]
    cut = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=16, stop=[stop])
    assert cut.choices[0].text == plain.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    said = claude.messages.create(
        model=NAME, messages=[USER], max_tokens=24, stop_sequences=["file"]
    )
    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", "file")


# ---- the same tokens


def test_token_ids_are_those_of_baton(cluster: Cluster, url: str) -> None:
    for begin, length in ((7, 5), (60, 90), (100, 33)):
        prompt = list(range(begin, begin + length))
        own = cluster.generate(prompt, max_tokens=24)
        params = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
        status, answer = post(
            f"{url}/generate", {"model": NAME, "input_ids": prompt, "sampling_params": params}
        )
        assert status == 200, answer
        answer = answer[0] if isinstance(answer, list) else answer
        assert answer["output_ids"] == own.token_ids
        assert answer["meta_info"]["prompt_tokens"] == length


def test_chat_renders_the_prompt_as_baton_does(cluster: Cluster, client: openai.OpenAI) -> None:
    """Tokens of a chat with tools: the gateway's template engine against Baton's, which is
    compared with transformers elsewhere."""
    told = story()
    messages = [
        {"role": "system", "content": told.system},
        {"role": "user", "content": told.questions[0]},
    ]
    template = ChatTemplate((MODEL / "chat_template.jinja").read_text(), {})
    text = template.render(messages, openai_tools(told))
    expected = len(Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids)
    asked: Any = {"model": NAME, "messages": messages, "tools": openai_tools(told)}
    done = client.chat.completions.create(**asked, max_tokens=48)
    assert done.usage is not None and done.usage.prompt_tokens == expected
    chat = pb.ChatRequest(stop=pb.StopParams(max_tokens=48))
    for message in messages:
        chat.messages.add(role=message["role"], content=message["content"])
    for tool in told.tools:
        chat.tools.add(
            name=tool["name"],
            description=tool["description"],
            parameters_json=json.dumps(tool["parameters"]),
        )
    calls = [c for r in cluster.stub.Chat(chat, timeout=30) for c in r.delta.tool_calls]
    through = done.choices[0].message.tool_calls
    assert through is not None and len(through) == len(calls) > 0
    for ours, theirs in zip(calls, through, strict=True):
        assert theirs.type == "function" and theirs.function.name == ours.name
        assert json.loads(theirs.function.arguments) == json.loads(ours.arguments_json)


# ---- agents


def test_openai_sdk_completes_a_tool_conversation(client: openai.OpenAI) -> None:
    told = story()
    answers, cached, calls = with_openai(client, told)
    assert_answered(told, answers)
    assert calls >= 3
    assert all(tokens > 0 for tokens in cached[1:]), cached  # each turn finds the one before


def test_anthropic_sdk_completes_a_tool_conversation(
    cluster: Cluster, claude: anthropic.Anthropic
) -> None:
    told = story()
    before = cluster.metrics("router")["baton_prompt_tokens_cached_total"]
    answers, calls = with_anthropic(claude, told)
    assert_answered(told, answers)
    assert calls >= 3
    assert cluster.metrics("router")["baton_prompt_tokens_cached_total"] > before


def assert_answered(told: Any, answers: list[str]) -> None:
    assert len(answers) == len(told.questions) == 3
    for question, answer in zip(told.requests, answers, strict=True):
        assert question.answered_by(answer), (question.text, answer)


def test_tool_arguments_stream(client: openai.OpenAI) -> None:
    told = story()
    asked: Any = {
        "model": NAME,
        "messages": [{"role": "system", "content": told.system}, USER],
        "tools": openai_tools(told),
        "max_tokens": 60,
    }
    pieces: list[str] = []
    names: list[str] = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            if call.function is not None:
                names += [call.function.name] if call.function.name else []
                pieces += [call.function.arguments] if call.function.arguments else []
    assert names == ["read_file"]
    assert json.loads("".join(pieces)) == {"path": "/blue-hill/red-fox.txt"}
    assert len(pieces) > 3


# ---- structured output

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "pattern": "^/[a-z-]{1,12}$"},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"type": "string", "enum": ["file", "note"]},
    },
    "required": ["path", "size", "kind"],
    "additionalProperties": False,
}


def test_json_schema_output_validates(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}
    fields: Any = {"model": NAME, "messages": [USER], "response_format": form, "max_tokens": 200}
    for temperature in (0.0, 1.5):
        done = client.chat.completions.create(**fields, temperature=temperature, seed=3)
        assert done.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(done.choices[0].message.content or ""), SCHEMA)
    stream = client.chat.completions.create(**fields, temperature=1.5, seed=3, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices)
    assert text == done.choices[0].message.content


def test_regex_and_grammar(client: openai.OpenAI, cluster: Cluster) -> None:
    fields: Any = {"model": NAME, "messages": [USER], "max_tokens": 60}
    said = client.chat.completions.create(**fields, extra_body={"regex": "[0-9]{3}-(up|down)"})
    assert re.fullmatch("[0-9]{3}-(up|down)", said.choices[0].message.content or "")
    ebnf = 'root ::= ("yes" | "no") " " [a-c]+ "."'
    said = client.chat.completions.create(**fields, extra_body={"ebnf": ebnf})
    through = said.choices[0].message.content or ""
    assert re.fullmatch(r"(yes|no) [a-c]+\.", through)
    request = pb.ChatRequest(
        messages=[pb.ChatMessage(**USER)],
        stop=pb.StopParams(max_tokens=60),
        output=pb.OutputParams(constraint=pb.Constraint(ebnf=ebnf)),
    )
    own = "".join(r.delta.content for r in cluster.stub.Chat(request, timeout=30))
    assert own == through


def test_a_tool_must_be_called(client: openai.OpenAI) -> None:
    told = story()
    done = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "hello"}],
        tools=openai_tools(told),
        tool_choice={"type": "function", "function": {"name": "calc"}},
        max_tokens=200,
    )
    calls = done.choices[0].message.tool_calls
    assert calls is not None and len(calls) == 1
    assert calls[0].type == "function" and calls[0].function.name == "calc"
    assert set(json.loads(calls[0].function.arguments)) == {"expression"}


def prompt_tokens(cluster: Cluster) -> list[float]:
    """Computed so far by each worker."""
    return [cluster.metrics(name)["baton_prompt_tokens_computed_total"] for name in cluster.workers]


def test_a_bad_schema_is_400(client: openai.OpenAI, cluster: Cluster) -> None:
    computed = [
        cluster.metrics(name)["baton_prompt_tokens_computed_total"] for name in cluster.workers
    ]
    for schema, reason in (
        ({"type": "whole"}, "whole"),
        ({"type": "object", "not": {}}, "'not' is not supported"),
    ):
        form: Any = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                client.chat.completions.create(
                    model=NAME, messages=[USER], response_format=form, stream=stream
                )
            assert reason in str(raised.value)
    after = [
        cluster.metrics(name)["baton_prompt_tokens_computed_total"] for name in cluster.workers
    ]
    assert after == computed  # refused before any work


# ---- refusals


def test_refusals_say_why(client: openai.OpenAI, url: str) -> None:
    long = " red-fox" * 3000
    refused: list[tuple[dict[str, Any], str]] = [
        ({"prompt": long, "max_tokens": 5}, "token"),
        ({"prompt": PROMPT, "max_tokens": 9000}, "max_tokens is 9000"),
        ({"prompt": PROMPT, "max_tokens": 5, "extra_body": {"min_tokens": 3}}, "min_new_tokens"),
        ({"prompt": PROMPT, "max_tokens": 5, "n": 40}, "sampling_params.n"),
    ]
    for fields, reason in refused:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                client.completions.create(model=NAME, stream=stream, **fields)
            assert reason in str(raised.value)


def test_overload_is_429(cluster: Cluster, url: str) -> None:
    """The router is full; the gateway tries again a few times and then says so."""
    streams = [cluster.stream([5, 6, 7 + i], max_tokens=3000, timeout=120.0) for i in range(LIMIT)]
    try:
        for stream in streams:
            assert next(stream).WhichOneof("event") == "accepted"
        body = {"model": NAME, "prompt": PROMPT, "max_tokens": 5}
        status, answer = post(f"{url}/v1/completions", body)
        assert status == 429, answer
        assert f"runs {LIMIT} requests" in json.dumps(answer)
    finally:
        for stream in streams:
            stream.cancel()  # type: ignore[attr-defined]
    until(lambda: held(cluster) == 0)


def held(cluster: Cluster) -> float:
    return sum(cluster.held_pages(name) for name in cluster.workers)


# ---- clients and workers that leave


def test_a_client_that_leaves_frees_its_pages(cluster: Cluster, client: openai.OpenAI) -> None:
    """`make bench-gateway` shows the time that it prints."""
    workers = ("decode-0", "decode-1")
    generated = "baton_generation_tokens_total"
    before = sum(cluster.metrics(name)[generated] for name in workers)
    times: list[float] = []
    for _ in range(5):
        stream = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=3500, stream=True, extra_body={"ignore_eos": True}
        )
        for _, _chunk in zip(range(5), stream, strict=False):
            assert held(cluster) > 0
        left = time.perf_counter()
        stream.close()
        until(lambda: held(cluster) == 0)
        times.append(time.perf_counter() - left)
    after = sum(cluster.metrics(name)[generated] for name in workers)
    assert after - before < 3500  # they did not just run to their ends
    print(
        f"\npages free {statistics.median(times) * 1e3:.0f} ms after the client left (median of 5)"
    )


def test_a_killed_worker_is_invisible(cluster: Cluster, client: openai.OpenAI) -> None:
    """Under a grammar, too: the next worker finds its place in the language again.

    Last of those that need both decode workers."""
    fields: Any = {
        "model": NAME,
        "messages": [USER],
        "max_tokens": 1500,
        "extra_body": {"regex": "([a-z]{1,6} ){150}end"},
    }
    expected = client.chat.completions.create(**fields).choices[0].message.content or ""
    assert expected.count(" ") == 150 and expected.endswith(" end")
    pieces: list[str] = []
    failure: list[BaseException] = []

    def read() -> None:
        try:
            for chunk in client.chat.completions.create(**fields, stream=True):
                pieces.append(chunk.choices[0].delta.content or "")
        except BaseException as error:
            failure.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(pieces) > 10)
    running = [
        name
        for name in ("decode-0", "decode-1")
        if cluster.metrics(name)["baton_num_requests_running"] > 0
    ]
    assert len(running) == 1
    cluster.kill(running[0])
    reader.join(timeout=60)
    assert not failure and not reader.is_alive()
    assert "".join(pieces) == expected
    assert cluster.metrics("router")["baton_failovers_total"] >= 1


# ---- the protocol itself


def test_the_tokenizer_travels_as_a_bundle(cluster: Cluster, tmp_path: Path) -> None:
    import hashlib
    import io
    import zipfile

    import grpc
    from smg_grpc_proto.generated import common_pb2

    with grpc.insecure_channel(cluster.section("router")["listen"]) as channel:
        call = channel.unary_stream(
            "/tokenspeed.grpc.scheduler.TokenSpeedScheduler/GetTokenizer",
            request_serializer=common_pb2.GetTokenizerRequest.SerializeToString,
            response_deserializer=common_pb2.GetTokenizerChunk.FromString,
        )
        chunks = list(call(common_pb2.GetTokenizerRequest(), timeout=10))
    data = b"".join(chunk.data for chunk in chunks)
    assert [bool(chunk.sha256) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert hashlib.sha256(data).hexdigest() == chunks[-1].sha256
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("tokenizer.json") == (MODEL / "tokenizer.json").read_bytes()
        assert "chat_template.jinja" in archive.namelist()
