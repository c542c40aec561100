"""Processes die, stop and come back under load: answers are exact, or fail with a reason.

Free pages are poisoned in every worker: a stale byte that is used changes tokens. Each test ends
with every pool back at its baseline. What happens is drawn from a seed; when it meets which
state of which request is up to the machine, which is the point.
"""

from __future__ import annotations

import random
import time

import pytest
from integration.cluster import Cluster

from .traffic import Known, Traffic, recovered

TRANSPORT = "local"
LISTS = True
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def seeds(quick: int, all_of_them: int) -> list[object]:
    """The first `quick` ones run in `make test`, the others in `make test-chaos` only."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, all_of_them)]
    return [*range(quick), *slow]


@pytest.mark.parametrize("seed", seeds(1, 6))
def test_aborted_at_any_point(cluster: Cluster, requests: list[Known], seed: int) -> None:
    draw = random.Random(seed)
    traffic = Traffic(cluster, requests, 2, seed)
    for _ in range(12):
        request = draw.choice(requests)
        call = cluster.stream(request.prompt, max_tokens=len(request.tokens))
        time.sleep(draw.random() ** 2 * 0.6)
        call.cancel()  # type: ignore[attr-defined]
    traffic.stop()
    assert traffic.exact and not traffic.failures, traffic.failures
    recovered(cluster, requests)


@pytest.mark.parametrize("seed", seeds(1, 8))
def test_a_worker_killed_at_any_point_and_back_under_its_name(
    cluster: Cluster, requests: list[Known], seed: int
) -> None:
    draw = random.Random(100 + seed)
    # Prefill and decode workers in turn, so that any number of seeds meets both.
    victim = f"{('prefill', 'decode')[seed % 2]}-{draw.randrange(2)}"
    traffic = Traffic(cluster, requests, 3, seed)
    time.sleep(0.3 + draw.random())
    cluster.kill(victim)
    time.sleep(draw.random())
    cluster.start([victim])
    time.sleep(draw.random())
    traffic.stop()
    assert traffic.exact
    recovered(cluster, requests)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_stopped_worker_wakes_up_later(
    cluster: Cluster, requests: list[Known], seed: int
) -> None:
    """As holder: its readers give up. As reader: its leases expire while it sleeps, and their
    pages are given to others before it wakes and goes on reading."""
    draw = random.Random(200 + seed)
    victim = f"{('prefill', 'decode')[seed % 2]}-{draw.randrange(2)}"
    traffic = Traffic(cluster, requests, 3, seed)
    for _ in range(3):
        time.sleep(0.2 + 0.5 * draw.random())
        cluster.pause(victim)
        time.sleep(draw.choice([0.3, 2.0, 5.0]))
        cluster.resume(victim)
    time.sleep(0.5)
    traffic.stop()
    assert traffic.exact
    recovered(cluster, requests)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_nothing_fails_without_a_kvstore(
    cluster: Cluster, requests: list[Known], seed: int
) -> None:
    traffic = Traffic(cluster, requests, 3, 300 + seed)
    time.sleep(random.Random(300 + seed).random())
    cluster.kill("kvstore")
    time.sleep(3.0)
    cluster.start(["kvstore"])
    time.sleep(1.0)
    traffic.stop()
    assert traffic.exact and not traffic.failures, traffic.failures
    recovered(cluster, requests)
