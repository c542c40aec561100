"""Workers die, refuse and stutter at random under many streams: no token is lost or repeated."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb

from .fake_worker import FakeWorker, Run, default_cost, generate, token_at
from .router_process import Router, hear, running_router

STREAMS, TOKENS = 40, 60
ENDLESS = 3000  # tokens nobody waits for: such a stream can only be cancelled


async def unreliable(worker: FakeWorker, run: Run) -> None:
    """Repeats tokens, sends several at once, and sometimes refuses (once: all may not refuse)."""
    draw = random.Random(f"{run.start.request_id}/{run.start.attempt}")
    if run.start.attempt == 1 and draw.random() < 0.1:
        worker.say(worker.failed(run, errors.ERROR_REASON_OVERLOADED, "full"))
        return
    if run.plan == "prefill_for":
        await generate(worker, run)
        return
    begin = position = len(run.start.token_ids)
    end = begin + run.start.max_new_tokens
    while position < end and not run.cancelled.is_set():
        again = max(begin, position - draw.randrange(4))
        position = min(end, position + draw.randrange(1, 5))
        worker.say(worker.tokens(run, again, position - again, default_cost(run)))
        await asyncio.sleep(0.01 * draw.random())
    if not run.cancelled.is_set():
        worker.say(worker.done(run, cost=default_cost(run)))


async def one(router: Router, number: int) -> str:
    prompt = [20 + (number + i) % 300 for i in range(17 + number)]
    leaves = number % 10 == 9
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        stop=pb.StopParams(max_tokens=ENDLESS if leaves else TOKENS, ignore_eos=True),
    )
    call = router.stub.Generate(request, timeout=30)
    if leaves:
        await asyncio.sleep(0.1)
        call.cancel()
        return "cancelled"
    heard = await hear(call)
    assert heard.token_ids == [token_at(len(prompt) + i) for i in range(TOKENS)]
    assert heard.finished.reason == pb.FINISH_REASON_LENGTH
    assert heard.finished.usage.generated_tokens == TOKENS
    return "moved" if heard.finished.usage.attempts > 1 else "stayed"


async def killer(workers: list[FakeWorker], ended: asyncio.Event) -> None:
    draw = random.Random(3)
    for _ in range(6):
        await asyncio.sleep(0.15)
        victim = draw.choice(workers)
        address = victim.address
        await victim.die()
        await victim.start(address)
    ended.set()


async def test_storm(small_checkpoint: Path, tmp_path: Path) -> None:
    decode = [FakeWorker("decode", f"d{i}", script=unreliable) for i in range(4)]
    prefill = [FakeWorker("prefill", f"p{i}", script=unreliable) for i in range(2)]
    workers = [*decode, *prefill]
    for worker in workers:
        await worker.start()
    section = {"limits": {"max_attempts": 10}, "routing": {"local_suffix_tokens": 30}}
    async with running_router(small_checkpoint, tmp_path, workers, **section) as router:
        ended = asyncio.Event()
        killing = asyncio.create_task(killer(workers, ended))
        outcomes = await asyncio.gather(*(one(router, i) for i in range(STREAMS)))
        await killing
        for worker in decode:
            worker.script = generate
        async with asyncio.timeout(10):
            while (await router.metrics())["baton_workers"] < len(workers):
                await asyncio.sleep(0.05)
        assert await one(router, 1) == "stayed"
        metrics = await router.metrics()
        assert metrics["baton_num_requests_running"] == 0
        assert metrics["baton_request_success_total"] == STREAMS + 1 - outcomes.count("cancelled")
    assert outcomes.count("cancelled") == STREAMS // 10
    assert outcomes.count("moved") > 0, "nothing was killed under a stream"
    for worker in workers:
        await worker.die()


async def test_every_worker_refuses_under_load(small_checkpoint: Path, tmp_path: Path) -> None:
    """Refusals are answers: nobody waits, nobody is lost, the router stays."""

    async def refuse(worker: FakeWorker, run: Run) -> None:
        worker.say(worker.failed(run, errors.ERROR_REASON_OVERLOADED, "full"))

    workers = [FakeWorker("decode", f"d{i}", script=refuse) for i in range(3)]
    for worker in workers:
        await worker.start()
    async with running_router(small_checkpoint, tmp_path, workers) as router:
        results = await asyncio.gather(*(one(router, i) for i in range(9)), return_exceptions=True)
        for result in results:
            assert isinstance(result, grpc.aio.AioRpcError)
            assert result.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(len(worker.runs) for worker in workers) == 9 * 3, "each was asked once"
    for worker in workers:
        await worker.die()
