"""The router's end of a worker's stream, against a scripted worker over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from baton.v1 import worker_pb2 as wire
from baton_router.worker_link import WorkerLink

from .fake_worker import FakeWorker, Run


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.updates: list[wire.RequestUpdate] = []
        self.lost_links: list[WorkerLink] = []

    def updated(self, link: WorkerLink, update: wire.RequestUpdate) -> None:
        self.updates.append(update)

    def lost(self, link: WorkerLink) -> None:
        self.lost_links.append(link)


@asynccontextmanager
async def linked(worker: FakeWorker) -> AsyncIterator[WorkerLink]:
    await worker.start()
    link = WorkerLink(
        worker.address,
        wire.WORKER_ROLE_DECODE,
        "router",
        accept=lambda hello: None,
        changed=lambda link: None,
        reconnect_s=0.05,
    )
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: link.ready)
        yield link
    finally:
        running.cancel()
        await asyncio.wait([running])
        await worker.die()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def mute(worker: FakeWorker, run: Run) -> None:
    """Takes the request and says nothing."""


def start(number: int) -> wire.StartRequest:
    return wire.StartRequest(request_id=f"r{number}", attempt=1, token_ids=[20, 21], compute={})


async def test_commands_of_one_turn_leave_in_one_message() -> None:
    worker = FakeWorker("decode", "d", script=mute)
    async with linked(worker) as link:
        for i in range(5):
            link.start(start(i), Heard())
        link.cancel("r0", 1)
        await until(lambda: len(worker.runs) == 5 and worker.runs[0].cancelled.is_set())
    assert worker.batches == [6]


async def test_a_lost_worker_takes_its_unsent_commands_along() -> None:
    worker = FakeWorker("decode", "d", script=mute)
    heard = Heard()
    async with linked(worker) as link:
        address = worker.address
        link.start(start(1), heard)
        await until(lambda: len(worker.runs) == 1)
        await worker.die()
        await until(lambda: not link.ready)
        assert heard.lost_links == [link]
        link.start(start(2), Heard())  # nobody is there: it must not reach the next life
        await worker.start(address)
        await until(lambda: link.ready)
        link.start(start(3), Heard())
        await until(lambda: len(worker.runs) == 2)
    assert [run.start.request_id for run in worker.runs] == ["r1", "r3"]
