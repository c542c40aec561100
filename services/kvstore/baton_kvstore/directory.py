"""Who holds which page. Pure bookkeeping: time comes with the calls, in seconds.

A hint: holders are the authority, and a wrong entry costs a reader one
refused lease.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from baton.v1.kv_pb2 import HolderChange, Peer

PageHash = bytes  # 16 bytes
HASH_BYTES = 16


@dataclass(slots=True)
class HolderState:
    """One life of one holder, as far as it has told us."""

    peer: Peer
    storage: bool
    sequence: int  # of the next message
    heard: float
    pages: set[PageHash] = field(default_factory=set)


class Directory:
    """Holders by name, pages by identity. `changes` is what watchers must be told next."""

    def __init__(self, holder_timeout_s: float) -> None:
        self._timeout = holder_timeout_s
        self._holders: dict[str, HolderState] = {}
        self._by_page: dict[PageHash, set[str]] = {}
        self._changes: list[HolderChange] = []

    @property
    def holders(self) -> int:
        """Holders alive."""
        return len(self._holders)

    @property
    def pages(self) -> int:
        """Distinct pages that somebody holds."""
        return len(self._by_page)

    @property
    def entries(self) -> int:
        """Pairs of page and holder."""
        return sum(len(holder.pages) for holder in self._holders.values())

    def publish(
        self,
        peer: Peer,
        sequence: int,
        added: Sequence[PageHash],
        removed: Sequence[PageHash],
        now: float,
        *,
        storage: bool = False,
    ) -> bool:
        """Takes a holder's word; False: track was lost, it must publish everything.

        Sequence 0 replaces what was known of the name, in whatever life.
        """
        holder = self._holders.get(peer.name)
        if sequence == 0:
            holder = self._reset(peer, holder, storage)
        elif holder is None or holder.peer.epoch != peer.epoch or holder.sequence != sequence:
            return False
        holder.sequence = sequence + 1
        holder.heard = now
        gone = [page for page in removed if page in holder.pages]
        self._remove(holder, gone)
        came = [page for page in added if page not in holder.pages]
        self._add(holder, came)
        if came or gone:
            self._tell(holder, came, gone)
        return True

    def expire(self, now: float) -> list[Peer]:
        """Forgets holders that were silent too long; who they were."""
        silent = [h for h in self._holders.values() if now - h.heard > self._timeout]
        for holder in silent:
            self.forget(holder)
        return [holder.peer for holder in silent]

    def touch(self, name: str, now: float) -> None:
        """A holder in our own process is alive."""
        if name in self._holders:
            self._holders[name].heard = now

    def forget(self, holder: HolderState) -> None:
        """A holder is gone with all its pages."""
        self._remove(holder, list(holder.pages))
        del self._holders[holder.peer.name]
        self._changes.append(HolderChange(holder=holder.peer, gone=True, storage=holder.storage))

    def holding(self, page: PageHash) -> Iterable[HolderState]:
        """The holders of one page."""
        return (self._holders[name] for name in self._by_page.get(page, ()))

    def holder_of(self, page: PageHash, *, other_than: str) -> Peer | None:
        """Somebody else who has the page, a worker if there is one."""
        others = [holder for holder in self.holding(page) if holder.peer.name != other_than]
        return min(others, key=lambda holder: holder.storage).peer if others else None

    def locate(self, chain: Sequence[PageHash]) -> list[tuple[Peer, int]]:
        """Holders of leading pages of a chain, longest first; storage after workers."""
        found: list[tuple[HolderState, int]] = []
        for holder in self.holding(chain[0]) if chain else ():
            count = 0
            for page in chain:
                if page not in holder.pages:
                    break
                count += 1
            found.append((holder, count))
        found.sort(key=lambda item: (-item[1], item[0].storage, item[0].peer.name))
        return [(holder.peer, count) for holder, count in found]

    def snapshot(self) -> list[HolderChange]:
        """Everything, as a watcher hears it first."""
        return [
            HolderChange(holder=h.peer, added=b"".join(h.pages), storage=h.storage)
            for h in self._holders.values()
        ]

    def take_changes(self) -> list[HolderChange]:
        """What happened since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def _reset(self, peer: Peer, known: HolderState | None, storage: bool) -> HolderState:
        if known is not None:
            self.forget(known)
        # A copy: the message it came in is gRPC's.
        mine = Peer(name=peer.name, address=peer.address, epoch=peer.epoch)
        holder = self._holders[peer.name] = HolderState(mine, storage, 0, 0.0)
        # Also a holder of nothing is worth knowing: it lives.
        self._tell(holder, (), ())
        return holder

    def _add(self, holder: HolderState, pages: Iterable[PageHash]) -> None:
        for page in pages:
            holder.pages.add(page)
            self._by_page.setdefault(page, set()).add(holder.peer.name)

    def _remove(self, holder: HolderState, pages: Iterable[PageHash]) -> None:
        for page in pages:
            holder.pages.discard(page)
            names = self._by_page.get(page)
            if names is not None:
                names.discard(holder.peer.name)
                if not names:
                    del self._by_page[page]

    def _tell(
        self, holder: HolderState, came: Sequence[PageHash], gone: Sequence[PageHash]
    ) -> None:
        self._changes.append(
            HolderChange(
                holder=holder.peer,
                added=b"".join(came),
                removed=b"".join(gone),
                storage=holder.storage,
            )
        )


def split_hashes(data: bytes) -> list[PageHash]:
    """n x 16 bytes as n identities; the caller has checked the length."""
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]
