"""What a server does with refusals, surprises, garbage, and its own end."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baton.v1 import errors_pb2, kv_pb2_grpc
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc as rpc
from baton_rpc import Refusal, Server, bearer, channel, refusal_of, wait_until_healthy

SERVICE = "baton.v1.InferenceService"


class Service(rpc.InferenceServiceServicer):
    """Does what the model field says."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if request.model == "refuse":
            raise Refusal(errors_pb2.ERROR_REASON_UNKNOWN_MODEL, "no such model", {"model": "x"})
        if request.model == "surprise":
            raise KeyError("secret prompt")
        if request.model == "abort":
            await context.abort(grpc.StatusCode.ABORTED, "by hand")
        return pb.GetModelResponse(model=request.model)

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        try:
            yield pb.GenerateResponse(accepted=pb.Accepted(request_id="1"))
            if request.model == "refuse":
                raise Refusal(errors_pb2.ERROR_REASON_NUMERIC, "NaN")
            if request.model == "wait":
                await asyncio.sleep(60)
            yield pb.GenerateResponse(finished=pb.Finished())
        finally:
            await asyncio.sleep(0.05)
            self.ended.append(request.model)


class Holder(kv_pb2_grpc.KvPeerServiceServicer):
    pass


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[Server, Service, grpc.aio.Channel]]:
    service = Service()
    server = Server(
        "127.0.0.1:0", [(service, rpc.add_InferenceServiceServicer_to_server)], **options
    )
    await server.start()
    async with channel(server.address) as dialled:
        yield server, service, dialled
    await server.stop()


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = refusal_of(caught.value)
    assert refusal is not None, caught.value
    assert caught.value.code() is refusal.code
    return refusal


async def test_a_refusal_reaches_the_client_with_code_reason_and_metadata() -> None:
    async with running() as (_, _, dialled):
        stub = rpc.InferenceServiceStub(dialled)
        refusal = await refused(stub.GetModel(pb.GetModelRequest(model="refuse")))
        assert refusal.reason == errors_pb2.ERROR_REASON_UNKNOWN_MODEL
        assert (refusal.message, refusal.metadata) == ("no such model", {"model": "x"})
        assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_a_refusal_in_the_middle_of_a_stream_ends_it_after_its_events() -> None:
    async with running() as (_, _, dialled):
        call = rpc.InferenceServiceStub(dialled).Generate(pb.GenerateRequest(model="refuse"))
        assert (await call.read()).accepted.request_id == "1"  # type: ignore[union-attr]
        assert (await refused(call.read())).reason == errors_pb2.ERROR_REASON_NUMERIC


async def test_a_surprise_is_internal_with_a_reference_and_tells_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as (_, _, dialled):
        stub = rpc.InferenceServiceStub(dialled)
        with caplog.at_level(logging.ERROR, "baton.rpc"):
            refusal = await refused(stub.GetModel(pb.GetModelRequest(model="surprise")))
        assert refusal.reason == errors_pb2.ERROR_REASON_INTERNAL
        assert "secret" not in refusal.message
        assert refusal.metadata["reference"] in caplog.text
        assert "secret prompt" in caplog.text
        assert (await stub.GetModel(pb.GetModelRequest(model="next"))).model == "next"


async def test_a_handlers_own_abort_passes() -> None:
    async with running() as (_, _, dialled):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.InferenceServiceStub(dialled).GetModel(pb.GetModelRequest(model="abort"))
        assert caught.value.code() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"], ids=["not protobuf", "invalid UTF-8"]
)
@pytest.mark.parametrize("method", ["GetModel", "Generate"])
async def test_bytes_that_do_not_parse_are_malformed(raw: bytes, method: str) -> None:
    async with running() as (_, service, dialled):
        path = f"/{SERVICE}/{method}"
        if method == "GetModel":
            call = dialled.unary_unary(path)(raw)
            refusal = await refused(call)
        else:
            refusal = await refused(dialled.unary_stream(path)(raw).read())
        assert refusal.reason == errors_pb2.ERROR_REASON_MALFORMED_MESSAGE
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert service.ended == []


