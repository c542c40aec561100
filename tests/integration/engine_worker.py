"""An engine with its KvPeerService, in this process: what the engine's tests drive."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from baton.v1.kv_pb2 import Peer
from baton.v1.kv_pb2_grpc import add_KvPeerServiceServicer_to_server
from baton_engine import (
    Done,
    Engine,
    EngineConfig,
    EngineRequest,
    Event,
    Failed,
    Generate,
    Prefilled,
    SamplingParams,
    Source,
    StepEvents,
    StopParams,
    TokensEmitted,
)
from baton_engine.request import Goal
from baton_rpc import Server
from baton_transfer import KvPeerServicer

CACHE_KEY = bytes(range(16))


@dataclass
class Attempt:
    """Everything an engine said about one attempt."""

    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> list[int]:
        return [t for e in self.events if isinstance(e, TokensEmitted) for t in e.token_ids]

    @property
    def end(self) -> Done | Failed | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Done | Failed) else None

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    async def until(self, kind: type[Any], timeout: float = 30.0) -> Any:
        async with asyncio.timeout(timeout):
            while not self.of(kind):
                self.changed.clear()
                await self.changed.wait()
        return self.of(kind)[0]

    async def ended(self, timeout: float = 30.0) -> Done | Failed:
        async with asyncio.timeout(timeout):
            while self.end is None:
                self.changed.clear()
                await self.changed.wait()
        return self.end


class EngineWorker:
    """An engine, its server, and what it said."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.attempts: dict[tuple[str, int], Attempt] = defaultdict(Attempt)
        self.steps: list[StepEvents] = []
        self.told: list[float] = []  # when each of them was, by time.monotonic
        self.peer = Peer()
        self._server: Server | None = None
        self._servicer: KvPeerServicer | None = None

    async def start(self) -> None:
        await self.engine.load()
        about = self.engine.description
        me = Peer(name=self.engine.name, epoch=self.engine.epoch)
        servicer = self._servicer = KvPeerServicer(
            self.engine.holder, me, about.identity, self.engine.exported
        )
        self._server = Server("127.0.0.1:0", [(servicer, add_KvPeerServiceServicer_to_server)])
        await servicer.open_leases("127.0.0.1")
        await self._server.start()
        me.address = self._server.address
        self.peer = self.engine.start(me.address, self._told)

    async def stop(self) -> None:
        await self.engine.stop()
        if self._server is not None and self._servicer is not None:
            await self._server.stop()
            await self._servicer.close_leases()

    def _told(self, events: StepEvents) -> None:
        self.steps.append(events)
        self.told.append(time.monotonic())
        for event in events.events:
            attempt = self.attempts[(event.request_id, event.attempt)]
            assert attempt.end is None, f"{event} after {attempt.end}"
            attempt.events.append(event)
            attempt.changed.set()

    def submit(
        self,
        name: str,
        prompt: Sequence[int],
        max_new_tokens: int = 8,
        *,
        goal: Goal | None = None,
        sources: tuple[Source, ...] = (),
        stop: StopParams | None = None,
        sampling: SamplingParams | None = None,
        prompt_tokens: int | None = None,
        attempt: int = 1,
    ) -> Attempt:
        self.engine.submit(
            EngineRequest(
                request_id=name,
                attempt=attempt,
                token_ids=np.array(prompt, np.int32),
                prompt_tokens=len(prompt) if prompt_tokens is None else prompt_tokens,
                max_new_tokens=max_new_tokens,
                sampling=sampling or SamplingParams(),
                stop=stop or StopParams(),
                cache_key=CACHE_KEY,
                goal=goal or Generate(),
                sources=sources,
            )
        )
        return self.attempts[(name, attempt)]

    @property
    def pool(self) -> Any:
        return self.engine.description.pool

    async def settled(self, timeout: float = 10.0) -> None:
        """Wait until nothing is owned, leased or under way: pages are free or cached."""
        async with asyncio.timeout(timeout):
            while True:
                pool = self.pool
                busy = pool.running + pool.waiting + pool.fetching + pool.prefilled + pool.draining
                if not busy and pool.free_pages == pool.total_pages and not pool.leased_pages:
                    return
                await asyncio.sleep(0.01)


def config(checkpoint: Path, **fields: Any) -> EngineConfig:
    """A small engine."""
    settings: dict[str, Any] = {
        "model_path": checkpoint,
        "num_pages": 256,
        "page_size": 16,
        "max_running": 16,
        "max_step_tokens": 256,
        "max_chunk_tokens": 128,
        "threads": 1,
    }
    return EngineConfig(**{**settings, **fields})


@asynccontextmanager
async def running(
    checkpoint: Path, role: str = "decode", name: str = "", **fields: Any
) -> AsyncIterator[EngineWorker]:
    """An engine that runs for a `with` block."""
    engine = Engine(config(checkpoint, **fields), role=role, name=name or f"{role}-0")  # type: ignore[arg-type]
    worker = EngineWorker(engine)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


def prompts(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


__all__ = ["Attempt", "EngineWorker", "Prefilled", "config", "prompts", "running"]
