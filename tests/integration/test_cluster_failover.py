"""kill -9 of a worker under a stream: the client notices nothing but a pause."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from baton.v1 import inference_pb2

from .cluster import Answer, Cluster, Shape, collect
from .conftest import StartCluster
from .oracle import Reference

MAX_TOKENS = 200
SETTLE_SECONDS = 15.0


@pytest.fixture
def cluster(start_cluster: StartCluster) -> Iterator[Cluster]:
    shape = Shape(
        prefill=2,
        decode=2,
        routing={"local_suffix_tokens": 0},
        worker={"max_chunk_tokens": 32},
    )
    with start_cluster(shape) as cluster:
        yield cluster


def prompt_of(length: int, reference: Reference, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(100, reference.vocab_size) for _ in range(length)]


class Streaming:
    """A request read in a thread, so that the test can act in the middle of it."""

    def __init__(self, cluster: Cluster, prompt: list[int], max_tokens: int) -> None:
        self.seen = 0
        self._stream = cluster.stream(prompt, max_tokens=max_tokens)
        pool = ThreadPoolExecutor(1)
        self._answer = pool.submit(lambda: collect(self._counted()))
        pool.shutdown(wait=False)

    def _counted(self) -> Iterator[inference_pb2.GenerateResponse]:
        for response in self._stream:
            yield response
            self.seen += len(response.delta.token_ids)

    def wait_for_tokens(self, count: int, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.seen < count and not self._answer.done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.seen} of {count} tokens after {seconds} s")
            time.sleep(0.002)

    def answer(self) -> Answer:
        return self._answer.result(timeout=60)


def assert_nothing_leaked(cluster: Cluster, workers: list[str]) -> None:
    """Every page of every survivor is free or a cached page that nobody holds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        held = {name: cluster.held_pages(name) for name in workers}
        if not any(held.values()):
            return
        assert time.monotonic() < deadline, f"pages still held: {held}"
        time.sleep(0.2)


def decode_worker_of(cluster: Cluster) -> str:
    """The decode worker that has a request running."""
    running = [
        name
        for name in cluster.workers
        if name.startswith("decode") and cluster.metrics(name)["baton_num_requests_running"] > 0
    ]
    assert len(running) == 1, running
    return running[0]


def test_decode_worker_killed_mid_stream(cluster: Cluster, reference: Reference) -> None:
    prompt = prompt_of(150, reference, seed=1)
    streaming = Streaming(cluster, prompt, MAX_TOKENS)
    streaming.wait_for_tokens(10)
    victim = decode_worker_of(cluster)
    cluster.kill(victim)
    answer = streaming.answer()

    assert answer.token_ids == reference.greedy(prompt, MAX_TOKENS)
    assert answer.usage.attempts == 2
    survivors = [name for name in cluster.workers if name != victim]
    assert_nothing_leaked(cluster, survivors)
    assert cluster.generate(prompt, max_tokens=5).token_ids == answer.token_ids[:5]


def test_prefill_worker_killed_while_it_computes(cluster: Cluster, reference: Reference) -> None:
    """The decode worker keeps what arrived and computes the rest itself, or another one does."""
    prompt = prompt_of(600, reference, seed=2)
    streaming = Streaming(cluster, prompt, 40)
    victim = busy_prefill(cluster)
    cluster.kill(victim)
    answer = streaming.answer()

    assert answer.token_ids == reference.greedy(prompt, 40)
    survivors = [name for name in cluster.workers if name != victim]
    assert_nothing_leaked(cluster, survivors)
    assert cluster.generate(prompt, max_tokens=5).token_ids == answer.token_ids[:5]


def busy_prefill(cluster: Cluster) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for name in cluster.workers:
            if name.startswith("prefill"):
                totals = cluster.metrics(name)
                if totals["baton_num_requests_running"] > 0:
                    return name
    raise TimeoutError("no prefill worker became busy")


def test_prefill_worker_killed_while_decode_streams(cluster: Cluster, reference: Reference) -> None:
    prompt = prompt_of(90, reference, seed=3)
    streaming = Streaming(cluster, prompt, MAX_TOKENS)
    streaming.wait_for_tokens(5)
    cluster.kill("prefill-0")
    answer = streaming.answer()
    assert answer.token_ids == reference.greedy(prompt, MAX_TOKENS)
    assert_nothing_leaked(cluster, ["prefill-1", "decode-0", "decode-1"])
