"""A worker without a model: token ids at a fixed pace, over both protocols that lead to one.

    python bench/gateway/canned_worker.py CHECKPOINT PORT

SMG drives it directly (TokenSpeed's scheduler protocol) or through Baton's
router (baton.v1's WorkerService); what differs between the two is the router.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton.v1 import worker_pb2_grpc
from baton_router.checkpoint import read_card
from baton_router.gateway import add_scheduler_to_server
from baton_rpc import Server, stop_signal

TOKEN, PAUSE_S = 300, 0.004


class Bare:
    """The scheduler protocol, and nothing behind it."""

    def __init__(self, checkpoint: Path) -> None:
        self._path = str(checkpoint.resolve())
        self._card = read_card(checkpoint, "model")

    async def HealthCheck(self, request: Any, context: Any) -> smg.HealthCheckResponse:
        return smg.HealthCheckResponse(healthy=True)

    async def GetServerInfo(self, request: Any, context: Any) -> smg.GetServerInfoResponse:
        return smg.GetServerInfoResponse(tokenspeed_version="canned")

    async def GetModelInfo(self, request: Any, context: Any) -> smg.GetModelInfoResponse:
        return smg.GetModelInfoResponse(
            model_path=self._path,
            tokenizer_path=self._path,
            served_model_name="model",
            max_context_length=self._card.max_context,
            vocab_size=self._card.vocab_size,
            eos_token_ids=self._card.eos_token_ids,
        )

    async def Abort(self, request: Any, context: Any) -> smg.AbortResponse:
        return smg.AbortResponse(success=False)

    async def Generate(
        self, request: smg.GenerateRequest, context: Any
    ) -> AsyncIterator[smg.GenerateResponse]:
        count = request.sampling_params.max_new_tokens
        prompt = len(request.tokenized.input_ids)
        for i in range(count):
            chunk = smg.GenerateStreamChunk(
                token_ids=[TOKEN], prompt_tokens=prompt, completion_tokens=i + 1
            )
            yield smg.GenerateResponse(request_id=request.request_id, chunk=chunk)
            await asyncio.sleep(PAUSE_S)
        complete = smg.GenerateComplete(
            output_ids=[TOKEN] * count,
            finish_reason="length",
            prompt_tokens=prompt,
            completion_tokens=count,
        )
        yield smg.GenerateResponse(request_id=request.request_id, complete=complete)


class Decode(worker_pb2_grpc.WorkerServiceServicer):
    """A decode worker for Baton's router, with the same tokens at the same pace."""

    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self.address = ""

    def _hello(self) -> wire.WorkerHello:
        group = kv.CacheGroupIdentity(name="full", dtype="float32", layers=1, page_bytes=4096)
        return wire.WorkerHello(
            worker="canned",
            role=wire.WORKER_ROLE_DECODE,
            wire_version=1,
            epoch=1,
            peer=kv.Peer(name="canned", address=self.address, epoch=1),
            cache=kv.CacheIdentity(
                wire_version=1, model_fingerprint="canned", page_size=16, groups=[group]
            ),
            max_context=self._max_context,
            max_running=256,
            pool=wire.PoolState(total_pages=65536, free_pages=65536),
        )

    async def Connect(
        self, request_iterator: AsyncIterator[wire.ConnectRequest], context: Any
    ) -> AsyncIterator[wire.ConnectResponse]:
        outbox: asyncio.Queue[wire.RequestUpdate] = asyncio.Queue()
        reader = asyncio.create_task(_obey(request_iterator, outbox))
        try:
            yield wire.ConnectResponse(hello=self._hello())
            while True:
                updates = [await outbox.get()]
                while not outbox.empty():  # one step, one message
                    updates.append(outbox.get_nowait())
                yield wire.ConnectResponse(step=wire.StepReport(updates=updates))
        finally:
            reader.cancel()


async def _obey(
    requests: AsyncIterator[wire.ConnectRequest], outbox: asyncio.Queue[wire.RequestUpdate]
) -> None:
    async with asyncio.TaskGroup() as running:
        async for request in requests:
            for command in request.commands.commands:
                if command.HasField("start"):
                    running.create_task(_generate(command.start, outbox))


async def _generate(start: wire.StartRequest, outbox: asyncio.Queue[wire.RequestUpdate]) -> None:
    position = len(start.token_ids)
    cost = wire.RequestCost(computed_tokens=position)
    for i in range(start.max_new_tokens):
        tokens = wire.RequestTokens(
            first_position=position + i, token_ids=[TOKEN], cost=cost if i == 0 else None
        )
        outbox.put_nowait(_update(start, tokens=tokens))
        await asyncio.sleep(PAUSE_S)
    done = wire.RequestDone(reason=pb.FINISH_REASON_LENGTH, cost=cost)
    outbox.put_nowait(_update(start, done=done))


def _update(start: wire.StartRequest, **kind: Any) -> wire.RequestUpdate:
    return wire.RequestUpdate(request_id=start.request_id, attempt=start.attempt, **kind)


async def serve(checkpoint: Path, port: int) -> None:
    """Until SIGTERM."""
    bare = Bare(checkpoint)
    decode = Decode(read_card(checkpoint, "model").max_context)
    decode.address = f"127.0.0.1:{port}"
    server = Server(
        decode.address,
        [
            (bare, add_scheduler_to_server),
            (decode, worker_pb2_grpc.add_WorkerServiceServicer_to_server),
        ],
    )
    await server.start()
    await stop_signal().wait()
    await server.stop()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
