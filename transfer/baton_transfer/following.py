"""The reader's side of hand-overs: one WatchHandovers stream per holder, told to its requests."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from baton.v1 import kv_pb2 as pb
from baton.v1 import kv_pb2_grpc
from baton_rpc import channel, refusal_of

# Until the holder says that it serves the watch.
_OPEN_S = 5.0
_RETRY_PAUSE_S = 0.1
# A stream outlives its last request by this, since agents come back.
_LINGER_S = 10.0
# A request that is announced and never followed here (cancelled in between) is forgotten.
_EARLY_LIMIT = 4096

_Key = tuple[str, int]


class HolderLost(Exception):
    """A holder's announcements cannot be heard any more: it died, restarted or refused."""


class _Followed:
    """One request's latest handover."""

    def __init__(self) -> None:
        self.latest: pb.Handover | None = None
        self.lost: str | None = None
        self.changed = asyncio.Event()


class _Stream:
    """The watch of one life of one holder."""

    def __init__(self, reader: str, holder: pb.Peer) -> None:
        self._reader = reader
        self._holder = holder
        self.followed: dict[_Key, _Followed] = {}
        # Announced before the request was followed here: the router tells both sides at once.
        self._early: dict[_Key, pb.Handover] = {}
        self._idle = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def add(self, key: _Key) -> _Followed:
        followed = self.followed[key] = _Followed()
        followed.latest = self._early.pop(key, None)
        if followed.latest is not None:
            followed.changed.set()
        return followed

    async def _run(self) -> None:
        reason = "the reader was closed"
        link = channel(self._holder.address)
        try:
            # State is cumulative, so a connection that broke may be made again; a
            # holder that does not answer, or answers in another life, is lost.
            while True:
                opened, reason = await self._watch(kv_pb2_grpc.KvPeerServiceStub(link))
                if not opened:
                    return
                await asyncio.sleep(_RETRY_PAUSE_S)
        finally:
            await link.close()
            for followed in self.followed.values():
                followed.lost = f"{self._holder.name} at {self._holder.address}: {reason}"
                followed.changed.set()

    async def _watch(self, stub: kv_pb2_grpc.KvPeerServiceStub) -> tuple[bool, str]:
        """One connection's life; (whether it was ever served, why it ended)."""
        request = pb.WatchHandoversRequest(reader=self._reader, epoch=self._holder.epoch)
        call = stub.WatchHandovers(request)
        opened = False
        try:
            async with asyncio.timeout(_OPEN_S):
                await call.initial_metadata()
            # A call that failed to connect has (empty) metadata too, but is over.
            opened = not call.done()
            async for message in call:
                self._told(message)
            return False, "it announces no hand-overs"
        except TimeoutError:
            return False, f"no answer to WatchHandovers within {_OPEN_S:g} s"
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is not None:
                return False, f"{refusal.reason_name}: {refusal.message}"
            return opened, f"{error.code().name}: {error.details()}"
        finally:
            call.cancel()

    def _told(self, message: pb.WatchHandoversResponse) -> None:
        for handover in message.handovers:
            key = (handover.request_id, handover.attempt)
            followed = self.followed.get(key)
            if followed is None:
                self._remember(key, handover)
                continue
            followed.latest = handover
            followed.changed.set()

    def _remember(self, key: _Key, handover: pb.Handover) -> None:
        self._early[key] = handover
        while len(self._early) > _EARLY_LIMIT:
            del self._early[next(iter(self._early))]


class Follower:
    """Follows requests at holders. Used on one event loop."""

    def __init__(self, reader: str) -> None:
        """`reader` is our Peer.name, by which prefill workers know whom they seal for."""
        self._reader = reader
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._lingering: dict[tuple[str, int], asyncio.TimerHandle] = {}

    async def follow(
        self, holder: pb.Peer, request_id: str, attempt: int
    ) -> AsyncIterator[pb.Handover]:
        """See Puller.follow."""
        life = (holder.address, holder.epoch)
        key = (request_id, attempt)
        stream = self._stream(life, holder)
        followed = stream.add(key)
        try:
            while True:
                await followed.changed.wait()
                followed.changed.clear()
                latest, followed.latest = followed.latest, None
                if latest is not None:
                    yield latest
                    if latest.HasField("first_token") or latest.failed:
                        return
                elif followed.lost is not None:
                    raise HolderLost(followed.lost)
        finally:
            stream.followed.pop(key, None)
            self._linger(life, stream)

    async def close(self) -> None:
        """Ends every stream; those who still follow get HolderLost."""
        for timer in self._lingering.values():
            timer.cancel()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.task.cancel()
        if streams:
            await asyncio.wait([stream.task for stream in streams.values()])

    def _stream(self, life: tuple[str, int], holder: pb.Peer) -> _Stream:
        timer = self._lingering.pop(life, None)
        if timer is not None:
            timer.cancel()
        stream = self._streams.get(life)
        if stream is None or stream.task.done():
            stream = self._streams[life] = _Stream(self._reader, holder)
        return stream

    def _linger(self, life: tuple[str, int], stream: _Stream) -> None:
        if stream.followed or self._streams.get(life) is not stream:
            return
        if stream.task.done():
            del self._streams[life]
            return
        loop = asyncio.get_running_loop()
        self._lingering[life] = loop.call_later(_LINGER_S, self._end, life, stream)

    def _end(self, life: tuple[str, int], stream: _Stream) -> None:
        self._lingering.pop(life, None)
        if not stream.followed and self._streams.get(life) is stream:
            del self._streams[life]
            stream.task.cancel()
