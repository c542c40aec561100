"""As test_cluster_faults, over TCP, where the holder's own process must send what is read.

A holder that was stopped past its reader's deadline may be aborted by UCX when it wakes; it is
then a worker that died, and whoever supervises it starts it again.
"""

from __future__ import annotations

import random
import time

import pytest
from integration.cluster import Cluster

from .traffic import Known, Traffic, recovered

TRANSPORT = "tcp"
LISTS = False
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("seed", range(4))
def test_a_stopped_holder_wakes_or_is_started_again(
    cluster: Cluster, requests: list[Known], seed: int
) -> None:
    draw = random.Random(400 + seed)
    victim = f"{('prefill', 'decode')[seed % 2]}-{draw.randrange(2)}"
    traffic = Traffic(cluster, requests, 3, seed)
    for _ in range(2):
        time.sleep(0.2 + 0.5 * draw.random())
        cluster.pause(victim)
        time.sleep(draw.choice([0.5, 4.0, 8.0]))
        cluster.resume(victim)
        time.sleep(0.5)
        cluster.revive(victim)
    traffic.stop()
    assert traffic.exact
    recovered(cluster, requests)


def test_a_holder_killed_over_tcp(cluster: Cluster, requests: list[Known]) -> None:
    traffic = Traffic(cluster, requests, 3, 9)
    time.sleep(0.7)
    cluster.kill("prefill-1")
    time.sleep(0.5)
    cluster.start(["prefill-1"])
    traffic.stop()
    assert traffic.exact
    recovered(cluster, requests)
