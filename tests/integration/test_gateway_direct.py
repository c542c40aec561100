"""`smg launch --pd-disaggregation` over the workers themselves, no router in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from .cluster import Cluster, Shape
from .conversing import MODEL, story, with_openai
from .smg_process import post, running_smg

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NAME = MODEL.name
COMPUTED = "baton_prompt_tokens_computed_total"
MOVED = "baton_pages_moved_total"
PROMPT = "There is no file /blue-hill/red-fox.txt. There is a file"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    shape = Shape(routing={"local_suffix_tokens": 0}, worker={"gateway": "smg"})
    cluster = Cluster(MODEL, tmp_path_factory.mktemp("direct"), shape)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def url(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    prefill, decode = (cluster.section(f"{role}-0")["listen"] for role in ("prefill", "decode"))
    arguments = [
        "--pd-disaggregation", "--prefill", f"grpc://{prefill}", prefill.rpartition(":")[2],
        "--decode", f"grpc://{decode}", "--policy", "round_robin",
        "--tool-call-parser", "qwen", "--reasoning-parser", "qwen3",
    ]  # fmt: skip
    with running_smg(tmp_path_factory.mktemp("smg"), *arguments) as url:
        yield url


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def held(cluster: Cluster) -> float:
    return sum(cluster.held_pages(name) for name in cluster.workers if name in cluster.processes)


def test_a_pair_of_workers_serves_without_a_router(cluster: Cluster, url: str) -> None:
    for begin, length in ((60, 90), (300, 91), (900, 3)):
        ids = list(range(begin, begin + length))
        before = cluster.metrics("decode-0")
        params: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.0, "ignore_eos": True}
        status, answer = post(
            f"{url}/generate", {"model": NAME, "input_ids": ids, "sampling_params": params}
        )
        assert status == 200, answer
        answer = answer[0] if isinstance(answer, list) else answer
        after = cluster.metrics("decode-0")
        assert after[MOVED] > before.get(MOVED, 0)  # handed over,
        assert after.get(COMPUTED, 0) == before.get(COMPUTED, 0)  # not computed here
        assert answer["output_ids"] == cluster.generate(ids, max_tokens=24).token_ids

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    told = story()
    answers, _, calls = with_openai(client, told, model=NAME)
    assert calls >= 3 and len(answers) == 3
    for asked, said in zip(told.requests, answers, strict=True):
        assert asked.answered_by(said)
    until(lambda: held(cluster) == 0)

    stream = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=3500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    until(lambda: held(cluster) == 0)

    for fields, reason in (
        ({"prompt": " red-fox" * 3000, "max_tokens": 5}, "token"),
        ({"prompt": PROMPT, "max_tokens": 5, "extra_body": {"min_tokens": 3}}, "min_new_tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            client.completions.create(model=NAME, **fields)  # type: ignore[arg-type]
        assert reason in str(raised.value)


def test_a_killed_decode_worker_is_an_error_and_not_a_hang(cluster: Cluster, url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    seen: list[str] = []
    outcome: list[BaseException | None] = []

    def read() -> None:
        try:
            for chunk in client.completions.create(
                model=NAME,
                prompt=PROMPT,
                max_tokens=3500,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                seen.append(chunk.choices[0].text)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(seen) > 5)
    cluster.kill("decode-0")
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert isinstance(outcome[0], openai.APIError)
    until(lambda: held(cluster) == 0)


def test_a_killed_prefill_worker_is_an_error_and_not_a_hang(cluster: Cluster, url: str) -> None:
    cluster.kill("prefill-0")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    with pytest.raises(openai.APIStatusError):
        client.completions.create(model=NAME, prompt=PROMPT, max_tokens=5)
    until(lambda: held(cluster) == 0)
