"""Two clusters behind one SMG: it sends a session to where its pages are, by KV events alone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .cluster import Cluster, Shape
from .conversing import MODEL, NAME
from .smg_process import post, running_smg

pytestmark = pytest.mark.slow

SESSIONS = 10
PAGE = 16


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    shape = Shape(prefill=0, decode=1, page_size=PAGE, router={"gateway": "smg"})
    with ExitStack() as stack:
        found = []
        for name in ("one", "two"):
            cluster = Cluster(MODEL, tmp_path_factory.mktemp(name), shape)
            stack.callback(cluster.stop)
            cluster.start()
            found.append(cluster)
        yield found


def cached(cluster: Cluster) -> float:
    return cluster.metrics("router").get("baton_prompt_tokens_cached_total", 0.0)


def went_home(clusters: list[Cluster], url: str, prompt: list[int]) -> int:
    """Sends a turn through the gateway: the cluster that had most of it cached, or -1."""
    before = [cached(cluster) for cluster in clusters]
    params = {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    body = {"model": NAME, "input_ids": prompt, "sampling_params": params}
    status, answer = post(f"{url}/generate", body)
    assert status == 200, answer
    grown = [cached(cluster) - old for cluster, old in zip(clusters, before, strict=True)]
    return grown.index(max(grown)) if max(grown) >= 6 * PAGE else -1


@pytest.mark.timeout(180)
def test_the_second_turn_goes_where_the_pages_are(
    clusters: list[Cluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first turns are had past the gateway, so that it can only know of them by events."""
    rng = random.Random(4)

    def session(home: int) -> list[int]:
        """A first turn at this cluster; the prompt of the second."""
        prompt = [rng.randrange(100, 2000) for _ in range(100)]
        first = clusters[home].generate(prompt, max_tokens=20)
        return prompt + first.token_ids + [rng.randrange(100, 2000) for _ in range(12)]

    workers = [f"grpc://{cluster.section('router')['listen']}" for cluster in clusters]
    arguments = [
        "--worker-urls", *workers, "--policy", "cache_aware", "--block-size", str(PAGE),
        "--worker-warmup-secs", "0", "--worker-warmup-divert-every", "0",
    ]  # fmt: skip
    with running_smg(tmp_path_factory.mktemp("smg"), *arguments) as url:
        homes = [i % 3 % 2 for i in range(SESSIONS)]  # 0 1 0 0 1 0 ...: no turn-taking hits it
        seconds = [session(home) for home in homes]
        # Events come in order: once a later session is found, those before it are known too.
        deadline = time.monotonic() + 60
        for home in range(len(clusters)):
            while went_home(clusters, url, session(home)) != home:
                assert time.monotonic() < deadline, "the gateway does not read the events"
                time.sleep(0.1)
        assert [went_home(clusters, url, prompt) for prompt in seconds] == homes
