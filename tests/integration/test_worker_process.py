"""Worker processes under a scripted router: routes, refusals, cancellation, ends of all kinds."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tokenizers import Tokenizer

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as inference
from baton.v1 import kv_pb2, kv_pb2_grpc
from baton.v1 import worker_pb2 as wire
from baton_rpc import refusal_of

from .cluster import Cluster, Shape
from .oracle import Reference
from .raw_router import RawRouter, request, routers

READY_S = 8.0


@pytest.fixture(scope="module")
def cluster(
    deepseek_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One prefill and one decode worker. The kvstore they are told of does not exist."""
    cluster = Cluster(deepseek_checkpoint, tmp_path_factory.mktemp("workers"), Shape())
    try:
        cluster.start(["prefill-0", "decode-0"])
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def decode(cluster: Cluster) -> str:
    return str(cluster.section("decode-0")["listen"])


@pytest.fixture
def prefill(cluster: Cluster) -> str:
    return str(cluster.section("prefill-0")["listen"])


def prompt_of(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(100, 2000) for _ in range(length)]


async def until(what: object, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # type: ignore[operator]
            await asyncio.sleep(0.05)


def everything_is_free(cluster: Cluster, name: str) -> bool:
    totals = cluster.metrics(name)
    return (
        cluster.held_pages(name) == 0
        and totals["baton_pool_pages:leased"] == 0
        and totals["baton_pool_pages:quarantined"] == 0
        and totals["baton_num_requests_running"] == 0
        and totals["baton_num_requests_waiting"] == 0
    )


async def test_hello_says_who_it_is(cluster: Cluster, decode: str, prefill: str) -> None:
    async with routers(prefill, decode) as (p, d):
        assert (p.hello.role, d.hello.role) == (wire.WORKER_ROLE_PREFILL, wire.WORKER_ROLE_DECODE)
        assert (p.hello.worker, d.hello.worker) == ("prefill-0", "decode-0")
        assert p.hello.peer.address == prefill and d.hello.peer.epoch == d.hello.epoch != 0
        assert p.hello.cache == d.hello.cache and d.hello.cache.page_size == 16
        assert d.hello.pool.total_pages == d.hello.pool.free_pages == 512
        assert d.hello.max_context > 0 and d.hello.max_running > 0


async def test_compute_route(cluster: Cluster, decode: str, reference: Reference) -> None:
    prompts = {f"c{n}": prompt_of(n, n) for n in (1, 15, 16, 17, 100)}
    async with routers(decode) as (d,):
        await d.start(
            *(request(name, prompt, max_new_tokens=6) for name, prompt in prompts.items())
        )
        for name, prompt in prompts.items():
            last = await d.over(name)
            assert last.done.reason == inference.FINISH_REASON_LENGTH
            assert d.tokens(name) == reference.greedy(prompt, 6)
            assert last.done.cost.computed_tokens == len(prompt)
            told = [u.WhichOneof("update") for u in d.updates[name, 0]]
            assert told[0] == "admitted" and told[-1] == "done"
            # All requests of a step in one message.
        assert any(len({u.request_id for u in r.updates}) > 1 for r in d.reports)
    await until(lambda: everything_is_free(cluster, "decode-0"))


async def hand_over(
    p: RawRouter, d: RawRouter, name: str, prompt: list[int], **fields: object
) -> None:
    """Both legs, at the same moment."""
    plan = wire.StartRequest.PrefillFor(reader=d.hello.peer.name)
    await p.start(request(name, prompt, prefill_for=plan, **fields))
    awaiting = wire.StartRequest.AwaitPrefill(prefill=p.hello.peer)
    await d.start(request(name, prompt, await_prefill=awaiting, **fields))


async def test_hand_over_between_two_processes(
    cluster: Cluster, prefill: str, decode: str, reference: Reference
) -> None:
    before = cluster.metrics("decode-0")["baton_prompt_tokens_computed_total"]
    prompts = {f"h{n}": prompt_of(n, 1000 + n) for n in (1, 16, 33, 250)}
    async with routers(prefill, decode) as (p, d):
        for name, prompt in prompts.items():
            await hand_over(p, d, name, prompt, max_new_tokens=6)
        for name, prompt in prompts.items():
            done = (await d.over(name)).done
            assert d.tokens(name) == reference.greedy(prompt, 6), name
            assert done.cost.computed_tokens == 0
            assert done.cost.fetched_tokens == len(prompt)
            assert done.cost.bytes_moved > 0
            assert done.cost.first_token.token_id == d.tokens(name)[0]
            left = (await p.over(name)).done
            assert left.cost.computed_tokens == len(prompt)
            assert p.tokens(name) == []
    assert cluster.metrics("decode-0")["baton_prompt_tokens_computed_total"] == before
    for worker in ("prefill-0", "decode-0"):
        await until(lambda w=worker: everything_is_free(cluster, w))  # type: ignore[misc]


async def test_sampled_hand_over_says_what_compute_says(prefill: str, decode: str) -> None:
    """Same seed, same tokens and log-probs, whoever samples the first one; penalties too."""
    prompt = prompt_of(40, 5)
    sampling = wire.ResolvedSampling(
        temperature=0.9, top_p=0.95, top_k=40, seed=2**63 + 11, repetition_penalty=1.2,
        presence_penalty=0.3,
    )  # fmt: skip
    fields = {"sampling": sampling, "max_new_tokens": 12, "logprobs": 2}
    async with routers(prefill, decode) as (p, d):
        await d.start(request("s-local", prompt, cache_key=b"sampled-hand-ov1", **fields))
        await hand_over(p, d, "s-remote", prompt, cache_key=b"sampled-hand-ov2", **fields)
        await d.over("s-remote")
        await d.over("s-local")
        local, remote = d.tokens("s-local"), d.tokens("s-remote")
        assert local == remote
        # A continuation elsewhere: the same from the middle on.
        half = request("s-rest", prompt + local[:5], prompt_tokens=len(prompt), **fields)
        half.max_new_tokens = 7
        await d.start(half)
        await d.over("s-rest")
        assert d.tokens("s-rest") == local[5:]
        logprobs = [lp for u in d.updates["s-remote", 0] for lp in u.tokens.logprobs]
        assert [lp.token_id for lp in logprobs] == remote
        assert all(len(lp.top) == 2 and lp.logprob <= lp.top[0].logprob for lp in logprobs)


async def test_stop_token_and_eos(decode: str) -> None:
    prompt = prompt_of(20, 6)
    async with routers(decode) as (d,):
        await d.start(request("e-all", prompt))
        await d.over("e-all")
        third = d.tokens("e-all")[2]
        expected = d.tokens("e-all")[: d.tokens("e-all").index(third) + 1]
        await d.start(
            request("e-stop", prompt, stop=wire.ResolvedStop(stop_token_ids=[third])),
            request("e-eos", prompt, stop=wire.ResolvedStop(eos_token_ids=[third])),
        )
        assert (await d.over("e-stop")).done.reason == inference.FINISH_REASON_STOP_TOKEN
        assert (await d.over("e-eos")).done.reason == inference.FINISH_REASON_EOS
        assert d.tokens("e-stop") == d.tokens("e-eos") == expected


async def test_stop_string(deepseek_checkpoint: Path, decode: str) -> None:
    """The worker stops at the token that completes it, not a round trip later."""
    tokenizer = Tokenizer.from_file(str(deepseek_checkpoint / "tokenizer.json"))
    prompt = prompt_of(20, 16)
    async with routers(decode) as (d,):
        await d.start(request("t-all", prompt, max_new_tokens=40))
        await d.over("t-all")
        tokens = d.tokens("t-all")
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        whole = [n for n in range(1, len(text)) if "\ufffd" not in text[n - 1 : n + 1]]
        stop = text[whole[len(whole) // 2] - 1 :][:2]
        end = next(
            n
            for n in range(1, 41)
            if stop in tokenizer.decode(tokens[:n], skip_special_tokens=True)
        )
        await d.start(
            request("t-stop", prompt, max_new_tokens=40, stop=wire.ResolvedStop(stop=[stop]))
        )
        done = (await d.over("t-stop")).done
        assert done.reason == inference.FINISH_REASON_STOP_STRING
        assert done.matched_stop == stop
        assert d.tokens("t-stop") == tokens[:end]


async def test_cancel_frees_and_the_rest_goes_on(cluster: Cluster, decode: str) -> None:
    async with routers(decode) as (d,):
        await d.start(
            request("k-long", prompt_of(50, 7), max_new_tokens=400),
            request("k-other", prompt_of(50, 8), max_new_tokens=60),
        )
        await d.until(lambda: len(d.tokens("k-long")) >= 3)
        await d.cancel("k-long")
        failed = (await d.over("k-long")).failed
        assert failed.reason == errors.ERROR_REASON_CANCELLED
        assert (await d.over("k-other")).HasField("done")
        assert len(d.tokens("k-other")) == 60
        await until(lambda: everything_is_free(cluster, "decode-0"))


async def test_refusals_harm_nobody(decode: str, prefill: str) -> None:
    prompt = prompt_of(30, 9)
    bad = {
        "r-dup": (request("r-live", prompt), errors.ERROR_REASON_DUPLICATE_REQUEST),
        "r-long": (
            request("r-long", prompt, max_new_tokens=10**6),
            errors.ERROR_REASON_PROMPT_TOO_LONG,
        ),
        "r-empty": (request("r-empty", []), errors.ERROR_REASON_INVALID_PROMPT),
        "r-vocab": (request("r-vocab", [10**6]), errors.ERROR_REASON_INVALID_PROMPT),
        "r-bias": (
            request(
                "r-bias",
                prompt,
                sampling=wire.ResolvedSampling(
                    top_p=1, repetition_penalty=1, logit_bias={10**6: 1.0}
                ),
            ),
            errors.ERROR_REASON_INVALID_SAMPLING,
        ),
        "r-plan": (
            request("r-plan", prompt, prefill_for=wire.StartRequest.PrefillFor(reader="x")),
            errors.ERROR_REASON_MISSING_FIELD,
        ),
    }
    async with routers(decode, prefill) as (d, p):
        await d.start(request("r-live", prompt, max_new_tokens=50))
        await d.start(*(start for start, _ in bad.values()))
        for name, (start, reason) in bad.items():
            await d.until(
                lambda s=start, r=reason: any(  # type: ignore[misc]
                    u.failed.reason == r for u in d.updates.get((s.request_id, 0), [])
                )
            )
            assert name
        await d.until(lambda: len(d.tokens("r-live")) == 50)
        await p.start(request("r-compute", prompt))
        assert (await p.over("r-compute")).failed.reason == errors.ERROR_REASON_MISSING_FIELD


async def test_a_malformed_message_ends_its_stream_alone(cluster: Cluster, decode: str) -> None:
    async with routers(decode) as (good,):
        await good.start(request("m-good", prompt_of(20, 10), max_new_tokens=60))
        async with grpc.aio.insecure_channel(decode) as raw:
            call = raw.stream_stream("/baton.v1.WorkerService/Connect")()
            hello = wire.ConnectRequest(hello=wire.RouterHello(router="bad", wire_version=1))
            start = request("m-bad", prompt_of(20, 11), max_new_tokens=400)
            batch = wire.CommandBatch(commands=[wire.Command(start=start)])
            await call.write(hello.SerializeToString())
            await call.write(wire.ConnectRequest(commands=batch).SerializeToString())
            await call.write(b"\x0a\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await asyncio.wait_for(call.read(), 20):
                    pass
            told = refusal_of(ended.value)
            assert told is not None and told.reason == errors.ERROR_REASON_MALFORMED_MESSAGE
        assert (await good.over("m-good")).HasField("done")
    await until(lambda: everything_is_free(cluster, "decode-0"))


async def test_a_broken_stream_frees_everything(
    cluster: Cluster, prefill: str, decode: str
) -> None:
    """At the decode worker while it generates, at the prefill worker while it holds pages."""
    prompt = prompt_of(120, 12)
    async with routers(prefill, decode) as (p, d):
        plan = wire.StartRequest.PrefillFor(reader="nobody-comes")
        await p.start(request("b-held", prompt, prefill_for=plan))
        await d.start(request("b-run", prompt, max_new_tokens=400))
        await d.until(lambda: len(d.tokens("b-run")) >= 2)
        await until(lambda: cluster.held_pages("prefill-0") > 0)
    for worker in ("prefill-0", "decode-0"):
        await until(lambda w=worker: everything_is_free(cluster, w))  # type: ignore[misc]


async def test_a_prefill_that_never_comes(
    cluster: Cluster, decode: str, reference: Reference
) -> None:
    """A dead address, a stale epoch, PrefillLost: the decode worker computes the prompt itself."""
    prompt = prompt_of(40, 13)
    expected = reference.greedy(prompt, 5)
    dead = kv_pb2.Peer(name="dead", address="127.0.0.1:9", epoch=5)
    stale = kv_pb2.Peer(
        name="prefill-0", address=cluster.section("prefill-0")["listen"], epoch=12345
    )
    async with routers(decode) as (d,):
        for n, peer in enumerate((dead, stale)):
            awaiting = wire.StartRequest.AwaitPrefill(prefill=peer)
            key = f"prefill-lost-{n:03}".encode()
            await d.start(
                request(f"l-{n}", prompt, await_prefill=awaiting, max_new_tokens=5, cache_key=key)
            )
            lost = wire.PrefillLost(request_id=f"l-{n}", attempt=0)
            await d.send(wire.Command(prefill_lost=lost))
        for n in range(2):
            done = (await d.over(f"l-{n}")).done
            assert d.tokens(f"l-{n}") == expected
            assert done.cost.computed_tokens == len(prompt)
            assert not done.cost.HasField("first_token")
    await until(lambda: everything_is_free(cluster, "decode-0"))


async def test_reflection_and_metrics_answer(cluster: Cluster, decode: str) -> None:
    async with grpc.aio.insecure_channel(decode) as link:
        stub = reflection_pb2_grpc.ServerReflectionStub(link)

        async def ask() -> object:
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            async for answer in stub.ServerReflectionInfo(iter([asked])):
                return {s.name for s in answer.list_services_response.service}
            return set()

        services = await asyncio.wait_for(ask(), 10)
        assert {"baton.v1.WorkerService", "baton.v1.KvPeerService"} <= services  # type: ignore[operator]
        watching = kv_pb2.WatchHandoversRequest(reader="x", epoch=1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await kv_pb2_grpc.KvPeerServiceStub(link).WatchHandovers(watching).read()
        told = refusal_of(refused.value)
        assert told is not None and told.reason == errors.ERROR_REASON_STALE_EPOCH
    totals = cluster.metrics("decode-0")
    assert totals["baton_generation_tokens_total"] > 0
    assert totals["baton_step_seconds_count"] > 0
    states = ("free", "cached", "owned", "referenced")
    assert sum(totals[f"baton_pool_pages:{state}"] for state in states) == 512


@pytest.mark.chaos
async def test_sigterm_drains(deepseek_checkpoint: Path, tmp_path: Path) -> None:
    """Running requests end well, new ones are refused, the process ends with 0; and it was ready
    within 8 s of its start."""
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(prefill=0))
    try:
        cluster.start(["decode-0"])
        address = cluster.section("decode-0")["listen"]
        async with routers(address) as (d,):
            await d.start(request("d-run", prompt_of(30, 14), max_new_tokens=200))
            await d.until(lambda: len(d.tokens("d-run")) >= 2)
            cluster.processes["decode-0"].send_signal(signal.SIGTERM)
            await d.until(lambda: d.reports[-1].draining)
            await d.start(request("d-late", prompt_of(30, 15)))
            late = (await d.over("d-late")).failed
            assert late.reason == errors.ERROR_REASON_DRAINING
            assert (await d.over("d-run")).done.reason == inference.FINISH_REASON_LENGTH
            assert len(d.tokens("d-run")) == 200
            await d.until(lambda: d.ended is not None)
            assert d.ended == "end"
        begun = time.monotonic()
        process = cluster.processes.pop("decode-0")
        assert await asyncio.to_thread(process.wait, 15) == 0
        assert time.monotonic() - begun < 10
    finally:
        cluster.stop()


@pytest.mark.chaos
async def test_sigterm_ends_what_outlives_the_grace(
    deepseek_checkpoint: Path, tmp_path: Path
) -> None:
    cluster = Cluster(deepseek_checkpoint, tmp_path, Shape(prefill=0, worker={"drain_s": 0.2}))
    try:
        cluster.start(["decode-0"])
        async with routers(cluster.section("decode-0")["listen"]) as (d,):
            await d.start(request("g-run", prompt_of(30, 16), max_new_tokens=900))
            await d.until(lambda: len(d.tokens("g-run")) >= 2)
            process = cluster.processes.pop("decode-0")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 15) == 0
            await d.until(lambda: d.ended is not None)
            assert d.last("g-run") is None or d.last("g-run").HasField("failed")  # type: ignore[union-attr]
    finally:
        cluster.stop()
