"""The reader's view of each holder: handshake, credit, leases that are kept alive."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import Refusal, channel, refusal_of
from baton_transfer.identity import differing_field
from baton_transfer.lease_stream import LeaseStream, Unreachable
from baton_transfer.share import Stop

HANDSHAKE_S = 5.0
ACQUIRE_S = 5.0
RELEASE_S = 3.0


@dataclass(frozen=True, slots=True)
class Handshaken:
    """What a handshake brought."""

    epoch: int
    memory: bytes  # a serialised ExportedCache
    leases: LeaseStream


class Credit:
    """Bytes that may be under way from one holder at a time. First come, first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Waits for `size` bytes of credit; more than the limit waits for all of it. What to `give`
        back."""
        size = min(size, self.limit)
        if not self._waiting and self._used + size <= self.limit:
            self._used += size
            return size
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, room))
        try:
            await room
        except asyncio.CancelledError:
            if room.cancelled():
                self._waiting.remove((size, room))
                self._admit()
            else:
                self.give(size)
            raise
        return size

    def give(self, size: int) -> None:
        """Gives taken credit back."""
        self._used -= size
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self.limit:
            size, room = self._waiting[0]
            if room.cancelled():
                return  # it leaves by itself, and admits the next
            self._waiting.popleft()
            self._used += size
            room.set_result(None)


class Holder:
    """One address that pages are pulled from. Used on one event loop."""

    def __init__(
        self,
        address: str,
        me: pb.Peer,
        identity: pb.CacheIdentity,
        credit_bytes: int,
        ttl_ms: int,
        forget: Callable[[bytes], None],
    ) -> None:
        self.address = address
        self.credit = Credit(credit_bytes)
        self.ttl_ms = ttl_ms
        self._me = me
        self._identity = identity
        self._forget = forget
        self._channel = channel(address)
        self._stub = kv_pb2_grpc.KvPeerServiceStub(self._channel)
        self._closing: set[asyncio.Task[None]] = set()
        self._shaking = asyncio.Lock()
        self._hands: Handshaken | None = None
        self._memory: bytes | None = None
        self._kept: dict[tuple[int, int], Stop] = {}  # by (epoch, lease)
        self._heartbeat: asyncio.Task[None] | None = None

    @property
    def present(self) -> Handshaken | None:
        """The handshake with its present life, if there was one already."""
        hands = self._hands
        return None if hands is None or hands.leases.over else hands

    async def handshake(self) -> Handshaken:
        """The handshake with the holder's present life. Raises Refusal and Unreachable."""
        if hands := self.present:
            return hands
        async with self._shaking:
            if not (hands := self.present):
                hands = self._hands = await self._shake()
            return hands

    def restarted(self, hands: Handshaken) -> None:
        """That life is over: the next handshake() asks anew."""
        if self._hands is hands:
            self._hands = None
        hands.leases.close()

    async def acquire(
        self, hashes: bytes, group: int, unwanted: Callable[["Holder", int, int], None]
    ) -> tuple[Handshaken, pb.AcquireResponse]:
        """Leases what the holder has of `hashes`, all of one cache group; in a new life too.
        Raises as handshake does.

        `unwanted` (self, epoch, lease) is told of a lease that comes when we were cancelled.
        """
        for last in (False, True):
            hands = await self.handshake()
            request = pb.AcquireRequest(
                reader=self._me.name,
                epoch=hands.epoch,
                page_hashes=hashes,
                ttl_ms=self.ttl_ms,
                group=group,
            )

            def unheard(answer: pb.LeaseResponse, epoch: int = hands.epoch) -> None:
                if answer.acquire.lease_id:
                    unwanted(self, epoch, answer.acquire.lease_id)

            try:
                asked = pb.LeaseRequest(acquire=request)
                answer = await hands.leases.ask(asked, ACQUIRE_S, unheard)
                return hands, answer.acquire
            except Unreachable:
                self.restarted(hands)
                raise
            except Refusal as refusal:
                if last or refusal.reason != errors.ERROR_REASON_STALE_EPOCH:
                    raise
                self.restarted(hands)
        raise AssertionError("the loop above returns or raises")

    async def release(
        self,
        epoch: int,
        leases: list[int],
        handed_over: Sequence[tuple[str, int]] = (),
        *,
        proven: bool = False,
    ) -> list[bool]:
        """Ends leases of that life; for each whether it held. Raises as handshake does.

        `proven`: their pages are accepted already.
        """
        done = [pb.HandedOver(request_id=name, attempt=attempt) for name, attempt in handed_over]
        request = pb.ReleaseRequest(epoch=epoch, lease_ids=leases, handed_over=done, proven=proven)
        hands = await self.handshake()
        answer = await hands.leases.ask(pb.LeaseRequest(release=request), RELEASE_S)
        return [verdict == pb.LEASE_VERDICT_VALID for verdict in answer.release.verdicts]

    @contextmanager
    def kept(self, hands: Handshaken, lease: int, stop: Stop) -> Iterator[None]:
        """Renews the lease while the block runs; sets `stop` when the holder says it is over."""
        self._kept[hands.epoch, lease] = stop
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            del self._kept[hands.epoch, lease]

    async def _beat(self) -> None:
        # Three renewals may be lost before a lease is.
        pause = self.ttl_ms / 4000
        while self._kept:
            await asyncio.sleep(pause)
            for epoch in {epoch for epoch, _ in self._kept}:
                await self._renew(epoch, timeout=pause)

    async def _renew(self, epoch: int, timeout: float) -> None:
        leases = [lease for of, lease in self._kept if of == epoch]
        request = pb.RenewRequest(epoch=epoch, lease_ids=leases, ttl_ms=self.ttl_ms)
        try:
            hands = await self.handshake()
            answer = await hands.leases.ask(pb.LeaseRequest(renew=request), timeout)
        except (Refusal, Unreachable):
            return  # the verdict will tell, and the read has its own deadline
        for lease in answer.renew.expired:
            stop = self._kept.get((epoch, lease))
            if stop is not None:
                stop.set()

    def _redial(self) -> None:
        """A channel that has failed refuses calls for up to a second; a new one just dials."""
        # Calls of other pulls still end on the old one.
        old = asyncio.create_task(self._channel.close(RELEASE_S))
        self._closing.add(old)
        old.add_done_callback(self._closing.discard)
        self._channel = channel(self.address)
        self._stub = kv_pb2_grpc.KvPeerServiceStub(self._channel)

    async def _shake(self) -> Handshaken:
        if self._channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._redial()
        request = pb.HandshakeRequest(reader=self._me, cache=self._identity)
        try:
            answer = await self._stub.Handshake(request, timeout=HANDSHAKE_S)
        except grpc.aio.AioRpcError as error:
            unreachable = Unreachable(f"{self.address}: {error.code().name}")
            raise refusal_of(error) or unreachable from error
        field = differing_field(self._identity, answer.cache)
        if field is not None:
            raise Refusal(
                errors.ERROR_REASON_INCOMPATIBLE_PEER,
                f"{answer.holder.name} at {self.address} answered with another cache: {field}",
                {"field": field.partition(":")[0]},
            )
        memory = answer.memory.SerializeToString(deterministic=True)
        if self._memory is not None and self._memory != memory:
            self._forget(self._memory)
        self._memory = memory
        leases = await LeaseStream.dial(
            self.address, answer.lease_port, answer.lease_ticket, HANDSHAKE_S
        )
        return Handshaken(answer.holder.epoch, memory, leases)

    async def close(self) -> None:
        """Ends the heartbeat, the connection and the channel."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait([self._heartbeat])
        if self._hands is not None:
            self._hands.leases.close()
        await asyncio.gather(self._channel.close(), *self._closing)
