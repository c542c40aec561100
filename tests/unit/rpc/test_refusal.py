"""The error table, and a refusal's way over the wire and back."""

import grpc
import pytest
from google.rpc.status_pb2 import Status

from baton.v1 import errors_pb2 as pb
from baton_rpc import CODES, Refusal, refusal_of, status_of
from baton_rpc.refusal import STATUS_DETAILS_KEY


@pytest.mark.parametrize("name", pb.ErrorReason.keys())
def test_every_reason_has_a_code_that_is_an_error(name: str) -> None:
    code = CODES[pb.ErrorReason.Value(name)]
    assert code is not grpc.StatusCode.OK


def test_no_code_for_a_reason_that_the_wire_does_not_know() -> None:
    assert set(CODES) == set(pb.ErrorReason.values())


@pytest.mark.parametrize("reason", pb.ErrorReason.values())
def test_a_refusal_survives_the_wire(reason: pb.ErrorReason) -> None:
    sent = Refusal(reason, "prompt has 9000 tokens, at most 8192 fit", {"limit": "8192"})
    got = refusal_of(_error(status_of(sent).SerializeToString()))
    assert got is not None
    assert (got.reason, got.message, got.metadata) == (reason, sent.message, sent.metadata)


def test_a_reason_newer_than_this_process_is_internal_not_a_crash() -> None:
    refusal = Refusal(999, "from the future")  # type: ignore[arg-type]
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal_of(_error(status_of(refusal).SerializeToString())) is not None


def test_no_refusal_in_a_transport_error_or_another_exception() -> None:
    assert refusal_of(_error(None)) is None
    assert refusal_of(ValueError("no")) is None
    assert refusal_of(_error(Status(code=5, message="not ours").SerializeToString())) is None


def _error(details: bytes | None) -> grpc.aio.AioRpcError:
    pairs = ((STATUS_DETAILS_KEY, details),) if details is not None else ()
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(*pairs)
    )
