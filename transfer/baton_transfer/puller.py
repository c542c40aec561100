"""A pull: lease, read, proof, release. The proof is every page's checksum, or else the verdict."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb
from baton_rpc import Refusal
from baton_transfer.arena import Pages
from baton_transfer.following import Follower
from baton_transfer.lease_stream import Unreachable
from baton_transfer.link import PeerLink
from baton_transfer.outcome import (
    Pulled,
    PullFailure,
    ReadFailure,
    ReadOutcome,
    judged,
    nothing,
)
from baton_transfer.peers import Handshaken, Holder
from baton_transfer.releases import Releases
from baton_transfer.share import Stop

log = logging.getLogger("baton.transfer")

# What a read in vain may waste: a millisecond or two, as long as a few leases take.
_UNLEASED_BYTES = 8 << 20


class PagesReader(Protocol):
    """Of one rank (CacheReader) or of several: then the worst of their outcomes, when all of them
    are terminal."""

    def begin(
        self,
        memory: bytes,
        group: int,
        sources: Pages,
        targets: Pages,
        checksums: NDArray[np.uint64] | None = None,
        *,
        stop: Stop | None = None,
    ) -> ReadOutcome | Future[ReadOutcome]:
        """See CacheReader.begin."""

    def unleased(self, memory: bytes, group: int) -> PeerLink | None:
        """See CacheReader.unleased."""

    def forget(self, memory: bytes) -> None:
        """Told the memory of a holder's past life."""


@dataclass(frozen=True, slots=True)
class PullSettings:
    """credit_bytes: under way from one holder at a time. ttl_ms: of a lease, renewed in time."""

    credit_bytes: int = 256 << 20
    ttl_ms: int = 10_000


