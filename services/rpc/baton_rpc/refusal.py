"""The one exception by which domain code says no, and the one table of codes.

Domain code never touches gRPC: it raises a `Refusal` with a reason of the
wire's enum. The server translates it (baton_rpc.interceptor), the client gets
it back (`refusal_of`).
"""

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from baton.v1 import errors_pb2 as pb

DOMAIN = "baton"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_Code = grpc.StatusCode

CODES: Mapping[pb.ErrorReason, grpc.StatusCode] = {
    pb.ERROR_REASON_UNSPECIFIED: _Code.UNKNOWN,
    # The caller's message.
    pb.ERROR_REASON_MALFORMED_MESSAGE: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_MISSING_FIELD: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_PROMPT: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_PROMPT_TOO_LONG: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_SAMPLING: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_STOP: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_OUTPUT: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_MESSAGES: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_TOOLS: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_UNSUPPORTED_TOOL_CHOICE: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_UNSUPPORTED_FIELD: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_INVALID_CONSTRAINT: _Code.INVALID_ARGUMENT,
    pb.ERROR_REASON_UNKNOWN_MODEL: _Code.NOT_FOUND,
    pb.ERROR_REASON_UNAUTHENTICATED: _Code.UNAUTHENTICATED,
    pb.ERROR_REASON_UNKNOWN_SESSION: _Code.NOT_FOUND,
    # The cluster's state.
    pb.ERROR_REASON_NO_WORKER: _Code.UNAVAILABLE,
    pb.ERROR_REASON_OVERLOADED: _Code.RESOURCE_EXHAUSTED,
    pb.ERROR_REASON_OUT_OF_PAGES: _Code.RESOURCE_EXHAUSTED,
    pb.ERROR_REASON_DRAINING: _Code.UNAVAILABLE,
    pb.ERROR_REASON_DEADLINE_EXCEEDED: _Code.DEADLINE_EXCEEDED,
    pb.ERROR_REASON_CANCELLED: _Code.CANCELLED,
    pb.ERROR_REASON_ATTEMPTS_EXHAUSTED: _Code.UNAVAILABLE,
    # What happened to one request.
    pb.ERROR_REASON_NUMERIC: _Code.INTERNAL,
    pb.ERROR_REASON_INTERNAL: _Code.INTERNAL,
    # Between services.
    pb.ERROR_REASON_INCOMPATIBLE_PEER: _Code.FAILED_PRECONDITION,
    pb.ERROR_REASON_STALE_EPOCH: _Code.FAILED_PRECONDITION,
    pb.ERROR_REASON_DUPLICATE_REQUEST: _Code.ALREADY_EXISTS,
}

_BY_NAME: Mapping[str, pb.ErrorReason] = {pb.ErrorReason.Name(reason): reason for reason in CODES}


class Refusal(Exception):
    """A call that is refused, or a request that failed, for a reason of the wire's enum.

    `message` is for people: it names the thing, the value, what is allowed and
    what to do. `metadata` is for programs: strings only.
    """

    def __init__(
        self,
        reason: pb.ErrorReason,
        message: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC code of the reason; INTERNAL for a reason newer than this process."""
        return CODES.get(self.reason, _Code.INTERNAL)

    @property
    def reason_name(self) -> str:
        """The reason as it is written in errors.proto."""
        if self.reason in pb.ErrorReason.values():
            return pb.ErrorReason.Name(self.reason)
        return f"ERROR_REASON_{int(self.reason)}"

    def __repr__(self) -> str:
        return f"Refusal({self.reason_name}, {self.message!r}, {self.metadata!r})"


def status_of(refusal: Refusal) -> Status:
    """The refusal as it travels: a google.rpc.Status with one ErrorInfo."""
    info = ErrorInfo(reason=refusal.reason_name, domain=DOMAIN, metadata=refusal.metadata)
    detail = Any()
    detail.Pack(info)
    return Status(code=refusal.code.value[0], message=refusal.message, details=[detail])


def refusal_of(error: BaseException) -> Refusal | None:
    """The refusal inside a client's RpcError; None when the server did not send one.

    None means that the transport failed (server gone, deadline passed before
    an answer), or that the other end is not Baton.
    """
    if not isinstance(error, grpc.RpcError):
        return None
    trailing = getattr(error, "trailing_metadata", None)
    for key, value in (trailing() if callable(trailing) else None) or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return _parse(value)
    return None


def _parse(details: bytes) -> Refusal | None:
    status = Status.FromString(details)
    info = ErrorInfo()
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason = _BY_NAME.get(info.reason, pb.ERROR_REASON_UNSPECIFIED)
            return Refusal(reason, status.message, dict(info.metadata))
    return None
