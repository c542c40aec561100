"""SMG's worker protocol at the router, called as a gateway calls it, over scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_rpc import refusal_of

from .fake_worker import FakeWorker, Run, generate, token_at
from .router_process import Router, hear, running_router

PROMPT = list(range(50, 90))
TOKENS = [token_at(len(PROMPT) + i) for i in range(12)]


class Stub:
    """Calls by name; the package's own stubs want a newer grpcio."""

    def __init__(self, connection: grpc.aio.Channel) -> None:
        service = smg.DESCRIPTOR.services_by_name["TokenSpeedScheduler"]
        for method in service.methods:
            shape = connection.unary_stream if method.server_streaming else connection.unary_unary
            call = shape(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@asynccontextmanager
async def gateway_over(
    checkpoint: Path, directory: Path, worker: FakeWorker, **section: Any
) -> AsyncIterator[tuple[Stub, Router]]:
    await worker.start()
    try:
        async with running_router(
            checkpoint, directory, [worker], gateway="smg", **section
        ) as router:
            yield Stub(router.connection), router
    finally:
        await worker.die()


def request(**fields: Any) -> smg.GenerateRequest:
    params = fields.pop("params", {})
    params = smg.SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True, **params})
    fields.setdefault("tokenized", smg.TokenizedInput(input_ids=PROMPT))
    return smg.GenerateRequest(request_id=fields.pop("id", "r"), sampling_params=params, **fields)


async def test_generate_streaming_and_not(small_checkpoint: Path, tmp_path: Path) -> None:
    async with gateway_over(small_checkpoint, tmp_path, FakeWorker("decode", "d")) as (stub, _):
        whole = [m async for m in stub.Generate(request(), timeout=10)]
        assert [m.WhichOneof("response") for m in whole] == ["complete"]
        complete = whole[0].complete
        assert list(complete.output_ids) == TOKENS and complete.finish_reason == "length"
        assert (complete.prompt_tokens, complete.completion_tokens) == (40, 12)
        pieces = [m async for m in stub.Generate(request(stream=True), timeout=10)]
        assert {m.request_id for m in pieces} == {"r"}
        assert [t for m in pieces for t in m.chunk.token_ids] == TOKENS
        assert list(pieces[-1].complete.output_ids) == TOKENS


async def test_samples_come_in_order_and_share_a_stream(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    async def backwards(worker: FakeWorker, run: Run) -> None:
        """The later a sample was started, the sooner it ends."""
        await asyncio.sleep(0.3 / len(worker.runs))
        await generate(worker, run)

    worker = FakeWorker("decode", "d", script=backwards)
    async with gateway_over(small_checkpoint, tmp_path, worker) as (stub, _):
        params = {"n": 3, "sampling_seed": 7}
        done = [m async for m in stub.Generate(request(params=params), timeout=10)]
        assert [m.complete.index for m in done] == [0, 1, 2]
        assert sorted(run.start.sampling.seed for run in worker.runs) == [7, 8, 9]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mm_inputs": smg.MultimodalInputs(items=[smg.MultimodalItem()])}, "mm_inputs"),
    ({"encode_bootstrap_info": smg.EncodeBootstrapInfo()}, "encode_bootstrap_info"),
    ({"kv_bootstrap_info": smg.KvBootstrapInfo(bootstrap_room=3)}, "kv_bootstrap_info"),
    ({"data_parallel_rank": 0}, "data_parallel_rank"),
    ({"token_ids_logprob": [4]}, "token_ids_logprob"),
    ({"logprob_start_len": 0, "return_logprob": True}, "logprob_start_len"),
    ({"params": {"min_new_tokens": 2}}, "min_new_tokens"),
    ({"params": {"n": 99}}, "sampling_params.n"),
    ({"params": {"logit_bias": {"x": 1.0}}}, "logit_bias"),
    ({"return_logprob": True, "top_logprobs_num": 21}, "output.logprobs"),
    ({"params": {"temperature": -1.0}}, "sampling.temperature"),
    ({"params": {"json_schema": "{", "ignore_eos": False}}, "json_schema"),
    ({"params": {"regex": "a", "ignore_eos": True}}, "ignore_eos"),
    ({"tokenized": smg.TokenizedInput(input_ids=[10**6])}, "vocabulary"),
    ({"tokenized": smg.TokenizedInput()}, "empty"),
]