class Puller:
    """Pulls pages from any number of holders. Used on one event loop.

    puller = Puller(me, identity, reader)
    pulled = await puller.pull(holder, hashes, target_pages)
    """

    def __init__(
        self,
        me: pb.Peer,
        identity: pb.CacheIdentity,
        reader: PagesReader,
        *,
        settings: PullSettings | None = None,
    ) -> None:
        self._me = me
        self._identity = identity
        self._reader = reader
        self._page_bytes = [group.page_bytes for group in identity.groups]
        self._settings = settings or PullSettings()
        self._holders: dict[str, Holder] = {}
        self._follower = Follower(me.name)
        self._connecting: set[asyncio.Task[None]] = set()
        self._releases = Releases()

    @property
    def outlived(self) -> int:
        """Pulls whose pages were whole though their lease had ended."""
        return self._releases.outlived

    async def pull(
        self,
        source: pb.Peer,
        hashes: NDArray[np.uint8],
        targets: Pages,
        *,
        group: int = 0,
        handed_over: tuple[str, int] | None = None,
    ) -> Pulled:
        """Brings the pages `hashes`, uint8 [n, 16], into our pages `targets`, int32 [n].

        All are of one cache group, an index of CacheIdentity.groups; targets are pages of its
        arena.

        Never raises for what a peer does; see Pulled.failure. Returns (also when
        cancelled: CancelledError comes only then) when nothing writes into the
        targets any more. `handed_over` (request_id, attempt) is told to the
        holder with the last release, when every page has arrived. Pages that
        match the checksums of their lease are returned before the release is
        answered: its verdict would add nothing. A few small pages of a holder
        on this host are found in its table of seals and need no lease.

        Raises ValueError for unequal lengths and for a group that does not exist.
        """
        if not 0 <= group < len(self._page_bytes):
            raise ValueError(f"group {group} of {len(self._page_bytes)} cache groups")
        if hashes.shape != (len(targets), 16):
            raise ValueError(f"hashes {hashes.shape} for {len(targets)} target pages")
        begun = self._begin_unleased(source.address, hashes, targets, group)
        if begun is not None:
            outcome = begun if isinstance(begun, ReadOutcome) else await _terminal(*begun)
            if outcome.failure is None:
                if handed_over:
                    self._releases.unleased(self._holders[source.address], handed_over)
                return Pulled(*outcome[:3])
            if outcome.failure is not ReadFailure.CHECKSUM:  # else other pages are there by now
                return Pulled(*outcome[:3], PullFailure.READ, outcome.failure, outcome.detail)
        return await self._pull(source, hashes, targets, group, handed_over)

    def follow(self, holder: pb.Peer, request_id: str, attempt: int) -> AsyncIterator[pb.Handover]:
        """What the holder announces for one request: cumulative, latest only.

        Ends after the handover with first_token or failed. Raises HolderLost
        when this life of the holder cannot be heard any more. All requests of
        one holder share one stream. Close it (`aclose`) when giving up early.
        """
        self._get_ready(holder.address)
        return self._follower.follow(holder, request_id, attempt)

    async def hand_over(self, holder: pb.Peer, request_id: str, attempt: int) -> bool:
        """Tells the holder that we want nothing more of a request; False when it did not hear.

        For requests whose last pull did not say so. An unheard holder lets go by its own clock.
        """
        try:
            await self._holder(holder.address).release(holder.epoch, [], [(request_id, attempt)])
        except (Refusal, Unreachable):
            return False
        return True

    async def released(self) -> None:
        """When every release of what has proven itself is answered."""
        await self._releases.ended()

    async def close(self) -> None:
        """Ends streams and channels. Pulls must have ended."""
        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        await self.released()
        await self._follower.close()
        holders, self._holders = self._holders, {}
        for holder in holders.values():
            await holder.close()

    def _get_ready(self, address: str) -> None:
        """Connects to a holder that is new to us while it still computes: 60 ms and more."""
        if address not in self._holders:
            task = asyncio.create_task(self._connect(self._holder(address)))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, holder: Holder) -> None:
        none = np.empty(0, np.int32)
        try:
            hands = await holder.handshake()
            for group in range(len(self._identity.groups)):
                reading = self._reader.begin(hands.memory, group, none, none)
                if not isinstance(reading, ReadOutcome):
                    await asyncio.wrap_future(reading)
        except (Refusal, Unreachable) as error:
            log.info("not connected to %s yet: %s", holder.address, error)

    def _holder(self, address: str) -> Holder:
        if address not in self._holders:
            self._holders[address] = Holder(
                address,
                self._me,
                self._identity,
                self._settings.credit_bytes,
                self._settings.ttl_ms,
                self._reader.forget,
            )
        return self._holders[address]

    def _begin_unleased(
        self, address: str, hashes: NDArray[np.uint8], targets: Pages, group: int
    ) -> ReadOutcome | tuple[Future[ReadOutcome], Stop] | None:
        """By the holder's table of seals: nobody there is asked, and nothing is pinned there, so
        that no credit is needed. None when they must be leased."""
        holder = self._holders.get(address)
        hands = None if holder is None else holder.hands
        if hands is None or hands.leases.over:
            return None
        if len(targets) * self._page_bytes[group] > _UNLEASED_BYTES:
            return None
        link = hands.unleased.get(group)
        if link is None:
            link = self._reader.unleased(hands.memory, group)
            if link is None:
                return None
            hands.unleased[group] = link
        return link.begin_unleased(hashes, targets)

    async def _pull(
        self,
        source: pb.Peer,
        hashes: NDArray[np.uint8],
        targets: Pages,
        group: int,
        handed_over: tuple[str, int] | None,
    ) -> Pulled:
        started = time.monotonic()
        holder = self._holder(source.address)
        page_bytes = self._page_bytes[group]
        step = max(1, holder.credit.limit // page_bytes)
        total = Pulled(0, 0, 0.0)
        for first in range(0, len(targets), step):
            last = first + step >= len(targets)
            wanted = targets[first : first + step]
            credit = await holder.credit.take(len(wanted) * page_bytes)
            try:
                part = await self._chunk(
                    holder,
                    hashes[first : first + step],
                    wanted,
                    group,
                    handed_over if last else None,
                )
            finally:
                holder.credit.give(credit)
            total = total.and_then(part, time.monotonic() - started)
            if part.failure is not None:
                break
            if not last:
                await asyncio.sleep(0)  # its release goes out before the next lease is asked for
        return total

    async def _chunk(
        self,
        holder: Holder,
        hashes: NDArray[np.uint8],
        targets: Pages,
        group: int,
        handed_over: tuple[str, int] | None,
    ) -> Pulled:
        try:
            hands, lease = await holder.acquire(hashes.tobytes(), group, self._releases.unwanted)
        except Refusal as refusal:
            return nothing(PullFailure.REFUSED, f"{refusal.reason_name}: {refusal.message}")
        except Unreachable as error:
            return nothing(PullFailure.UNREACHABLE, str(error))
        if not lease.lease_id:
            return nothing(PullFailure.NOT_HELD, f"{holder.address} has none of the pages")
        count = min(len(lease.pages), len(targets))
        stop = Stop()
        reading = self._reader.begin(
            hands.memory,
            group,
            np.array(lease.pages, np.int32)[:count],
            targets[:count],
            _checksums(lease, count),
            stop=stop,
        )
        if isinstance(reading, ReadOutcome):
            outcome = reading
        else:
            with holder.kept(hands, lease.lease_id, stop):
                try:
                    outcome = await _terminal(reading, stop)
                except asyncio.CancelledError:
                    self._releases.unwanted(holder, hands.epoch, lease.lease_id)
                    raise
        done = [handed_over] if handed_over and outcome.arrived == len(targets) else []
        if outcome.verified:
            self._releases.proven(holder, hands.epoch, lease.lease_id, done)
            return judged(outcome, None, len(targets), holder.address)
        valid = await self._verdict(holder, hands, lease.lease_id, done)
        return judged(outcome, valid, len(targets), holder.address)

    async def _verdict(
        self, holder: Holder, hands: Handshaken, lease: int, done: list[tuple[str, int]]
    ) -> bool | None:
        """Releases; None when there was no answer."""
        try:
            return await holder.release(hands.epoch, [lease], done) == [True]
        except (Refusal, Unreachable):
            holder.restarted(hands)
            return None


def _checksums(lease: pb.AcquireResponse, count: int) -> NDArray[np.uint64] | None:
    """Of the first `count` pages, on each of the holder's ranks that are read from."""
    if not lease.checksums:
        return None
    sums = np.array(lease.checksums, np.uint64)
    if count == len(lease.pages):
        return sums
    return sums[np.arange(len(sums)) % len(lease.pages) < count]


async def _terminal(reading: Future[ReadOutcome], stop: Stop) -> ReadOutcome:
    """The read's end. When we are cancelled, however often, we stop it and wait for that too."""
    read = asyncio.wrap_future(reading)
    try:
        return await asyncio.shield(read)
    except asyncio.CancelledError:
        stop.set()
        while not read.done():
            try:
                await asyncio.wait([read])
            except asyncio.CancelledError:
                continue
        raise
