"""The router over scripted workers: streams, refusals, cancellation, deadlines, stops, usage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_scheduler import cache_key, page_hashes

from .fake_worker import (
    PAGE_SIZE,
    FakeWorker,
    Run,
    default_cost,
    generate,
    generate_tokens,
    token_at,
)
from .router_process import hear, running_router
from .scripted_cluster import EXPECTED, PROMPT, assert_refused, cluster, request, until

SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_remote_route_end_to_end(small_checkpoint: Path, tmp_path: Path) -> None:
    prefill, decode = FakeWorker("prefill", "p"), FakeWorker("decode", "d")
    routing = {"local_suffix_tokens": 0}
    async with cluster(small_checkpoint, tmp_path, prefill, decode, routing=routing) as router:
        heard = await hear(router.stub.Generate(request(), timeout=10))
        second = await hear(router.stub.Generate(request(), timeout=10))
    assert heard.token_ids == EXPECTED
    assert heard.accepted.prompt_tokens == len(PROMPT)
    usage = heard.finished.usage
    assert (usage.route, usage.attempts, usage.cached_tokens) == (pb.ROUTE_REMOTE, 1, 0)
    assert (usage.prefill_worker, usage.decode_worker) == ("p", "d")
    assert (usage.generated_tokens, usage.pages_moved) == (12, 3)
    assert 0 < usage.times.ttft_us < usage.times.total_us
    start, handover = decode.runs[0].start, prefill.runs[0].start
    assert start.await_prefill.prefill == prefill.peer
    assert handover.prefill_for.reader == "d"
    for field in ("request_id", "attempt", "token_ids", "sampling", "cache_key"):
        assert getattr(start, field) == getattr(handover, field)
    assert list(start.token_ids) == PROMPT and start.max_new_tokens == 12
    assert second.accepted.request_id != heard.accepted.request_id
    # The router remembers what its own requests left, directory or not.
    assert [source.holder.name for source in prefill.runs[1].start.sources] in ([], ["d"])


async def test_updates_are_deduplicated_by_position(small_checkpoint: Path, tmp_path: Path) -> None:
    """Repeated, overlapping and late tokens are delivered once; nothing of another attempt."""

    async def stutter(worker: FakeWorker, run: Run) -> None:
        n = len(run.start.token_ids)
        other = Run(wire.StartRequest(request_id=run.start.request_id, attempt=99))
        worker.say(worker.tokens(run, n), worker.tokens(run, n), worker.tokens(other, n + 1, 3))
        worker.say(worker.tokens(run, n, 4))
        worker.say(worker.tokens(run, n + 2, 3), worker.tokens(run, n + 1))
        worker.say(worker.tokens(run, n + 3, 9), worker.done(run), worker.tokens(run, n, 12))
        worker.say(worker.tokens(run, n, 12), worker.done(run))

    decode = FakeWorker("decode", "d", script=stutter)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        heard = await hear(router.stub.Generate(request(), timeout=10))
        assert heard.token_ids == EXPECTED
        assert heard.finished.reason == pb.FINISH_REASON_LENGTH
        assert (await hear(router.stub.Generate(request(), timeout=10))).token_ids == EXPECTED


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_the_client_leaves(small_checkpoint: Path, tmp_path: Path, how: str) -> None:
    """Both workers are told at once; the next request works."""

    async def forever(worker: FakeWorker, run: Run) -> None:
        if run.plan != "prefill_for":
            await generate_tokens(worker, run, 2)

    prefill = FakeWorker("prefill", "p", script=forever)
    decode = FakeWorker("decode", "d", script=forever)
    routing = {"local_suffix_tokens": 0}
    async with cluster(small_checkpoint, tmp_path, prefill, decode, routing=routing) as router:
        call = router.stub.Generate(request(), timeout=0.5 if how == "deadline" else 30)
        await until(lambda: decode.runs and prefill.runs)
        if how == "cancel":
            call.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await hear(call)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(decode.runs[0].cancelled.wait(), 20)
        await asyncio.wait_for(prefill.runs[0].cancelled.wait(), 20)
        prefill.script = decode.script = generate
        assert (await hear(router.stub.Generate(request(), timeout=10))).token_ids == EXPECTED
        metrics = await router.metrics()
    assert metrics["baton_num_requests_running"] == 0


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_pages_that_a_turn_has_left_unheard_are_forgotten(
    small_checkpoint: Path, tmp_path: Path, how: str
) -> None:
    """Nobody names them later: neither the next turn nor the end of the session."""
    late = 60

    async def go_on_until_told(worker: FakeWorker, run: Run) -> None:
        n = len(run.start.token_ids)
        worker.say(worker.tokens(run, n, 2, cost=default_cost(run)))
        await run.cancelled.wait()
        # Sent before the worker was told, read afterwards; then its last word.
        worker.say(worker.tokens(run, n + 1, late + 1))
        worker.say(worker.failed(run, errors.ERROR_REASON_CANCELLED))

    decode = FakeWorker("decode", "d", script=go_on_until_told)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        stop = pb.StopParams(max_tokens=100, ignore_eos=True)
        if how == "stop":
            told = pb.DetokenizeRequest(token_ids=[token_at(len(PROMPT) + i) for i in range(2)])
            stop.stop.append((await router.stub.Detokenize(told)).text)
        call = router.stub.Generate(request(session_id="s", tenant="t", stop=stop), timeout=30)
        if how == "stop":
            heard = await hear(call)
            assert heard.finished.reason == pb.FINISH_REASON_STOP_STRING
        else:
            async for message in call:
                if message.HasField("delta"):
                    break
            call.cancel()
        sequence = np.array([*PROMPT, *(token_at(40 + i) for i in range(2 + late))], np.int32)
        chain = page_hashes(sequence[:-1], PAGE_SIZE, cache_key("toy", "t")).tobytes()
        named = (len(PROMPT) + 2 - 1) // PAGE_SIZE * 16
        assert len(chain) == 6 * 16
        await until(lambda: len(decode.forgotten) >= len(chain) - named)
        assert decode.forgotten == chain[named:]
        end = pb.CloseSessionRequest(session_id="s", tenant="t")
        assert (await router.stub.CloseSession(end, timeout=10)).freed_pages == named // 16
        await until(lambda: len(decode.forgotten) >= len(chain))
        assert decode.forgotten == chain[named:] + chain[:named]


async def test_a_draining_worker_gets_nothing_new(small_checkpoint: Path, tmp_path: Path) -> None:
    workers = [FakeWorker("decode", name) for name in ("d0", "d1")]
    async with cluster(small_checkpoint, tmp_path, *workers) as router:

        async def ask() -> None:
            await hear(router.stub.Generate(request(), timeout=10))

        await ask()
        [preferred] = [worker for worker in workers if worker.runs]  # it has the prompt's pages
        [other] = [worker for worker in workers if not worker.runs]
        preferred.say(draining=True)
        async with asyncio.timeout(10):
            while not other.runs:  # the router has not heard of it yet
                await ask()
        before = len(preferred.runs)
        for _ in range(4):
            await ask()
    assert (len(preferred.runs), len(other.runs)) == (before, 5)


async def test_no_worker(small_checkpoint: Path, tmp_path: Path) -> None:
    decode = FakeWorker("decode", "d")
    limits = {"no_worker_wait_s": 0.3}
    async with cluster(small_checkpoint, tmp_path, decode, limits=limits) as router:
        address = decode.address
        await decode.die()
        await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.UNAVAILABLE,
            errors.ERROR_REASON_NO_WORKER,
        )
        await decode.start(address)
        await asyncio.wait_for(decode.connected.wait(), 20)
        assert (await hear(router.stub.Generate(request(), timeout=10))).token_ids == EXPECTED


async def test_a_worker_that_does_not_fit_is_not_used(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    good, other = FakeWorker("decode", "good"), FakeWorker("decode", "other")
    await other.start()
    async with cluster(small_checkpoint, tmp_path, good) as router:
        pass
    assert router.process.poll() == 0, "an idle router ends at SIGTERM with success"
    other.fingerprint = "another model"
    (tmp_path / "second").mkdir()
    await good.start()
    good.connected.clear()
    other.connected.set()
    async with running_router(small_checkpoint, tmp_path / "second", [good, other]) as router:
        for _ in range(3):
            heard = await hear(router.stub.Generate(request(), timeout=10))
            assert heard.token_ids == EXPECTED
        log = router.log.read_text()
    assert "does not fit the others" in log
    assert not (good.runs and other.runs), "two models in one cluster"
    await good.die()
    await other.die()


async def test_stop_string_ends_the_request_at_the_worker(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    """Usage is exact although the worker never said its last word."""

    async def say_abc(worker: FakeWorker, run: Run) -> None:
        n = len(run.start.token_ids)
        ids = [run.start.token_ids[0]] * 9
        cost = wire.RequestCost(reused_tokens=16, computed_tokens=n - 16)
        tokens = wire.RequestTokens(first_position=n, token_ids=ids[:1], cost=cost)
        worker.say(worker.update(run, tokens=tokens))
        for i in range(1, 9):
            tokens = wire.RequestTokens(first_position=n + i, token_ids=[ids[i]])
            worker.say(worker.update(run, tokens=tokens))

    decode = FakeWorker("decode", "d", script=say_abc)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        letter = (await router.stub.Tokenize(pb.TokenizeRequest(text="x"))).token_ids[0]
        stop = pb.StopParams(max_tokens=100, stop=["xxxx"])
        ids = pb.TokenIds(ids=[letter] * 30)
        heard = await hear(router.stub.Generate(request(token_ids=ids, stop=stop), timeout=10))
        await asyncio.wait_for(decode.runs[0].cancelled.wait(), 20)
    assert heard.text == ""
    assert heard.token_ids == [letter] * 4
    assert heard.finished.reason == pb.FINISH_REASON_STOP_STRING
    assert heard.finished.matched_stop == "xxxx"
    assert heard.finished.usage.generated_tokens == 4
    assert heard.finished.usage.cached_tokens == 16


async def test_usage_waits_for_the_prefill_worker_only_when_it_must(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    async def prefill_late(worker: FakeWorker, run: Run) -> None:
        await asyncio.sleep(1.0)
        cost = wire.RequestCost(computed_tokens=8, pages_moved=2, bytes_moved=8192)
        worker.say(worker.done(run, pb.FINISH_REASON_UNSPECIFIED, cost))

    async def silent_about_it(worker: FakeWorker, run: Run) -> None:
        cost = wire.RequestCost(fetched_tokens=40, pages_moved=3, bytes_moved=100)
        n = len(run.start.token_ids)
        worker.say(worker.tokens(run, n, 12, cost=cost), worker.done(run, cost=cost))

    async def tells(worker: FakeWorker, run: Run) -> None:
        n = len(run.start.token_ids)
        first = kv.FirstToken(cached_tokens=32, pages_moved=2, bytes_moved=8192)
        cost = wire.RequestCost(
            fetched_tokens=40, pages_moved=3, bytes_moved=100, first_token=first
        )
        worker.say(worker.tokens(run, n, 12, cost=cost), worker.done(run, cost=cost))

    prefill = FakeWorker("prefill", "p", script=prefill_late)
    decode = FakeWorker("decode", "d", script=silent_about_it)
    section = {"routing": {"local_suffix_tokens": 0}, "limits": {"usage_wait_s": 5.0}}
    async with cluster(small_checkpoint, tmp_path, prefill, decode, **section) as router:
        waited = await hear(router.stub.Generate(request(), timeout=10))
        decode.script = tells
        told = await hear(router.stub.Generate(request(), timeout=10))
    for heard in (waited, told):
        usage = heard.finished.usage
        assert (usage.cached_tokens, usage.pages_moved, usage.bytes_moved) == (32, 5, 8292)
    assert told.finished.usage.times.total_us < 900_000 < waited.finished.usage.times.total_us


async def test_many_streams_at_once(small_checkpoint: Path, tmp_path: Path) -> None:
    workers = [FakeWorker("decode", f"d{i}") for i in range(2)]
    async with cluster(small_checkpoint, tmp_path, *workers) as router:
        calls = [router.stub.Generate(request(), timeout=20) for _ in range(60)]
        heard = await asyncio.gather(*(hear(call) for call in calls))
    assert all(h.token_ids == EXPECTED for h in heard)
    assert min(len(w.runs) for w in workers) > 15, "load is shared"


async def test_too_many_requests(small_checkpoint: Path, tmp_path: Path) -> None:
    async def forever(worker: FakeWorker, run: Run) -> None:
        await run.cancelled.wait()

    decode = FakeWorker("decode", "d", script=forever)
    limits = {"max_concurrent_requests": 1}
    async with cluster(small_checkpoint, tmp_path, decode, limits=limits) as router:
        first = router.stub.Generate(request(), timeout=20)
        await until(lambda: decode.runs)
        await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            errors.ERROR_REASON_OVERLOADED,
        )
        first.cancel()
        await asyncio.wait_for(decode.runs[0].cancelled.wait(), 20)
        decode.script = generate
        assert (await hear(router.stub.Generate(request(), timeout=10))).token_ids == EXPECTED


async def test_sigterm_lets_streams_end(small_checkpoint: Path, tmp_path: Path) -> None:
    refused = asyncio.Event()

    async def slow(worker: FakeWorker, run: Run) -> None:
        await generate_tokens(worker, run, run.start.max_new_tokens)
        await refused.wait()
        worker.say(worker.done(run, cost=default_cost(run)))

    decode = FakeWorker("decode", "d", script=slow)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        reading = asyncio.create_task(hear(router.stub.Generate(request(), timeout=20)))
        await until(lambda: decode.runs)
        health = health_pb2_grpc.HealthStub(router.connection)
        router.process.terminate()
        async with asyncio.timeout(10):
            while (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING:
                await asyncio.sleep(0.01)
        await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.UNAVAILABLE,
            errors.ERROR_REASON_DRAINING,
        )
        refused.set()
        assert (await reading).token_ids == EXPECTED
        assert await asyncio.to_thread(router.process.wait, 10) == 0
