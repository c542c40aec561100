"""Requests with known answers, and what may become of them while processes fail."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from integration.cluster import Cluster
from integration.oracle import Reference

from baton_rpc import refusal_of

DEADLINE_S = 60.0
SETTLE_S = 40.0  # a lease, a hold and a quarantine end by then


@dataclass(frozen=True)
class Known:
    """A prompt and the tokens that transformers answers it with."""

    prompt: list[int]
    tokens: list[int]


def known(reference: Reference, count: int, tokens: int) -> list[Known]:
    """Prompts of one to some twenty pages; neighbours share a prefix, so that pages are reused."""
    draw = random.Random(7)
    prompts: list[list[int]] = []
    for number in range(count):
        shared = prompts[-1][: draw.randrange(16, 96)] if number % 2 else []
        fresh = draw.randrange(30, 260)
        prompts.append(shared + [draw.randrange(100, reference.vocab_size) for _ in range(fresh)])
    return [Known(prompt, reference.greedy(prompt, tokens)) for prompt in prompts]


class Traffic:
    """Sends known requests from a few threads until it is stopped; judges every answer."""

    def __init__(self, cluster: Cluster, requests: list[Known], clients: int, seed: int) -> None:
        self._cluster = cluster
        self._requests = requests
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self.exact = 0
        self.failures: list[str] = []  # clear ones
        self._clients: list[Future[None]] = [
            self._pool.submit(self._client, random.Random(seed * 100 + number))
            for number in range(clients)
        ]

    def stop(self) -> None:
        """Waits for the running requests; raises what a client found wrong."""
        self._stopping.set()
        for client in self._clients:
            client.result(timeout=2 * DEADLINE_S)
        self._pool.shutdown()

    def _client(self, draw: random.Random) -> None:
        while not self._stopping.is_set():
            request = draw.choice(self._requests)
            failure = ask(self._cluster, request)
            if failure is None:
                self.exact += 1
            else:
                self.failures.append(failure)


def ask(cluster: Cluster, request: Known) -> str | None:
    """None when the answer was exact, else the reason that it failed with, which must be clear."""
    started = time.monotonic()
    try:
        answer = cluster.generate(
            request.prompt, max_tokens=len(request.tokens), timeout=DEADLINE_S
        )
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        took = time.monotonic() - started
        assert refusal is not None, f"failed after {took:.1f} s without a reason: {error}"
        return f"{refusal.reason_name}: {refusal.message}"
    assert answer.token_ids == request.tokens, "wrong tokens"
    return None


def at_baseline(cluster: Cluster, names: list[str]) -> None:
    """Every page of these workers is free, or cached and nobody's; none in quarantine."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        held = {}
        for name in names:
            totals = cluster.metrics(name)
            states = ("owned", "referenced", "leased", "quarantined")
            held[name] = {s: totals[f"baton_pool_pages:{s}"] for s in states}
            held[name]["beside"] = cluster.held_pages(name)
        if not any(any(states.values()) for states in held.values()):
            return
        assert time.monotonic() < deadline, f"pages still held: {held}"
        time.sleep(0.25)


def recovered(cluster: Cluster, requests: list[Known]) -> None:
    """Serves again, exactly, and nothing has leaked."""
    deadline = time.monotonic() + 30
    while (failure := ask(cluster, requests[0])) is not None:
        assert time.monotonic() < deadline, f"still failing: {failure}"
    at_baseline(cluster, cluster.workers)