async def test_what_is_not_supported_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    worker = FakeWorker("decode", "d")
    async with gateway_over(small_checkpoint, tmp_path, worker) as (stub, _):
        for fields, named in REFUSED:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(request(**fields), timeout=10).read()
            refusal = refusal_of(raised.value)
            assert refusal is not None and named in refusal.message, (fields, raised.value)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert refusal.reason != errors.ERROR_REASON_UNSPECIFIED
    assert not worker.runs  # before any work


async def test_abort_flush_loads_and_health(small_checkpoint: Path, tmp_path: Path) -> None:
    async def forever(worker: FakeWorker, run: Run) -> None:
        worker.say(worker.tokens(run, len(run.start.token_ids)))
        await run.cancelled.wait()

    worker = FakeWorker("decode", "d", script=forever)
    async with gateway_over(small_checkpoint, tmp_path, worker) as (stub, router):
        health = await stub.HealthCheck(smg.HealthCheckRequest(), timeout=5)
        assert health.healthy
        info = await stub.GetModelInfo(smg.GetModelInfoRequest(), timeout=5)
        assert (info.served_model_name, info.max_context_length) == ("toy", 4096)
        server = await stub.GetServerInfo(smg.GetServerInfoRequest(), timeout=5)
        assert server.max_total_num_tokens == 512 * 16
        loads = await stub.GetLoads(smg.GetLoadsRequest(), timeout=5)
        assert len(loads.loads) == 1 and loads.loads[0].max_running_requests == 64
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.StartProfile(common.StartProfileRequest(), timeout=5)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED

        call = stub.Generate(request(stream=True), timeout=20)
        assert (await call.read()).chunk.token_ids
        with pytest.raises(grpc.aio.AioRpcError) as twice:
            await stub.Generate(request(stream=True), timeout=5).read()
        assert twice.value.code() == grpc.StatusCode.ALREADY_EXISTS
        answer = await stub.Abort(smg.AbortRequest(request_id="r"), timeout=5)
        assert answer.success
        with pytest.raises(grpc.aio.AioRpcError) as aborted:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert aborted.value.code() == grpc.StatusCode.CANCELLED
        await asyncio.wait_for(worker.runs[0].cancelled.wait(), 20)
        answer = await stub.Abort(smg.AbortRequest(request_id="r"), timeout=5)
        assert not answer.success

        key = worker.runs[0].start.cache_key
        worker.script = generate
        await hear(router.stub.Generate(_baton(), timeout=10))
        assert worker.runs[-1].start.cache_key == key  # both APIs share pages
        flushed = await stub.FlushCache(common.FlushCacheRequest(), timeout=5)
        assert flushed.success
        await hear(router.stub.Generate(_baton(), timeout=10))
        assert worker.runs[-1].start.cache_key != key


def _baton() -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=PROMPT), stop=pb.StopParams(max_tokens=3, ignore_eos=True)
    )


async def test_a_silent_worker_is_spoken_for(small_checkpoint: Path, tmp_path: Path) -> None:
    """The first message is an empty chunk when the prompt takes long."""
    speak = asyncio.Event()

    async def late(worker: FakeWorker, run: Run) -> None:
        await speak.wait()
        await generate(worker, run)

    worker = FakeWorker("decode", "d", script=late)
    async with gateway_over(small_checkpoint, tmp_path, worker) as (stub, _):
        messages = aiter(stub.Generate(request(stream=True), timeout=30))
        first = await anext(messages)
        assert not first.chunk.token_ids and first.chunk.prompt_tokens == len(PROMPT)
        speak.set()
        assert [t async for m in messages for t in m.chunk.token_ids] == TOKENS


async def test_kv_events_follow_requests(small_checkpoint: Path, tmp_path: Path) -> None:
    async with gateway_over(small_checkpoint, tmp_path, FakeWorker("decode", "d")) as (
        stub,
        router,
    ):
        events = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest(), timeout=20)
        await asyncio.wait_for(events.initial_metadata(), 10)  # at once: SMG waits for it
        await hear(router.stub.Generate(_baton(), timeout=10))
        batch = await events.read()
        (event,) = batch.events
        # 40 tokens and 3 new ones, of which the last is never computed: two pages of 16.
        assert [list(b.token_ids) for b in event.stored.blocks] == [PROMPT[:16], PROMPT[16:32]]
        tenant = _baton()
        tenant.tenant = "other"
        await hear(router.stub.Generate(tenant, timeout=10))
        await stub.FlushCache(common.FlushCacheRequest(), timeout=5)
        batch = await events.read()
        assert batch.sequence_number == 2 and batch.events[0].HasField("cleared")
        events.cancel()
