"""The real router over scripted workers: how it is started, and what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_rpc import refusal_of

from .fake_worker import FakeWorker, token_at
from .router_process import Router, hear, running_router

PROMPT = list(range(50, 90))
EXPECTED = [token_at(len(PROMPT) + i) for i in range(12)]


def request(**fields: Any) -> pb.GenerateRequest:
    fields.setdefault("token_ids", pb.TokenIds(ids=PROMPT))
    fields.setdefault("stop", pb.StopParams(max_tokens=12, ignore_eos=True))
    return pb.GenerateRequest(**fields)


@asynccontextmanager
async def cluster(
    checkpoint: Path, directory: Path, *workers: FakeWorker, **section: Any
) -> AsyncIterator[Router]:
    for worker in workers:
        await worker.start()
    try:
        async with running_router(checkpoint, directory, workers, **section) as router:
            yield router
    finally:
        for worker in workers:
            await worker.die()


async def until(condition: Any, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def assert_refused(call: Any, code: grpc.StatusCode, reason: errors.ErrorReason) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await hear(call)
    refusal = refusal_of(raised.value)
    assert refusal is not None and refusal.reason == reason, raised.value
    assert raised.value.code() == code
    return refusal.message
