"""A whole cluster on this machine: one process each for router, workers and kvstore."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton_cli.config import WORKERS, ClusterConfig, Role
from baton_cli.processes import Child, exit_text
from baton_cli.tree import dump_tree
from baton_rpc import channel

POLL_S = 0.1
STOP_GRACE_S = 20.0


class ClusterError(Exception):
    """The cluster could not be started; the text says which process and why."""


@dataclass
class Member:
    """One process of the cluster, with where it is reached and how long it took to be ready."""

    role: Role
    name: str
    address: str
    metrics: str
    child: Child | None = None
    started: float = 0.0
    ready_s: float | None = None


class Cluster:
    """Starts, watches and stops. `config` must have all its addresses (choose_addresses)."""

    def __init__(self, config: ClusterConfig, run: Path) -> None:
        self.config = config
        self.run = run
        self.path = run / "cluster.yaml"
        self.path.write_text(dump_tree(config.as_tree()))
        # In the order of starting; stopping goes the other way.
        self.members = [
            *(self._member("kvstore", name) for name in config.kvstore_names()),
            *(self._member(role, str(w["name"])) for role in WORKERS for w in config.workers(role)),
            self._member("router", None),
            *([self._member("gateway", None)] if config.gateway is not None else []),
        ]

    def _member(self, role: Role, name: str | None) -> Member:
        _, section = self.config.raw_section(role, name)
        return Member(role, name or role, section["listen"], section["metrics"])

    @property
    def router(self) -> Member:
        """The front door."""
        return next(member for member in self.members if member.role == "router")

    @property
    def gateway(self) -> Member | None:
        """SMG, when this cluster has it."""
        return next((member for member in self.members if member.role == "gateway"), None)

    async def start(self, timeout_s: float, on_ready: Callable[[Member], None]) -> None:
        """Starts every process and waits until all are healthy. Raises ClusterError.

        `on_ready` is called with each member as it becomes healthy.
        """
        for member in self.members:
            arguments = [member.role, "--config", str(self.path)]
            if member.name != member.role:
                arguments += ["--name", member.name]
            member.started = time.monotonic()
            member.child = await Child.start(
                member.name, arguments, self.run / f"{member.name}.log"
            )
        waits = [asyncio.create_task(self._ready(m, on_ready)) for m in self.members]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*waits)
        except TimeoutError:
            late = [_with_log(m, "no answer") for m in self.members if m.ready_s is None]
            raise ClusterError("\n".join([f"not ready after {timeout_s:g} s:", *late])) from None
        finally:
            for wait in waits:
                wait.cancel()

    async def _ready(self, member: Member, on_ready: Callable[[Member], None]) -> None:
        child = member.child
        if child is None:
            raise ClusterError(f"{member.name} was not started")
        async with channel(member.address) as dialled:
            stub = health_pb2_grpc.HealthStub(dialled)
            while not await self._answers(member, stub):
                if child.exit_code is not None:
                    raise ClusterError(_with_log(member, exit_text(child.exit_code)))
                await asyncio.sleep(POLL_S)
        member.ready_s = time.monotonic() - member.started
        on_ready(member)

    async def _answers(self, member: Member, stub: health_pb2_grpc.HealthStub) -> bool:
        if member.role != "gateway":
            return await _serving(stub)
        # It calls itself ready as soon as the router listens, whether or not that has workers.
        return self.router.ready_s is not None and await _http_ready(member.address)

    async def next_death(self, known: set[str]) -> Member:
        """Waits until a member that is not in `known` (names) ends, and returns it."""
        watched = {
            asyncio.create_task(member.child.wait()): member
            for member in self.members
            if member.child is not None and member.name not in known
        }
        if not watched:
            raise ClusterError("no process is left")
        try:
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            return watched[next(iter(done))]
        finally:
            for task in watched:
                task.cancel()

    def can_serve(self) -> bool:
        """Whether the router and at least one decode worker run."""
        running = {m.role for m in self.members if m.child and m.child.exit_code is None}
        return {"router", "decode"} <= running

    async def stop(self, on_stopped: Callable[[Member, int], None] | None = None) -> None:
        """SIGTERM to the gateway, the router, the workers, the kvstore; each drains."""
        for stage in (["gateway"], ["router"], ["decode", "prefill"], ["kvstore"]):
            members = [m for m in self.members if m.role in stage and m.child is not None]
            codes = await asyncio.gather(
                *(m.child.stop(STOP_GRACE_S) for m in members if m.child is not None)
            )
            for member, code in zip(members, codes, strict=True):
                if on_stopped is not None:
                    on_stopped(member, code)

    def kill(self) -> None:
        """SIGKILL to all: for a second Ctrl-C."""
        for member in self.members:
            if member.child is not None:
                member.child.kill()


def death_report(member: Member) -> str:
    """What happened to a member that ended, with the end of its log."""
    if member.child is None or member.child.exit_code is None:
        raise ValueError(f"{member.name} has not ended")
    return _with_log(member, exit_text(member.child.exit_code))


def _with_log(member: Member, what: str) -> str:
    if member.child is None:
        return f"{member.name}: {what}"
    lines = "\n".join(f"    {line}" for line in member.child.last_lines())
    return f"{member.name}: {what}; the end of {member.child.log}:\n{lines}"


async def _http_ready(address: str) -> bool:
    """Whether the gateway has found its worker."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET /readiness HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