async def test_an_unknown_method_is_unimplemented() -> None:
    async with running() as (_, _, dialled):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await dialled.unary_unary("/baton.v1.InferenceService/Nope")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_by_service_name_follows_the_server() -> None:
    async with running() as (server, _, dialled):
        stub = health_pb2_grpc.HealthStub(dialled)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await server.set_serving(False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(TimeoutError):
            await wait_until_healthy(dialled, timeout_s=0.3)


async def test_health_watch_streams_changes() -> None:
    async with running() as (server, _, dialled):
        watch = health_pb2_grpc.HealthStub(dialled).Watch(health_pb2.HealthCheckRequest())
        first = await watch.read()
        await server.set_serving(False)
        second = await watch.read()
        assert [first.status, second.status] == [1, 2]  # type: ignore[union-attr]
        watch.cancel()


async def test_reflection_lists_our_services() -> None:
    async with running() as (_, _, dialled):
        stub = reflection_pb2_grpc.ServerReflectionStub(dialled)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {s.name for s in answer.list_services_response.service}  # type: ignore[union-attr]
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        await call.done_writing()


async def test_stop_returns_after_the_handlers_finally() -> None:
    async with running() as (server, service, dialled):
        call = rpc.InferenceServiceStub(dialled).Generate(pb.GenerateRequest(model="wait"))
        await call.read()
        await server.stop()
        assert service.ended == ["wait"]


async def test_drain_lets_running_calls_end_and_refuses_new_ones() -> None:
    async with running() as (server, service, dialled):
        stub = rpc.InferenceServiceStub(dialled)
        call = stub.Generate(pb.GenerateRequest(model="wait"))
        await call.read()
        draining = asyncio.create_task(server.drain(grace_s=10))
        await asyncio.sleep(0.05)
        refusal = await refused(stub.GetModel(pb.GetModelRequest()))
        assert refusal.reason == errors_pb2.ERROR_REASON_DRAINING
        assert not draining.done()
        call.cancel()
        await asyncio.wait_for(draining, 5)
        assert service.ended == ["wait"]


async def test_drain_gives_up_after_its_grace() -> None:
    async with running() as (server, service, dialled):
        call = rpc.InferenceServiceStub(dialled).Generate(pb.GenerateRequest(model="wait"))
        await call.read()
        start = time.monotonic()
        await server.drain(grace_s=0.3)
        assert time.monotonic() - start < 3
        assert service.ended == ["wait"]


async def test_a_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (_, service, dialled):
        with caplog.at_level(logging.WARNING):
            call = rpc.InferenceServiceStub(dialled).Generate(pb.GenerateRequest(model="wait"))
            await call.read()
            call.cancel()
            await _until(lambda: service.ended == ["wait"])
        assert caplog.text == ""


async def test_a_token_is_demanded_of_all_but_health() -> None:
    async with running(token="s3cret") as (_, _, dialled):
        stub = rpc.InferenceServiceStub(dialled)
        for metadata in ((), bearer("wrong")):
            refusal = await refused(stub.GetModel(pb.GetModelRequest(), metadata=metadata))
            assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
        await stub.GetModel(pb.GetModelRequest(), metadata=bearer("s3cret"))
        await wait_until_healthy(dialled, timeout_s=5)


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    async with running() as (server, _, _):
        other = Server(
            server.address, [(Holder(), kv_pb2_grpc.add_KvPeerServiceServicer_to_server)]
        )
        with pytest.raises(OSError, match=str(server.port)):
            await other.start()


STOPPED_SERVER = """
import asyncio
from baton_rpc import Server
async def main():
    server = Server("127.0.0.1:0", [])
    await server.start()
    print(server.port, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_peer_that_hangs_is_noticed_within_seconds() -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", STOPPED_SERVER], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        async with channel(f"127.0.0.1:{port}") as dialled:
            watch = health_pb2_grpc.HealthStub(dialled).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            process.send_signal(signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(watch.read(), 20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - start < 9
    finally:
        process.kill()
        process.wait()


async def _until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
