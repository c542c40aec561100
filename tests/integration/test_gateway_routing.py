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


@pytest.mark.timeout(180)
def test_the_second_turn_goes_where_the_pages_are(
    clusters: list[Cluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first turns are had past the gateway, so that it can only know of them by events."""
    rng = random.Random(4)
    workers = [f"grpc://{cluster.section('router')['listen']}" for cluster in clusters]
    arguments = [
        "--worker-urls", *workers, "--policy", "cache_aware", "--block-size", str(PAGE),
        "--worker-warmup-secs", "0", "--worker-warmup-divert-every", "0",
    ]  # fmt: skip
    with running_smg(tmp_path_factory.mktemp("smg"), *arguments) as url:
        home: list[int] = []
        seconds: list[list[int]] = []
        for session in range(SESSIONS):
            prompt = [rng.randrange(100, 2000) for _ in range(100)]
            home.append(session % 3 % 2)  # 0 1 0 0 1 0 0 1 0 0: no turn-taking would hit it
            first = clusters[home[-1]].generate(prompt, max_tokens=20)
            turn = [rng.randrange(100, 2000) for _ in range(12)]
            seconds.append(prompt + first.token_ids + turn)
        time.sleep(1.0)  # nothing tells when SMG has read its events
        went: list[int] = []
        for prompt in seconds:
            before = [cached(cluster) for cluster in clusters]
            params = {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True}
            body = {"model": NAME, "input_ids": prompt, "sampling_params": params}
            status, answer = post(f"{url}/generate", body)
            assert status == 200, answer
            grown = [cached(cluster) - old for cluster, old in zip(clusters, before, strict=True)]
            went.append(grown.index(max(grown)) if max(grown) >= 7 * PAGE else -1)
        assert went == home
