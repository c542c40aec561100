"""What the router costs: CPU a streamed message, CPU a request, latency it adds.

    python bench/router/stream_cost.py [--streams 1 32 128] [--tokens 400]

The real router process stands between a client and a worker that speaks the
real protocol and computes nothing: after each step it sends one message with
one new token for each of its streams, as a decode worker does. CPU time is the
router process's own (user + system), so that a busy machine does not show in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc, worker_pb2_grpc
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_router import RouterConfig, serve
from baton_rpc import Server, channel, stop_signal, wait_until_healthy

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class EchoWorker(worker_pb2_grpc.WorkerServiceServicer):
    """Steps as fast as `pause_s` lets it; every live stream gets a token in each."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self.live: dict[tuple[str, int], list[int]] = {}  # next position, tokens left

    async def Connect(
        self, request_iterator: AsyncIterator[wire.ConnectRequest], context: Any
    ) -> AsyncIterator[wire.ConnectResponse]:
        reader = asyncio.create_task(self._read(request_iterator))
        pool = wire.PoolState(total_pages=1 << 20, free_pages=1 << 20)
        yield wire.ConnectResponse(
            hello=wire.WorkerHello(
                worker="echo",
                role=wire.WORKER_ROLE_DECODE,
                wire_version=1,
                epoch=1,
                peer=kv.Peer(name="echo", address="echo:1", epoch=1),
                cache=kv.CacheIdentity(wire_version=1, page_size=16),
                max_context=4096,
                pool=pool,
            )
        )
        try:
            while True:
                await asyncio.sleep(self.pause_s)
                if self.live:
                    step = wire.StepReport(pool=pool, updates=self._step())
                    yield wire.ConnectResponse(step=step)
        finally:
            reader.cancel()

    def _step(self) -> list[wire.RequestUpdate]:
        updates = []
        for (request_id, attempt), state in list(self.live.items()):
            position, left = state
            tokens = wire.RequestTokens(first_position=position, token_ids=[30 + position % 300])
            updates.append(
                wire.RequestUpdate(request_id=request_id, attempt=attempt, tokens=tokens)
            )
            state[:] = position + 1, left - 1
            if left == 1:
                del self.live[request_id, attempt]
                done = wire.RequestDone(reason=pb.FINISH_REASON_LENGTH, cost=wire.RequestCost())
                updates.append(
                    wire.RequestUpdate(request_id=request_id, attempt=attempt, done=done)
                )
        return updates

    async def _read(self, requests: AsyncIterator[wire.ConnectRequest]) -> None:
        async for request in requests:
            for command in request.commands.commands:
                start = command.start
                if command.HasField("start"):
                    key = (start.request_id, start.attempt)
                    self.live[key] = [len(start.token_ids), start.max_new_tokens]


def run_worker(pipe: Connection, pause_s: float) -> None:
    async def main() -> None:
        add = worker_pb2_grpc.add_WorkerServiceServicer_to_server
        server = Server("127.0.0.1:0", [(EchoWorker(pause_s), add)])
        await server.start()
        pipe.send(server.port)
        await stop_signal().wait()

    uvloop.run(main())


def run_router(checkpoint: Path, listen: str, worker: str) -> None:
    config = RouterConfig.model_validate(
        {"listen": listen, "model": {"path": checkpoint}, "workers": {"decode": [worker]}}
    )
    uvloop.run(serve(config))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def one(stub: Any, tokens: int, prompt: int) -> tuple[float, int]:
    """One stream: seconds to its first token, and its messages."""
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=range(30, 30 + prompt)),
        stop=pb.StopParams(max_tokens=tokens, ignore_eos=True),
    )
    begun, first, messages = time.perf_counter(), 0.0, 0
    async for response in stub.Generate(request):
        messages += 1
        if not first and response.HasField("delta"):
            first = time.perf_counter() - begun
    return first, messages


async def measure(address: str, pid: int, streams: list[int], tokens: int) -> None:
    async with channel(address) as connection:
        await wait_until_healthy(connection, timeout_s=30)
        stub = inference_pb2_grpc.InferenceServiceStub(connection)
        await asyncio.gather(*(one(stub, 20, 64) for _ in range(8)))  # warm
        print(f"{'streams':>8} {'us CPU/message':>15} {'messages/s':>11} {'TTFT p50 ms':>12}")
        for count in streams:
            cpu, begun = cpu_seconds(pid), time.perf_counter()
            results = await asyncio.gather(*(one(stub, tokens, 64) for _ in range(count)))
            wall = time.perf_counter() - begun
            messages = sum(n for _, n in results)
            spent = cpu_seconds(pid) - cpu
            ttft = statistics.median(first for first, _ in results) * 1e3
            print(
                f"{count:>8} {spent / messages * 1e6:>15.1f} {messages / wall:>11.0f} {ttft:>12.2f}"
            )
        cpu = cpu_seconds(pid)
        for _ in range(400):
            await one(stub, 1, 64)
        print(f"one request of 64 prompt tokens and 1 new one: "
              f"{(cpu_seconds(pid) - cpu) / 400 * 1e3:.2f} ms CPU")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--pause-ms", type=float, default=10.0, help="between a worker's steps")
    options = parser.parse_args()
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        small = runpy.run_path(str(ROOT / "tests" / "unit" / "router" / "small_files.py"))
        small["write_small_checkpoint"](Path(directory))
        worker = spawn.Process(target=run_worker, args=(theirs, options.pause_ms / 1e3))
        worker.start()
        listen = "127.0.0.1:17123"
        router = spawn.Process(
            target=run_router, args=(Path(directory), listen, f"127.0.0.1:{ours.recv()}")
        )
        router.start()
        try:
            uvloop.run(measure(listen, router.pid or 0, options.streams, options.tokens))
        finally:
            router.terminate()
            worker.terminate()
            router.join(10)
            worker.join(10)


if __name__ == "__main__":
    main()
