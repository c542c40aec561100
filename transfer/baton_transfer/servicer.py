"""KvPeerService: the one servicer by which pages are leased, for workers and the kvstore."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import Refusal
from baton_transfer.holder import PageHolder
from baton_transfer.identity import differing_field
from baton_transfer.lease_desk import LeaseAnswer, LeaseDesk

HASH_BYTES = 16
_TTL_MS = (1_000, 60_000)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class KvPeerServicer(kv_pb2_grpc.KvPeerServiceServicer):
    """Speaks for a PageHolder. Handlers validate, call the holder, answer.

    `open_leases` before the server starts, `close_leases` after it has stopped.
    """

    def __init__(
        self,
        holder: PageHolder,
        me: pb.Peer,
        identity: pb.CacheIdentity | None = None,
        memory: pb.ExportedCache | None = None,
    ) -> None:
        """`identity` and `memory` may come later through `open` (the kvstore learns them)."""
        self._holder = holder
        self._me = me
        self._identity = identity
        self._memory = memory
        self._leases = LeaseDesk(self.answer)

    async def open_leases(self, host: str) -> None:
        """Opens the port of the leases on `host`. Raises OSError."""
        await self._leases.open(host)

    async def close_leases(self) -> None:
        """Ends the port and the readers' connections; leases go on by the holder's clock."""
        await self._leases.close()

    def open(self, identity: pb.CacheIdentity, memory: pb.ExportedCache) -> None:
        """Says what is held here; until then every handshake is refused."""
        self._identity = identity
        self._memory = memory

    async def Handshake(
        self, request: pb.HandshakeRequest, context: Context
    ) -> pb.HandshakeResponse:
        if self._identity is None or self._memory is None:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"{self._me.name} holds no pages yet, so it knows no cache identity; "
                "pull from it when the directory says that it holds some",
            )
        field = differing_field(self._identity, request.cache)
        if field is not None:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"{self._me.name} cannot exchange pages with {request.reader.name}: {field}; "
                "both must serve the same checkpoint with the same cache settings",
                {"field": field.partition(":")[0]},
            )
        return pb.HandshakeResponse(
            holder=self._me,
            cache=self._identity,
            memory=self._memory,
            lease_port=self._leases.port,
            lease_ticket=self._leases.ticket,
        )

    def answer(self, request: pb.LeaseRequest) -> LeaseAnswer:
        """To one message of a lease connection. A tier that must fetch pages from a disk first
        overrides this, and is waited for. Raises Refusal."""
        return self.answer_now(request)

    def answer_now(self, request: pb.LeaseRequest) -> pb.LeaseResponse:
        """As `answer`, with what is in memory."""
        kind = request.WhichOneof("request")
        if kind == "acquire":
            return pb.LeaseResponse(acquire=self._acquire(request.acquire))
        if kind == "renew":
            return pb.LeaseResponse(renew=self._renew(request.renew))
        if kind == "release":
            return pb.LeaseResponse(release=self._release(request.release))
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD, "a lease request is none of acquire, renew, release"
        )

    def _acquire(self, request: pb.AcquireRequest) -> pb.AcquireResponse:
        self._check_epoch(request.epoch)
        hashes = _hashes(request.page_hashes)
        ttl_ms = _bounded_ttl(request.ttl_ms)
        grant = self._holder.grant(request.reader, hashes, ttl_ms, self._group(request.group))
        if not grant.lease:
            return pb.AcquireResponse()
        return pb.AcquireResponse(
            lease_id=grant.lease,
            pages=grant.pages.tolist(),
            checksums=() if grant.checksums is None else grant.checksums.tolist(),
            ttl_ms=grant.ttl_ms,
        )

    def _renew(self, request: pb.RenewRequest) -> pb.RenewResponse:
        if request.epoch != self._me.epoch:
            # Leases die with the life that granted them.
            return pb.RenewResponse(expired=request.lease_ids)
        expired = self._holder.renew(request.lease_ids, _bounded_ttl(request.ttl_ms))
        return pb.RenewResponse(expired=expired)

    def _release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        if request.epoch != self._me.epoch:
            return _verdicts([False] * len(request.lease_ids))
        valid = self._holder.release(request.lease_ids)
        if request.proven or all(valid):
            # A reader that must discard what it read has not taken the request over.
            for done in request.handed_over:
                self._holder.handed_over(done.request_id, done.attempt)
        return _verdicts(valid)

    async def WatchHandovers(
        self, request: pb.WatchHandoversRequest, context: Context
    ) -> AsyncIterator[pb.WatchHandoversResponse]:
        self._check_epoch(request.epoch)
        if not request.reader:
            raise Refusal(errors.ERROR_REASON_MISSING_FIELD, "WatchHandovers: reader is empty")
        # Tells the reader that it is being served, though there may be nothing to say yet.
        await context.send_initial_metadata(())
        async for batch in self._holder.watch(request.reader):
            yield pb.WatchHandoversResponse(handovers=batch)

    def _group(self, group: int) -> int:
        count = len(self._identity.groups) if self._identity is not None else 0
        if group >= count:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"{self._me.name} holds {count} cache groups, there is no group {group}",
                {"field": "group"},
            )
        return group

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._me.epoch:
            raise Refusal(
                errors.ERROR_REASON_STALE_EPOCH,
                f"epoch {epoch:016x} of {self._me.name} is over, it lives in "
                f"{self._me.epoch:016x}; shake hands again",
                {"epoch": str(self._me.epoch)},
            )


def _hashes(data: bytes) -> NDArray[np.uint8]:
    if len(data) % HASH_BYTES:
        raise Refusal(
            errors.ERROR_REASON_MALFORMED_MESSAGE,
            f"page_hashes has {len(data)} bytes, which is no multiple of {HASH_BYTES}",
        )
    return np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)


def _bounded_ttl(ttl_ms: int) -> int:
    return min(max(ttl_ms, _TTL_MS[0]), _TTL_MS[1])


def _verdicts(valid: list[bool]) -> pb.ReleaseResponse:
    return pb.ReleaseResponse(
        verdicts=[pb.LEASE_VERDICT_VALID if v else pb.LEASE_VERDICT_EXPIRED for v in valid]
    )
