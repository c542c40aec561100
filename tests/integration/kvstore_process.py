"""A kvstore in a process of its own, and watchers and publishers for its tests."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_kvstore import KvstoreConfig
from baton_rpc import channel, wait_until_healthy
from baton_transfer import DirectoryPublisher

from .transfer_holder import identity


@dataclass
class KvstoreProcess:
    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def kvstore(port: int, **settings: object) -> Iterator[KvstoreProcess]:
    """Starts it and ends it by SIGTERM; `healthy` waits until it serves."""
    address = f"127.0.0.1:{port}"
    config = KvstoreConfig.model_validate(
        {
            "listen": address,
            "capacity_mb": 16,
            "offload_delay_s": 0.05,
            "admission": "all",
            **settings,
        }
    )
    code = (
        "import asyncio, sys; from baton_kvstore import KvstoreConfig, serve;"
        "asyncio.run(serve(KvstoreConfig.model_validate_json(sys.argv[1])));"
        "assert 'torch' not in sys.modules"
    )
    process = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()])
    try:
        yield KvstoreProcess(process, address)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def healthy(address: str) -> None:
    async with channel(address) as link:
        await wait_until_healthy(link, timeout_s=20.0)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class View:
    """What a router would know."""

    pages: dict[str, set[bytes]] = field(default_factory=dict)
    storage: set[str] = field(default_factory=set)
    peers: dict[str, pb.Peer] = field(default_factory=dict)
    snapshots: int = 0
    sequence: int | None = None

    def take(self, event: pb.WatchResponse) -> None:
        if event.snapshot:
            self.snapshots += 1
            self.pages.clear()
            self.storage.clear()
        else:
            assert self.sequence is not None
            assert event.sequence == self.sequence + 1
        self.sequence = event.sequence
        for change in event.changes:
            name = change.holder.name
            if change.gone:
                self.pages.pop(name, None)
                continue
            held = self.pages.setdefault(name, set())
            held -= {change.removed[i : i + 16] for i in range(0, len(change.removed), 16)}
            held |= {change.added[i : i + 16] for i in range(0, len(change.added), 16)}
            self.peers[name] = change.holder
            if change.storage:
                self.storage.add(name)


@asynccontextmanager
async def watching(address: str) -> AsyncIterator[View]:
    view = View()

    async def watch() -> None:
        async with channel(address) as link:
            stub = kv_pb2_grpc.KvDirectoryServiceStub(link)
            async for event in stub.Watch(pb.WatchRequest(watcher="test"), wait_for_ready=True):
                view.take(event)

    task = asyncio.create_task(watch())
    try:
        yield view
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def publishing(
    address: str,
    peer: pb.Peer,
    held: Callable[[], NDArray[np.uint8]],
    *,
    page_bytes: int | Sequence[int] = 65536,
    heartbeat_s: float = 0.3,
) -> AsyncIterator[DirectoryPublisher]:
    publisher = DirectoryPublisher(
        address, peer, identity(page_bytes), held, batch_s=0.005, heartbeat_s=heartbeat_s
    )
    publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


async def tell_turn(address: str, chain: NDArray[np.uint8]) -> None:
    """As a router would, of a request of no session: these pages were used, one after another."""
    async with channel(address) as link:
        turn = pb.SessionTurn(page_hashes=chain.tobytes())
        stub = kv_pb2_grpc.KvSessionServiceStub(link)
        await stub.RenewSessions(pb.RenewSessionsRequest(turns=[turn]))
