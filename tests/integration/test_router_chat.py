"""Chat, the other calls, health, and what the directory tells: over a scripted worker."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import kv_pb2_grpc
from baton.v1 import worker_pb2 as wire
from baton_rpc import refusal_of, wait_until_healthy
from baton_rpc.options import SERVER_OPTIONS
from baton_scheduler import page_hashes

from .fake_worker import FakeWorker, Run, generate
from .router_process import hear, running_router

ANSWER = (
    "<think>let me see</think>\n\nI will look.\n"
    '<tool_call>{"name": "list_dir", "arguments": {"path": "/é"}}</tool_call>'
)
TOOL = pb.Tool(name="list_dir", description="lists", parameters_json='{"type": "object"}')


def says(text_ids: list[int]) -> Any:
    async def script(worker: FakeWorker, run: Run) -> None:
        n = len(run.start.token_ids)
        for i, token in enumerate(text_ids):
            tokens = wire.RequestTokens(first_position=n + i, token_ids=[token])
            worker.say(worker.update(run, tokens=tokens))
        worker.say(worker.done(run, pb.FINISH_REASON_EOS))

    return script


async def test_chat_and_the_rest(small_checkpoint: Path, tmp_path: Path) -> None:
    decode = FakeWorker("decode", "d")
    await decode.start()
    async with running_router(small_checkpoint, tmp_path, [decode]) as router:
        stub = router.stub
        model = await stub.GetModel(pb.GetModelRequest())
        assert (model.model, model.page_size, model.vocab_size) == ("toy", 16, 400)
        assert (model.fingerprint, list(model.eos_token_ids)) == ("toy", [2, 0])
        assert model.default_sampling.temperature == 0.5
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetModel(pb.GetModelRequest(model="other"))
        refusal = refusal_of(raised.value)
        assert refusal is not None and refusal.reason == errors.ERROR_REASON_UNKNOWN_MODEL

        ids = list((await stub.Tokenize(pb.TokenizeRequest(text=ANSWER))).token_ids)
        assert (await stub.Detokenize(pb.DetokenizeRequest(token_ids=ids))).text == ANSWER
        decode.script = says([*ids, 2])
        request = pb.ChatRequest(
            messages=[pb.ChatMessage(role="user", content="look")], tools=[TOOL]
        )
        responses = [response async for response in stub.Chat(request, timeout=10)]
        content, reasoning, calls, tokens = joined(responses)
        assert (content, reasoning) == ("I will look.", "let me see")
        (call,) = calls
        assert (call.name, json.loads(call.arguments_json)) == ("list_dir", {"path": "/é"})
        assert tokens == [*ids, 2]
        finished = responses[-1].finished
        assert finished.reason == pb.FINISH_REASON_TOOL_CALLS
        assert finished.usage.generated_tokens == len(ids) + 1

        # The whole turn goes back and is understood.
        request.messages.add(role="assistant", content=content, tool_calls=calls)
        request.messages.add(role="tool", content="[]", tool_call_id=call.id)
        rendered = await stub.Tokenize(pb.TokenizeRequest(chat=request))
        text = (await stub.Detokenize(pb.DetokenizeRequest(token_ids=rendered.token_ids))).text
        assert ANSWER.partition("\n\n")[2] in text

        request.tool_choice = "none"
        responses = [response async for response in stub.Chat(request, timeout=10)]
        content, _, calls, _ = joined(responses)
        assert content == ANSWER.partition("\n\n")[2] and not calls
        assert responses[-1].finished.reason == pb.FINISH_REASON_EOS
    await decode.die()


def joined(responses: list[pb.ChatResponse]) -> tuple[str, str, list[pb.ToolCall], list[int]]:
    deltas = [response.delta for response in responses[1:-1]]
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [call for delta in deltas for call in delta.tool_calls],
        [token for delta in deltas for token in delta.token_ids],
    )


async def test_health_follows_the_decode_workers(small_checkpoint: Path, tmp_path: Path) -> None:
    decode = FakeWorker("decode", "d")
    await decode.start()
    address = decode.address
    async with running_router(small_checkpoint, tmp_path, [decode]) as router:
        stub = health_pb2_grpc.HealthStub(router.connection)
        await decode.die()
        async with asyncio.timeout(20):
            while True:
                answer = await stub.Check(health_pb2.HealthCheckRequest())
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
                await asyncio.sleep(0.02)
        await decode.start(address)
        await wait_until_healthy(router.connection, timeout_s=5)
        metrics = await router.metrics()
        assert metrics["baton_workers"] == 1
    await decode.die()


class Directory(kv_pb2_grpc.KvDirectoryServiceServicer):
    """Tells one watcher what the test puts into the queue."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[kv.WatchResponse] = asyncio.Queue()

    async def Watch(self, request: kv.WatchRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield await self.events.get()


async def test_the_directory_is_followed(small_checkpoint: Path, tmp_path: Path) -> None:
    """Sources are named for pages that others hold; a worker's old life is not believed."""
    directory = Directory()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    kv_pb2_grpc.add_KvDirectoryServiceServicer_to_server(directory, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    prefill, decode = FakeWorker("prefill", "p"), FakeWorker("decode", "d")
    await prefill.start()
    await decode.start()
    prompt, probe = list(range(20, 120)), list(range(120, 20, -1))
    section = {"routing": {"local_suffix_tokens": 0}, "kvstore": f"127.0.0.1:{port}"}
    workers = [prefill, decode]
    async with running_router(small_checkpoint, tmp_path, workers, **section) as router:

        async def ask(ids: list[int]) -> tuple[Run, Run]:
            stop = pb.StopParams(max_tokens=2, ignore_eos=True)
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), stop=stop)
            await hear(router.stub.Generate(request, timeout=10))
            return prefill.runs[-1], decode.runs[-1]

        key = (await ask(prompt))[1].start.cache_key
        chain, other = (
            page_hashes(np.asarray(ids, np.int32), 16, key).tobytes() for ids in (prompt, probe)
        )
        storage = kv.Peer(name="kv", address="kv:1", epoch=9)
        dead = kv.Peer(name="p", address="p:1", epoch=prefill.epoch + 1000)
        changes = [
            kv.HolderChange(holder=storage, added=chain[: 4 * 16], storage=True),
            kv.HolderChange(holder=dead, added=chain),
            *(kv.HolderChange(holder=w.peer, removed=other) for w in workers),
            kv.HolderChange(holder=storage, added=other[: 2 * 16], storage=True),
        ]
        sequence = itertools.count(1)

        async def sources_after(changes: list[kv.HolderChange], ids: list[int]) -> list[Any]:
            """What a prefill worker that has none of `ids` is told, once the changes are heard.

            Told again and again: a request that runs while they are heard leaves its pages behind.
            """
            async with asyncio.timeout(20):
                while True:
                    number = next(sequence)
                    event = kv.WatchResponse(sequence=number, snapshot=number == 1, changes=changes)
                    directory.events.put_nowait(event)
                    await asyncio.sleep(0.02)
                    if sources := (await ask(ids))[0].start.sources:
                        return [(s.holder, s.pages) for s in sources]

        assert await sources_after(changes, probe) == [(storage, 2)]
        prefilling, decoding = await ask(prompt)
        sources = [(s.holder.name, s.pages) for s in decoding.start.sources]
        # Its own pages are no source; the router's memory of its own requests knows them.
        assert sources in ([], [("p", 6)]) and not prefilling.start.sources

        gone = [kv.HolderChange(holder=w.peer, removed=chain) for w in workers]
        assert await sources_after(gone, prompt) == [(storage, 4)]
    await server.stop(None)
    await prefill.die()
    await decode.die()


async def test_invalid_utf8_and_the_next_request(small_checkpoint: Path, tmp_path: Path) -> None:
    decode = FakeWorker("decode", "d", script=generate)
    await decode.start()
    async with running_router(small_checkpoint, tmp_path, [decode]) as router:
        call = router.connection.unary_stream(
            "/baton.v1.InferenceService/Chat",
            request_serializer=lambda raw: raw,
            response_deserializer=pb.ChatResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"\x0a\x02\xff\xfe", timeout=10).read()
        refusal = refusal_of(raised.value)
        assert refusal is not None and refusal.reason == errors.ERROR_REASON_MALFORMED_MESSAGE
        request = pb.GenerateRequest(text="hi", stop=pb.StopParams(max_tokens=3))
        assert len((await hear(router.stub.Generate(request, timeout=10))).token_ids) == 3
    await decode.die()
