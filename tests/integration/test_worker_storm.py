"""Two routers, two workers, everything at once; and workers that lose a part of themselves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire

from .cluster import Cluster, Shape
from .oracle import Reference
from .raw_router import RawRouter, request, routers

OUTPUT = 6


async def until(what: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.05)


def held(cluster: Cluster, name: str) -> float:
    totals = cluster.metrics(name)
    return (
        cluster.held_pages(name)
        + totals["baton_pool_pages:leased"]
        + totals["baton_pool_pages:quarantined"]
        + totals["baton_num_requests_running"]
        + totals["baton_num_requests_waiting"]
    )


def prompts_of(count: int, seed: int) -> list[list[int]]:
    """Some share a prefix, so that pages are shared too."""
    draw = random.Random(seed)
    stem = [draw.randrange(100, 2000) for _ in range(64)]
    return [
        stem[: draw.choice([0, 16, 40, 64])]
        + [draw.randrange(100, 2000) for _ in range(draw.randrange(1, 120))]
        for _ in range(count)
    ]


async def hand_over(p: RawRouter, d: RawRouter, name: str, prompt: list[int]) -> None:
    legs = [
        p.start(
            request(
                name,
                prompt,
                max_new_tokens=OUTPUT,
                prefill_for=wire.StartRequest.PrefillFor(reader=d.hello.peer.name),
            )
        ),
        d.start(
            request(
                name,
                prompt,
                max_new_tokens=OUTPUT,
                await_prefill=wire.StartRequest.AwaitPrefill(prefill=p.hello.peer),
                # Also what it may hold already, wherever that is.
                sources=[wire.PageSource(holder=p.hello.peer, pages=4)],
            )
        ),
    ]
    await asyncio.gather(*random.sample(legs, 2))


@pytest.mark.timeout(180)
async def test_a_storm(deepseek_checkpoint: Path, tmp_path: Path, reference: Reference) -> None:
    """Every request ends exactly once; what ends well is right; nothing is left behind.

    The pool is small, so that requests are retracted and wait.
    """
    shape = Shape(num_pages=64, worker={"max_context": 512, "max_chunk_tokens": 32})
    cluster = Cluster(deepseek_checkpoint, tmp_path, shape)
    prompts = prompts_of(40, 1)
    draw = random.Random(2)
    try:
        cluster.start(["prefill-0", "decode-0"])
        prefill, decode = (cluster.section(n)["listen"] for n in ("prefill-0", "decode-0"))
        async with routers(prefill, decode, prefill, decode) as (p1, d1, p2, d2):
            sent: dict[str, tuple[RawRouter, int, bool]] = {}
            for n, prompt in enumerate(prompts):
                p, d = draw.choice([(p1, d1), (p2, d2)])
                name = f"storm-{n}"
                kind = draw.random()
                if kind < 0.3:
                    await d.start(request(name, prompt, max_new_tokens=OUTPUT))
                else:
                    await hand_over(p, d, name, prompt)
                cancelled = draw.random() < 0.25
                if cancelled:
                    await asyncio.sleep(draw.random() * 0.05)
                    await d.cancel(name)
                    await p.cancel(name)
                elif kind > 0.9:
                    lost = wire.PrefillLost(request_id=name, attempt=0)
                    await d.send(wire.Command(prefill_lost=lost))
                    await p.cancel(name)
                sent[name] = (d, n, cancelled)
                if draw.random() < 0.3:
                    await asyncio.sleep(draw.random() * 0.1)
            for name, (d, n, cancelled) in sent.items():
                last = await d.over(name)
                if not cancelled:
                    assert last.HasField("done"), (name, last)
                if last.HasField("done"):
                    expected = await asyncio.to_thread(reference.greedy, prompts[n], OUTPUT)
                    assert d.tokens(name) == expected, name
            for d in (d1, d2):
                for key, updates in d.updates.items():
                    ends = [u for u in updates if u.WhichOneof("update") in ("done", "failed")]
                    assert len(ends) == 1 and updates[-1] == ends[0], key
        for worker in ("prefill-0", "decode-0"):
            await until(lambda w=worker: held(cluster, w) == 0)  # type: ignore[misc]
    finally:
        cluster.stop()


@pytest.mark.chaos
async def test_a_prefill_worker_that_is_killed(
    deepseek_checkpoint: Path, tmp_path: Path, reference: Reference
) -> None:
    """The decode worker sees it by itself and computes what is missing."""
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(worker={"max_chunk_tokens": 16}))
    prompts = [prompt[:100] + [7] * 200 for prompt in prompts_of(4, 3)]
    try:
        cluster.start(["prefill-0", "decode-0"])
        prefill, decode = (cluster.section(n)["listen"] for n in ("prefill-0", "decode-0"))
        async with routers(prefill, decode) as (p, d):
            for n, prompt in enumerate(prompts):
                await hand_over(p, d, f"kill-{n}", prompt)
            await until(lambda: cluster.metrics("decode-0").get("baton_pages_moved_total", 0) > 0)
            cluster.kill("prefill-0")
            for n, prompt in enumerate(prompts):
                assert (await d.over(f"kill-{n}")).HasField("done")
                assert d.tokens(f"kill-{n}") == reference.greedy(prompt, OUTPUT)
        await until(lambda: held(cluster, "decode-0") == 0)
    finally:
        cluster.stop()


@pytest.mark.chaos
async def test_pages_travel_back_to_the_prefill_worker(
    deepseek_checkpoint: Path, tmp_path: Path, reference: Reference
) -> None:
    """A second turn: the prefill worker pulls generated pages from the decode worker, and the
    decode worker pulls only what it lacks."""
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape())
    prompt = prompts_of(1, 5)[0][:50]
    try:
        cluster.start(["prefill-0", "decode-0"])
        prefill, decode = (cluster.section(n)["listen"] for n in ("prefill-0", "decode-0"))
        async with routers(prefill, decode) as (p, d):
            await d.start(request("turn-1", prompt, max_new_tokens=80))
            await d.over("turn-1")
            second = prompt + d.tokens("turn-1") + [300, 301, 302] * 10
            pages = (len(prompt) + 79) // 16  # the last token's KV was never computed
            plan = wire.StartRequest.PrefillFor(reader=d.hello.peer.name)
            sources = [wire.PageSource(holder=d.hello.peer, pages=pages)]
            await p.start(request("turn-2", second, prefill_for=plan, sources=sources))
            awaiting = wire.StartRequest.AwaitPrefill(prefill=p.hello.peer)
            await d.start(request("turn-2", second, await_prefill=awaiting))
            done = (await d.over("turn-2")).done
            assert d.tokens("turn-2") == reference.greedy(second, 8)
            assert done.cost.reused_tokens == 16 * pages
            assert done.cost.fetched_tokens == len(second) - 16 * pages
            assert done.cost.computed_tokens == 0
            left = (await p.over("turn-2")).done
            assert left.cost.fetched_tokens == 16 * pages
            assert left.cost.computed_tokens == len(second) - 16 * pages
    finally:
        cluster.stop()


@pytest.mark.chaos
async def test_a_worker_that_loses_a_rank_says_so_and_ends(
    deepseek_checkpoint: Path, tmp_path: Path
) -> None:
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(prefill=0, tp=2))
    try:
        cluster.start(["decode-0"])
        process = cluster.processes.pop("decode-0")
        (rank,) = _children(process.pid)
        async with routers(cluster.section("decode-0")["listen"]) as (d,):
            await d.start(request("rank", [5] * 30, max_new_tokens=400))
            await d.until(lambda: len(d.tokens("rank")) >= 2)
            os.kill(rank, signal.SIGKILL)
            assert (await d.over("rank")).failed.reason == errors.ERROR_REASON_INTERNAL
            assert await asyncio.to_thread(process.wait, 20) != 0
    finally:
        cluster.stop()


@pytest.mark.chaos
@pytest.mark.slow
async def test_sigterm_while_loading(deepseek_checkpoint: Path, tmp_path: Path) -> None:
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(prefill=0))
    try:
        cluster._spawn("decode-0")
        process = cluster.processes.pop("decode-0")
        # Its signal handlers are there as soon as it logs; before, the signal simply ends it.
        await until(lambda: "loading" in cluster.log("decode-0") or process.poll() is not None)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) in (0, -signal.SIGTERM)
    finally:
        cluster.stop()


@pytest.mark.slow
async def test_a_port_that_is_taken(deepseek_checkpoint: Path, tmp_path: Path) -> None:
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(prefill=0))
    host, _, port = cluster.section("decode-0")["listen"].rpartition(":")
    server = await asyncio.start_server(lambda r, w: None, host, int(port))
    try:
        cluster._spawn("decode-0")
        process = cluster.processes.pop("decode-0")
        assert await asyncio.to_thread(process.wait, 40) != 0
        assert f"cannot listen on {host}:{port}" in cluster.log("decode-0")
    finally:
        server.close()
        cluster.stop()


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it ended while we looked
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found
