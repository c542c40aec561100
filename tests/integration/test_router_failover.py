"""The router over scripted workers that die or refuse: streams go on, or end with a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb

from .fake_worker import FakeWorker, Run, generate, generate_tokens
from .router_process import hear
from .scripted_cluster import EXPECTED, PROMPT, assert_refused, cluster, request


async def test_decode_worker_dies_mid_stream(small_checkpoint: Path, tmp_path: Path) -> None:
    dead: list[str] = []

    async def die_once(worker: FakeWorker, run: Run) -> None:
        if dead:
            await generate(worker, run)
            return
        dead.append(worker.name)
        await generate_tokens(worker, run, 5)
        await asyncio.sleep(0.05)
        await asyncio.shield(asyncio.ensure_future(worker.die()))

    workers = [FakeWorker("decode", name, script=die_once) for name in ("d0", "d1")]
    async with cluster(small_checkpoint, tmp_path, *workers) as router:
        heard = await hear(
            router.stub.Generate(request(sampling=pb.SamplingParams(temperature=1)), timeout=10)
        )
        survivor = next(worker for worker in workers if worker.name != dead[0])
        metrics = await router.metrics()
    assert heard.token_ids == EXPECTED
    assert (heard.finished.usage.attempts, heard.finished.usage.decode_worker) == (
        2,
        survivor.name,
    )
    first = next(w for w in workers if w.name == dead[0]).runs[0].start
    again = survivor.runs[0].start
    assert list(again.token_ids) == PROMPT + EXPECTED[:5]
    assert (again.prompt_tokens, again.max_new_tokens, again.attempt) == (len(PROMPT), 7, 2)
    assert again.sampling == first.sampling and first.sampling.seed
    assert metrics["baton_failovers_total"] == 1


async def test_worker_dies_between_its_last_token_and_its_last_word(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    read = asyncio.Event()

    async def no_last_word(worker: FakeWorker, run: Run) -> None:
        await generate_tokens(worker, run, 12)
        await read.wait()
        await asyncio.shield(asyncio.ensure_future(worker.die()))

    decode = FakeWorker("decode", "d", script=no_last_word)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        call = router.stub.Generate(request(), timeout=10)
        ids: list[int] = []
        async for response in call:
            ids += response.delta.token_ids
            if ids == EXPECTED:
                read.set()
    assert ids == EXPECTED
    assert response.finished.reason == pb.FINISH_REASON_LENGTH
    assert len(decode.runs) == 1, "nothing was left to do elsewhere"


async def test_single_worker_that_comes_back_goes_on(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    async def die_once(worker: FakeWorker, run: Run) -> None:
        if len(worker.runs) > 1:
            await generate(worker, run)
            return
        await generate_tokens(worker, run, 3)
        await asyncio.sleep(0.05)
        address = worker.address
        await asyncio.shield(asyncio.ensure_future(restart(worker, address)))

    async def restart(worker: FakeWorker, address: str) -> None:
        await worker.die()
        await worker.start(address)

    decode = FakeWorker("decode", "d", script=die_once)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        heard = await hear(router.stub.Generate(request(), timeout=10))
    assert heard.token_ids == EXPECTED
    assert heard.finished.usage.attempts == 2


async def test_attempts_are_exhausted(small_checkpoint: Path, tmp_path: Path) -> None:
    async def die(worker: FakeWorker, run: Run) -> None:
        await generate_tokens(worker, run, 1)
        await asyncio.sleep(0.05)
        await asyncio.shield(asyncio.ensure_future(worker.die()))

    workers = [FakeWorker("decode", f"d{i}", script=die) for i in range(3)]
    limits = {"max_attempts": 2}
    async with cluster(small_checkpoint, tmp_path, *workers, limits=limits) as router:
        message = await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.UNAVAILABLE,
            errors.ERROR_REASON_ATTEMPTS_EXHAUSTED,
        )
    assert "2 workers" in message


async def test_prefill_worker_dies_or_refuses(small_checkpoint: Path, tmp_path: Path) -> None:
    """The decode worker is told, computes the prompt itself, and the stream goes on."""

    async def die(worker: FakeWorker, run: Run) -> None:
        await asyncio.shield(asyncio.ensure_future(worker.die()))

    async def refuse(worker: FakeWorker, run: Run) -> None:
        worker.say(worker.failed(run, errors.ERROR_REASON_OVERLOADED, "queue full"))

    async def wait_for_it(worker: FakeWorker, run: Run) -> None:
        if run.plan == "await_prefill":
            await run.prefill_lost.wait()
            run.start.compute.SetInParent()
        await generate(worker, run)

    prefill = FakeWorker("prefill", "p", script=refuse)
    decode = FakeWorker("decode", "d", script=wait_for_it)
    routing = {"local_suffix_tokens": 0}
    async with cluster(small_checkpoint, tmp_path, prefill, decode, routing=routing) as router:
        refused = await hear(router.stub.Generate(request(), timeout=10))
        prefill.script = die
        lost = await hear(router.stub.Generate(request(), timeout=10))
        alone = await hear(router.stub.Generate(request(), timeout=10))
    for heard in (refused, lost, alone):
        assert heard.token_ids == EXPECTED
        assert heard.finished.usage.route == pb.ROUTE_LOCAL
        assert heard.finished.usage.attempts == 1
        assert heard.finished.usage.cached_tokens == 0
    assert [run.plan for run in decode.runs][-1] == "compute"


async def test_overloaded_worker_is_passed_over(small_checkpoint: Path, tmp_path: Path) -> None:
    async def refuse(worker: FakeWorker, run: Run) -> None:
        worker.say(worker.failed(run, errors.ERROR_REASON_OVERLOADED, "queue full"))

    full, free = FakeWorker("decode", "a-full", script=refuse), FakeWorker("decode", "b-free")
    async with cluster(small_checkpoint, tmp_path, full, free) as router:
        heard = await hear(router.stub.Generate(request(), timeout=10))
        assert heard.token_ids == EXPECTED and heard.finished.usage.attempts == 1
        free.script = refuse
        message = await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            errors.ERROR_REASON_OVERLOADED,
        )
    assert "queue full" in message


async def test_poisoned_request_fails_alone(small_checkpoint: Path, tmp_path: Path) -> None:
    async def poison(worker: FakeWorker, run: Run) -> None:
        worker.say(worker.failed(run, errors.ERROR_REASON_NUMERIC, "NaN logits"))

    decode = FakeWorker("decode", "d", script=poison)
    async with cluster(small_checkpoint, tmp_path, decode) as router:
        await assert_refused(
            router.stub.Generate(request(), timeout=10),
            grpc.StatusCode.INTERNAL,
            errors.ERROR_REASON_NUMERIC,
        )
        decode.script = generate
        assert (await hear(router.stub.Generate(request(), timeout=10))).token_ids == EXPECTED
