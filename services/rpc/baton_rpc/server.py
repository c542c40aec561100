"""The one function of every Baton process that assembles a gRPC server.

server = Server("127.0.0.1:0", [(servicer, add_XServiceServicer_to_server)])
await server.start()          # server.port is known now
await stop_signal().wait()
await server.drain(grace_s=30)
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from baton.v1 import errors_pb2 as pb
from baton_rpc.calls import CallsInFlight
from baton_rpc.credentials import TlsFiles, carries
from baton_rpc.interceptor import CallInterceptor, Handler
from baton_rpc.options import SERVER_OPTIONS
from baton_rpc.refusal import Refusal

log = logging.getLogger("baton.rpc")

# A servicer with the generated function that adds it to a server.
Mount = tuple[Any, Callable[[Any, Any], None]]

_HANDLERS_END_S: Final = 5.0
_ALWAYS_OPEN: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.")


class Server:
    """A gRPC server with health, reflection, the error table, and an orderly end.

    `address` is host:port; port 0 takes a free one (see `port` after start).
    `token` demands a bearer token of every call but health and reflection.
    Health (the whole server "" and each service by name) is SERVING from
    start() on unless told otherwise.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Mount],
        *,
        tls: TlsFiles | None = None,
        token: str | None = None,
    ) -> None:
        self._address = address
        self._token = token
        self._tls = tls
        self._calls = CallsInFlight()
        self._draining = False
        self._health = health_aio.HealthServicer()
        self._grpc = grpc.aio.server(
            interceptors=[CallInterceptor(self._calls, self._gate)], options=SERVER_OPTIONS
        )
        self._names = [_mount(self._grpc, servicer, add) for servicer, add in services]
        self._prefixes = tuple(f"/{name}/" for name in self._names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(
            [
                *self._names,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ],
            self._grpc,
        )
        self._port = 0

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before start()."""
        return self._port

    @property
    def address(self) -> str:
        """host:port as others can dial it, with the real port after start()."""
        return f"{self._address.rpartition(':')[0]}:{self._port}"

    async def start(self, *, serving: bool = True) -> None:
        """Binds and listens. Raises OSError when the address cannot be bound."""
        await self.set_serving(serving)
        try:
            if self._tls is None:
                self._port = self._grpc.add_insecure_port(self._address)
            else:
                self._port = self._grpc.add_secure_port(self._address, self._tls.for_server())
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {self._address}: {error}; is the port taken?"
            ) from error
        await self._grpc.start()

    async def set_serving(self, serving: bool) -> None:
        """What health says from now on. Refuses no call."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls (DRAINING), lets running ones end for up to `grace_s`, stops.

        For servers whose calls are requests. A worker, whose streams last as
        long as its peers, sets health to not serving, drains its engine and
        then calls stop().
        """
        self._draining = True
        await self.set_serving(False)
        if not await self._calls.over(self._prefixes, grace_s):
            log.warning("still running after %g s: %s", grace_s, self._calls.names())
        await self.stop()

    async def stop(self) -> None:
        """Cancels what runs and returns when every handler's `finally` has run."""
        await self.set_serving(False)
        await self._grpc.stop(grace=None)
        if not await self._calls.over(("/",), _HANDLERS_END_S):
            log.error(
                "handlers still running %g s after they were cancelled: %s",
                _HANDLERS_END_S,
                self._calls.names(),
            )

    def _gate(self, call: grpc.HandlerCallDetails) -> Refusal | None:
        if call.method.startswith(_ALWAYS_OPEN):
            return None
        if self._token is not None and not carries(self._token, _pairs(call)):
            return Refusal(
                pb.ERROR_REASON_UNAUTHENTICATED,
                "this server wants a bearer token in the metadata: authorization: Bearer TOKEN",
            )
        if self._draining:
            return Refusal(
                pb.ERROR_REASON_DRAINING, "this server is shutting down; take another one"
            )
        return None


class _Recorder:
    """Stands between a generated add function and the server, and learns the service's name."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.name = ""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self.name = service
        self._server.add_registered_method_handlers(service, handlers)


def _mount(server: grpc.aio.Server, servicer: Any, add: Callable[[Any, Any], None]) -> str:
    recorder = _Recorder(server)
    add(servicer, recorder)
    return recorder.name


def _pairs(call: grpc.HandlerCallDetails) -> Iterable[tuple[str, str | bytes]]:
    return call.invocation_metadata or ()


async def wait_until_healthy(
    channel: grpc.aio.Channel, *, timeout_s: float, service: str = "", poll_s: float = 0.1
) -> None:
    """Waits until the server at the other end says SERVING. Raises TimeoutError."""
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                answer = await stub.Check(request, timeout=2.0)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError as error:
                log.debug("not healthy yet: %s", error.code())
            await asyncio.sleep(poll_s)
