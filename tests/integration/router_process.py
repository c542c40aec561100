"""The real router in its own process, over workers of the test's making."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from prometheus_client.parser import text_string_to_metric_families

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from baton_rpc import channel, wait_until_healthy

from .cluster import free_ports
from .fake_worker import FakeWorker


@dataclass
class Router:
    """A running router and a client of it."""

    process: subprocess.Popen[bytes]
    connection: grpc.aio.Channel
    log: Path
    metrics_address: str

    @property
    def stub(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.connection)

    async def metrics(self) -> dict[str, float]:
        """Sums over labels, by sample name."""
        host, port = self.metrics_address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        raw = await reader.read()
        writer.close()
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(raw.partition(b"\r\n\r\n")[2].decode()):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals


@asynccontextmanager
async def running_router(
    checkpoint: Path, directory: Path, workers: Sequence[FakeWorker], **section: Any
) -> AsyncIterator[Router]:
    """Starts a router over `workers` (started already); ends it by its process id."""
    listen, metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
    by_role = {
        role: [{"name": w.name, "listen": w.address} for w in workers if w.role == role]
        for role in ("prefill", "decode")
    }
    tree = {
        "model": {"path": str(checkpoint), "name": "toy", "page_size": 16},
        "kvstore": None,
        **by_role,
        "router": {"listen": listen, "metrics": metrics, **section},
    }
    config = directory / "router.yaml"
    config.write_text(yaml.safe_dump(tree))
    log = directory / "router.log"
    command = [sys.executable, "-m", "baton_cli.main", "router", "--config", str(config)]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--log-level", "DEBUG"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
    connection = channel(listen)
    try:
        try:
            await wait_until_healthy(connection, timeout_s=30)
        except TimeoutError as error:
            raise RuntimeError(f"the router is not healthy:\n{log.read_text()[-4000:]}") from error
        await asyncio.wait_for(asyncio.gather(*(w.connected.wait() for w in workers)), 10)
        yield Router(process, connection, log, metrics)
    finally:
        await connection.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Heard:
    """A finished stream."""

    accepted: pb.Accepted
    token_ids: list[int]
    text: str
    finished: pb.Finished
    deltas: list[pb.Delta]


async def hear(call: Any) -> Heard:
    """Reads a Generate stream; checks that it is Accepted, Deltas, Finished."""
    responses = [response async for response in call]
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds[0] == "accepted" and kinds[-1] == "finished", kinds
    assert set(kinds[1:-1]) <= {"delta"}, kinds
    deltas = [response.delta for response in responses[1:-1]]
    return Heard(
        responses[0].accepted,
        [token for delta in deltas for token in delta.token_ids],
        "".join(delta.text for delta in deltas),
        responses[-1].finished,
        deltas,
    )
