"""KvSessionService: handlers validate, call the store, answer."""

from typing import Any, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_kvstore.directory import HASH_BYTES
from baton_kvstore.directory_service import pages_of
from baton_kvstore.store import Store, Turn
from baton_rpc import Refusal

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SessionServicer(kv_pb2_grpc.KvSessionServiceServicer):
    """Speaks for a Store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def RenewSessions(
        self, request: pb.RenewSessionsRequest, context: Context
    ) -> pb.RenewSessionsResponse:
        self._store.turns([_turn(turn) for turn in request.turns])
        return pb.RenewSessionsResponse()

    async def CloseSessions(
        self, request: pb.CloseSessionsRequest, context: Context
    ) -> pb.CloseSessionsResponse:
        for session in request.sessions:
            _check_key(session, "sessions")
        had = pages_of(request.page_hashes, "page_hashes")
        free = self._store.sessions_over(request.sessions, had)
        return pb.CloseSessionsResponse(page_hashes=b"".join(free))


def _turn(turn: pb.SessionTurn) -> Turn:
    for field in ("session", "tenant", "family"):
        if getattr(turn, field):
            _check_key(getattr(turn, field), f"turns.{field}")
    chain = pages_of(turn.page_hashes, "turns.page_hashes")
    return Turn(turn.session, turn.tenant, chain, turn.ttl_ms / 1000, turn.family)


def _check_key(key: bytes, field: str) -> None:
    if len(key) != HASH_BYTES:
        raise Refusal(
            errors.ERROR_REASON_MALFORMED_MESSAGE,
            f"{field} has {len(key)} bytes; a key has {HASH_BYTES}",
            {"field": field},
        )
