"""The command stream over a real server: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as inference
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_decode import DECODE
from baton_engine import (
    Admitted,
    Await,
    Cost,
    Done,
    EngineRefusal,
    FailReason,
    FinishReason,
    Generate,
    HandOver,
    Prefilled,
    PromptProgress,
    TokensEmitted,
)
from baton_prefill import PREFILL
from baton_rpc import refusal_of
from baton_transfer import WIRE_VERSION
from baton_worker.mailbox import Mailbox

from .routers import Router, cancel, pool, start, worker

pytestmark = pytest.mark.asyncio


async def refusal(router: Router) -> errors.ErrorReason:
    """Why the stream ended."""
    with pytest.raises((grpc.aio.AioRpcError, EOFError)) as ended:
        while True:
            await router.read()
    told = refusal_of(ended.value)
    assert told is not None, ended.value
    return told.reason


async def test_a_request_from_start_to_done() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        await router.send(start("a", 2, token_ids=[1, 2, 3, 9], logprobs=3))
        await w.until(lambda: w.engine.submitted)
        request = w.engine.submitted[0]
        assert request.key == ("a", 2)
        assert request.token_ids.tolist() == [1, 2, 3, 9]
        assert request.goal == Generate()
        assert request.sampling.logprobs == 3
        cost = Cost(reused_tokens=16, computed_tokens=4)
        w.desk.deliver(
            w.engine.step(
                Admitted("a", 2, 0),
                TokensEmitted("a", 2, 4, (7, 8), cost=cost),
                Done("a", 2, FinishReason.EOS, "", cost),
                total_pages=10,
                free_pages=6,
            )
        )
        report = (await router.read()).step
        assert report.step == 1 and not report.draining
        assert (report.pool.total_pages, report.pool.free_pages) == (10, 6)
        admitted, tokens, done = report.updates
        assert admitted.HasField("admitted")
        assert tokens.tokens.first_position == 4
        assert list(tokens.tokens.token_ids) == [7, 8]
        assert tokens.tokens.cost.reused_tokens == 16
        assert done.done.reason == inference.FINISH_REASON_EOS
        assert done.done.cost.computed_tokens == 4
        # What is over is not cancelled when the router leaves.
        await router.leave()
        await asyncio.sleep(0.05)
        assert w.engine.cancelled == []


async def test_each_router_is_told_of_its_own_requests_only() -> None:
    async with worker(DECODE) as w:
        one, two = await w.router("one"), await w.router("two")
        await one.send(start("a"))
        await two.send(start("b"), start("a"), cancel("a"))  # not its own
        (told,) = await two.updates(1)
        assert told.request_id == "a"
        assert told.failed.reason == errors.ERROR_REASON_DUPLICATE_REQUEST
        assert w.engine.cancelled == []
        w.desk.deliver(
            w.engine.step(TokensEmitted("b", 0, 3, (5,)), TokensEmitted("a", 0, 3, (6,)))
        )
        assert [u.request_id for u in await one.updates(1)] == ["a"]
        assert [u.request_id for u in await two.updates(1)] == ["b"]


async def test_a_duplicate_is_refused_and_the_first_goes_on() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        await router.send(start("a"), start("a"))
        (told,) = await router.updates(1)
        assert told.failed.reason == errors.ERROR_REASON_DUPLICATE_REQUEST
        w.desk.deliver(w.engine.step(TokensEmitted("a", 0, 3, (5,))))
        (told,) = await router.updates(1)
        assert list(told.tokens.token_ids) == [5]
        assert w.engine.failures == ["duplicate_request"]


@pytest.mark.parametrize("how", ["cancel", "half-close"])
async def test_the_end_of_a_stream_cancels_what_it_started(how: str) -> None:
    async with worker(DECODE) as w:
        router, other = await w.router(), await w.router("other")
        await other.send(start("z"))
        await router.send(start("a"), start("b", 3), cancel("unknown"))
        await w.until(lambda: len(w.engine.submitted) == 3)
        if how == "cancel":
            router.call.cancel()
        else:
            await router.call.done_writing()
        await w.until(lambda: len(w.engine.cancelled) == 2)
        assert sorted(w.engine.cancelled) == [("a", 0), ("b", 3)]
        # What the engine still says of them concerns nobody, and harms nobody.
        w.desk.deliver(w.engine.step(*w.engine.cancellations(), TokensEmitted("z", 0, 3, (1,))))
        assert (await other.updates(1))[0].request_id == "z"


async def test_cancel_and_prefill_lost_reach_the_engine() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        prefill = kv.Peer(name="p", address="127.0.0.1:1", epoch=4)
        plan = wire.StartRequest.AwaitPrefill(prefill=prefill)
        lost = wire.Command(prefill_lost=wire.PrefillLost(request_id="a", attempt=0))
        await router.send(start("a", await_prefill=plan), lost, cancel("a"))
        await w.until(lambda: w.engine.cancelled)
        assert w.engine.submitted[0].goal == Await(prefill)
        assert w.engine.lost == w.engine.cancelled == [("a", 0)]
        w.desk.deliver(w.engine.step(*w.engine.cancellations()))
        (told,) = await router.updates(1)
        assert told.failed.reason == errors.ERROR_REASON_CANCELLED


async def test_forgotten_pages_reach_the_engine_and_torn_ones_end_the_stream() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        pages = [bytes([i]) * 16 for i in range(3)]
        await router.send(wire.Command(forget=wire.ForgetPages(page_hashes=b"".join(pages))))
        await w.until(lambda: w.engine.forgotten == pages)
        await router.send(wire.Command(forget=wire.ForgetPages(page_hashes=b"torn")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.updates(1)
        refusal = refusal_of(caught.value)
        assert refusal is not None
        assert refusal.reason == errors.ERROR_REASON_MALFORMED_MESSAGE


async def test_a_prefill_worker_reports_the_end_and_its_cost_only() -> None:
    async with worker(PREFILL) as w:
        router = await w.router()
        await router.send(start("a", prefill_for=wire.StartRequest.PrefillFor(reader="d")))
        await w.until(lambda: w.engine.submitted)
        assert w.engine.submitted[0].goal == HandOver("d")
        cost = Cost(computed_tokens=3)
        w.desk.deliver(
            w.engine.step(
                PromptProgress("a", 0, 1),
                Prefilled("a", 0, 2, 44, None, cost),
                Done("a", 0, FinishReason.HANDED_OVER, "", cost),
            )
        )
        (told,) = await router.updates(1)
        assert told.done.cost.computed_tokens == 3


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        (PREFILL, {}),
        (PREFILL, {"no_plan": True}),
        (PREFILL, {"await_prefill": wire.StartRequest.AwaitPrefill()}),
        (PREFILL, {"prefill_for": wire.StartRequest.PrefillFor()}),
        (DECODE, {"prefill_for": wire.StartRequest.PrefillFor(reader="d")}),
        (DECODE, {"no_plan": True}),
        (DECODE, {"await_prefill": wire.StartRequest.AwaitPrefill()}),
        (DECODE, {"request_id": ""}),
        (DECODE, {"sources": [wire.PageSource(pages=3)]}),
    ],
)
async def test_a_plan_of_the_other_role_or_half_a_plan_is_refused(role, fields) -> None:  # type: ignore[no-untyped-def]
    async with worker(role) as w:
        router = await w.router()
        fields = dict(fields)
        await router.send(start(fields.pop("request_id", "a"), **fields))
        (told,) = await router.updates(1)
        assert told.failed.reason == errors.ERROR_REASON_MISSING_FIELD
        assert told.failed.message
        assert w.engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sampling": wire.ResolvedSampling(temperature=-1)}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(temperature=float("nan"))}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(top_p=1.5)}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(min_p=2)}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(repetition_penalty=-1)}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(logit_bias={1000: 1.0})}, "INVALID_SAMPLING"),
        ({"sampling": wire.ResolvedSampling(logit_bias={1: 101.0})}, "INVALID_SAMPLING"),
        ({"stop": wire.ResolvedStop(stop_token_ids=[2**32 - 1])}, "INVALID_STOP"),
        ({"stop": wire.ResolvedStop(eos_token_ids=[1000])}, "INVALID_STOP"),
        ({"stop": wire.ResolvedStop(stop=["x", ""])}, "INVALID_STOP"),
        ({"logprobs": 21}, "INVALID_OUTPUT"),
        ({"token_ids": [2**31]}, "INVALID_PROMPT"),
    ],
)
async def test_values_that_would_harm_a_batch_are_refused(fields, reason: str) -> None:  # type: ignore[no-untyped-def]
    async with worker(DECODE) as w:
        router = await w.router()
        await router.send(start("bad", **fields), start("good"))
        (told,) = await router.updates(1)
        assert told.request_id == "bad"
        assert errors.ErrorReason.Name(told.failed.reason) == f"ERROR_REASON_{reason}"
        assert [r.request_id for r in w.engine.submitted] == ["good"]


async def test_the_engines_refusal_is_the_requests_failure() -> None:
    async with worker(DECODE) as w:
        w.engine.refuse = EngineRefusal(FailReason.OUT_OF_PAGES, "too large")
        router = await w.router()
        await router.send(start())
        (told,) = await router.updates(1)
        assert told.failed.reason == errors.ERROR_REASON_OUT_OF_PAGES
        assert told.failed.message == "too large"
        assert w.engine.failures == ["out_of_pages"]


async def test_a_stranger_is_shown_the_door() -> None:
    async with worker(DECODE) as w:
        router = Router(w.server.address)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await router.greet(version=WIRE_VERSION + 1)
        told = refusal_of(ended.value)
        assert told is not None and told.reason == errors.ERROR_REASON_INCOMPATIBLE_PEER

        router = Router(w.server.address)
        await router.send(start())
        assert await refusal(router) == errors.ERROR_REASON_MISSING_FIELD

        router = Router(w.server.address)
        await router.call.done_writing()
        assert await refusal(router) == errors.ERROR_REASON_MISSING_FIELD

        router = await w.router()
        await router.send(start("mine"), wire.Command())
        assert await refusal(router) == errors.ERROR_REASON_MISSING_FIELD
        await w.until(lambda: w.engine.cancelled == [("mine", 0)])

        router = await w.router()
        await router.call.write(wire.ConnectRequest(hello=wire.RouterHello(wire_version=1)))
        assert await refusal(router) == errors.ERROR_REASON_MISSING_FIELD


async def test_bytes_that_are_no_message_end_the_stream_with_a_reason() -> None:
    async with worker(DECODE) as w:
        raw = Router(w.server.address)
        call = raw.channel.stream_stream("/baton.v1.WorkerService/Connect")()
        hello = wire.ConnectRequest(hello=wire.RouterHello(router="r", wire_version=WIRE_VERSION))
        good = wire.ConnectRequest(commands=wire.CommandBatch(commands=[start("a")]))
        await call.write(hello.SerializeToString())
        await call.write(good.SerializeToString())
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await asyncio.wait_for(call.read(), 10):
                pass
        told = refusal_of(ended.value)
        assert told is not None and told.reason == errors.ERROR_REASON_MALFORMED_MESSAGE
        await w.until(lambda: w.engine.cancelled == [("a", 0)])


async def test_pool_figures_reach_an_idle_router_soon_but_not_every_step() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        for step in range(200):
            w.desk.deliver(w.engine.step(running=step))
            await asyncio.sleep(0.001)
        seen = [(await router.read()).step]
        while seen[-1].step < 200:
            seen.append((await router.read()).step)
        assert seen[-1].pool.running == 199
        assert len(seen) <= 10


async def test_draining_is_told_at_once_and_the_last_word_is_heard() -> None:
    async with worker(DECODE) as w:
        router = await w.router()
        await router.send(start("a"))
        await w.until(lambda: w.engine.submitted)
        w.desk.drain()
        assert (await router.read()).step.draining
        late = await w.router("late")
        assert (await late.read()).step.draining
        w.desk.deliver(w.engine.step(Done("a", 0, FinishReason.LENGTH, "", Cost())))
        finishing = asyncio.create_task(w.desk.finish())
        (told,) = await router.updates(1)
        assert told.HasField("done")
        for stream in (router, late):
            with pytest.raises(EOFError):
                while True:
                    assert (await stream.read()).step.draining
        await asyncio.wait_for(finishing, 5)
        assert w.engine.cancelled == []


async def test_a_router_that_does_not_read_is_cut_off() -> None:
    mailbox = Mailbox("slow", max_updates=3)
    for _ in range(4):
        mailbox.put(wire.RequestUpdate())
    with pytest.raises(Exception, match="router slow has not read 3 updates"):
        await mailbox.next()


async def test_steps_that_wait_are_merged() -> None:
    mailbox = Mailbox("r")
    for step in range(1, 4):
        mailbox.put(wire.RequestUpdate(request_id=str(step)))
        mailbox.note(step, wire.PoolState(running=step), draining=False)
    report = await mailbox.next()
    assert report is not None
    assert (report.step, report.pool.running) == (3, 3)
    assert [u.request_id for u in report.updates] == ["1", "2", "3"]
    mailbox.finish()
    last = await mailbox.next()
    assert last is not None and not last.updates
    assert await mailbox.next() is None
    assert pool().running == 0
