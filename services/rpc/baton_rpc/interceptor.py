"""What every call of every Baton server goes through.

One interceptor, so that handlers stay four lines long (validate, call the
domain, answer): it turns refusals into statuses, bytes that do not parse into
MALFORMED_MESSAGE, surprises into INTERNAL with a reference to the log, and
counts the handlers that run.
"""

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from baton.v1 import errors_pb2 as pb
from baton_rpc.calls import CallsInFlight
from baton_rpc.refusal import STATUS_DETAILS_KEY, Refusal, status_of

log = logging.getLogger("baton.rpc")

# grpc's handlers are generic over messages that only the generated code knows.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Gate = Callable[[grpc.HandlerCallDetails], Refusal | None]


@dataclass(frozen=True)
class _Malformed:
    """Takes the place of a request that did not parse; raising in the deserializer
    itself would end the call as UNKNOWN, out of our reach."""

    message: str


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the server it is given to.

    `gate` is asked before a method runs and may refuse it (drain, auth).
    """

    def __init__(self, calls: CallsInFlight, gate: Gate) -> None:
        self._calls = calls
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """Returns the method's handler, wrapped; None (unknown method) passes."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        call = _Call(handler_call_details.method, self._calls, self._gate(handler_call_details))
        return call.wrap(handler)


@dataclass(frozen=True)
class _Call:
    method: str
    calls: CallsInFlight
    refused: Refusal | None

    def wrap(self, handler: Handler) -> Handler:
        behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        shape = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        wrapped = self._stream(behaviour) if handler.response_streaming else self._unary(behaviour)
        make = getattr(grpc, f"{shape}_rpc_method_handler")
        return cast(
            Handler,
            make(
                wrapped,
                request_deserializer=_tolerant(handler.request_deserializer),
                response_serializer=handler.response_serializer,
            ),
        )

    def _unary(self, behaviour: Any) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            with self.calls.one(self.method):
                try:
                    return await behaviour(self._accept(request), context)
                except Exception as error:  # noqa: BLE001 - the boundary; _end reports all
                    await self._end(error, context)

        return call

    def _stream(self, behaviour: Any) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self.calls.one(self.method):
                try:
                    answer = behaviour(self._accept(request), context)
                    if inspect.isawaitable(answer):  # writes with context.write
                        await answer
                    else:
                        async for message in answer:
                            yield message
                except Exception as error:  # noqa: BLE001 - the boundary; _end reports all
                    await self._end(error, context)

        return call

    def _accept(self, request: Any) -> Any:
        if self.refused is not None:
            raise self.refused
        return _parsed_stream(request) if hasattr(request, "__aiter__") else _parsed(request)

    async def _end(self, error: Exception, context: Context) -> None:
        """Ends the call with the status of `error`. Always raises, unless the call is over."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if context.done():
            # The client has left: the error is most likely its echo, and nobody listens.
            log.debug("%s: %r after the end of the call", self.method, error)
            return
        refusal = error if isinstance(error, Refusal) else self._surprise(error)
        details = status_of(refusal).SerializeToString()
        await context.abort(
            refusal.code, refusal.message, trailing_metadata=((STATUS_DETAILS_KEY, details),)
        )

    def _surprise(self, error: Exception) -> Refusal:
        # The cause may hold paths, prompts, addresses: it goes to our log, not to the caller.
        reference = uuid.uuid4().hex[:12]
        log.error("%s failed, reference %s", self.method, reference, exc_info=error)
        return Refusal(
            pb.ERROR_REASON_INTERNAL,
            f"internal error in {self.method}; the server's log has it under {reference}",
            {"reference": reference},
        )


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except (DecodeError, UnicodeDecodeError) as error:
            return _Malformed(f"the request does not parse ({len(raw)} bytes): {error}")

    return parse


def _parsed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise Refusal(pb.ERROR_REASON_MALFORMED_MESSAGE, request.message)
    return request


async def _parsed_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)
