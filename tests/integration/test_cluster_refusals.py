"""Bad requests get the right code and reason, and harm nobody: the next request works."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest

from baton.v1 import errors_pb2, inference_pb2
from baton_rpc import refusal_of

from .cluster import Cluster, Shape
from .conftest import StartCluster
from .oracle import Reference

Pb = inference_pb2
Request = tuple[str, Any]


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    with start_cluster(Shape(routing={"local_suffix_tokens": 0})) as cluster:
        yield cluster


@pytest.fixture
def next_request_works(cluster: Cluster, reference: Reference) -> Iterator[None]:
    yield
    prompt = [random.randrange(100, reference.vocab_size) for _ in range(40)]
    answer = cluster.generate(prompt, max_tokens=4)
    assert answer.token_ids == reference.greedy(prompt, 4)


def generate(**fields: Any) -> Request:
    request = {"token_ids": Pb.TokenIds(ids=[101, 102, 103]), **fields}
    return "Generate", Pb.GenerateRequest(**request)


def chat(**fields: Any) -> Request:
    message = Pb.ChatMessage(role="user", content="hello")
    return "Chat", Pb.ChatRequest(messages=[message], **fields)


def sampling(**fields: Any) -> Request:
    return generate(sampling=Pb.SamplingParams(**fields))


CASES: dict[str, tuple[Request, grpc.StatusCode, str]] = {
    "unknown model": (generate(model="no-such"), grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"),
    "empty prompt": (
        generate(token_ids=Pb.TokenIds()),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PROMPT",
    ),
    "token out of range": (
        generate(token_ids=Pb.TokenIds(ids=[10**9])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_PROMPT",
    ),
    "over-long prompt": (
        generate(token_ids=Pb.TokenIds(ids=[101] * 200_000)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PROMPT_TOO_LONG",
    ),
    "negative temperature": (
        sampling(temperature=-1.0),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_SAMPLING",
    ),
    "temperature NaN": (
        sampling(temperature=float("nan")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_SAMPLING",
    ),
    "top_p zero": (sampling(top_p=0.0), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SAMPLING"),
    "bias on no token": (
        sampling(logit_bias={10**9: 1.0}),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_SAMPLING",
    ),
    "empty stop string": (
        generate(stop=Pb.StopParams(stop=[""])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_STOP",
    ),
    "too many logprobs": (
        generate(output=Pb.OutputParams(logprobs=1000)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_OUTPUT",
    ),
    "unknown tool_choice": (
        chat(tool_choice="sometimes"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNSUPPORTED_TOOL_CHOICE",
    ),
    "tool schema is not JSON": (
        chat(tools=[Pb.Tool(name="f", parameters_json="{")]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_TOOLS",
    ),
    "unknown role": (
        ("Chat", Pb.ChatRequest(messages=[Pb.ChatMessage(role="wizard", content="x")])),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_MESSAGES",
    ),
}


def ask(cluster: Cluster, method: str, request: Any) -> list[Any]:
    return list(getattr(cluster.stub, method)(request, timeout=20))


def assert_refused(call: Callable[[], Any], code: grpc.StatusCode, reason: str) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    refusal = refusal_of(raised.value)
    assert raised.value.code() == code, raised.value.details()
    assert refusal is not None, raised.value.details()
    assert errors_pb2.ErrorReason.Name(refusal.reason) == f"ERROR_REASON_{reason}"
    return str(raised.value.details())


@pytest.mark.usefixtures("next_request_works")
@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_refused(cluster: Cluster, case: str) -> None:
    (method, request), code, reason = CASES[case]
    details = assert_refused(partial(ask, cluster, method, request), code, reason)
    assert len(details) > 20, "a refusal says what is wrong and what is allowed"


@pytest.mark.usefixtures("next_request_works")
def test_invalid_utf8(cluster: Cluster) -> None:
    """A text field whose bytes are not UTF-8 does not parse; the answer says so."""
    wire = b"\x12\x02\xff\xfe"  # GenerateRequest.text, two bytes
    with grpc.insecure_channel(cluster.config["router"]["listen"]) as channel:
        call = channel.unary_stream(
            "/baton.v1.InferenceService/Generate",
            request_serializer=lambda raw: raw,
            response_deserializer=Pb.GenerateResponse.FromString,
        )
        assert_refused(
            lambda: list(call(wire, timeout=20)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "MALFORMED_MESSAGE",
        )


def held_pages(cluster: Cluster) -> float:
    return sum(map(cluster.held_pages, cluster.workers))


def assert_pages_return(cluster: Cluster, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while held_pages(cluster) > 0:
        assert time.monotonic() < deadline, f"{held_pages(cluster)} pages still held"
        time.sleep(0.1)


@pytest.mark.usefixtures("next_request_works")
@pytest.mark.parametrize("prompt_tokens", [20, 600])
def test_deadline(cluster: Cluster, prompt_tokens: int) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        cluster.generate([150] * prompt_tokens, max_tokens=3000, timeout=0.5)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert_pages_return(cluster)


@pytest.mark.usefixtures("next_request_works")
@pytest.mark.parametrize("after_tokens", [0, 3])
def test_cancel(cluster: Cluster, after_tokens: int) -> None:
    stream = cluster.stream([160] * 300, max_tokens=3000)
    seen = 0
    for response in stream:
        seen += len(response.delta.token_ids)
        if seen >= after_tokens:
            break
    stream.cancel()  # type: ignore[attr-defined]
    assert_pages_return(cluster)


def test_many_bad_among_good(cluster: Cluster, reference: Reference) -> None:
    """Good requests stream while bad ones are refused beside them."""
    prompts = [[200 + i] * (30 + i) for i in range(6)]
    expected = [reference.greedy(prompt, 10) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(cluster.generate_all, prompts, max_tokens=10)
        while not good.done():
            for (method, request), code, reason in CASES.values():
                assert_refused(partial(ask, cluster, method, request), code, reason)
    assert [answer.token_ids for answer in good.result()] == expected
