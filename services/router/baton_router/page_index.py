"""Who holds which page, as far as this router has heard. A hint: only a lease is certain.

Two sources: the directory's event stream, and our own finished requests, which
the directory has not heard of yet (or never will, when it is away). A page is
known by its 16-byte identity; holders are bits of a mask, so that walking a
chain costs one lookup and one AND a page whatever the number of holders.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from baton.v1 import kv_pb2 as kv

HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that leases pages, in one of its lives."""

    name: str
    address: str
    epoch: int
    storage: bool  # a kvstore tier

    def peer(self) -> kv.Peer:
        """As it travels."""
        return kv.Peer(name=self.name, address=self.address, epoch=self.epoch)


@dataclass(frozen=True, slots=True)
class Held:
    """A holder has the first `pages` full pages of a chain, or its part of them."""

    holder: Holder
    pages: int
    only: bytes = b""  # not empty: those whose bit is set; kvstores have the rest between them

    def has(self, index: int) -> bool:
        """Whether it has this page of the chain."""
        bit = not self.only or self.only[index // 8] >> index % 8 & 1
        return index < self.pages and bool(bit)


def split_hashes(hashes: bytes) -> Iterator[bytes]:
    """The 16-byte identities in n x 16 bytes; a torn last one is left out."""
    end = len(hashes) - len(hashes) % HASH_BYTES
    return (hashes[i : i + HASH_BYTES] for i in range(0, end, HASH_BYTES))


class PageIndex:
    """Page identity -> holders. Used on one event loop; holds at most `hinted_pages` hints."""

    def __init__(self, hinted_pages: int = 262_144) -> None:
        self._masks: dict[bytes, int] = {}  # from the directory
        self._hints: OrderedDict[bytes, int] = OrderedDict()  # from our own requests, by age
        self._most_hints = hinted_pages
        self.on_gone: Callable[[list[bytes]], None] | None = None  # pages nobody holds any more
        self._bits: dict[str, int] = {}  # holder's name -> bit
        self._holders: dict[int, Holder] = {}  # bit -> its present life

    def __len__(self) -> int:
        return len(self._masks)

    def add(self, holder: Holder, hashes: Iterable[bytes]) -> None:
        """The directory says that `holder` has these pages."""
        bit = self._bit(holder)
        masks = self._masks
        for page in hashes:
            masks[page] = masks.get(page, 0) | bit

    def remove(self, holder: Holder, hashes: Iterable[bytes]) -> None:
        """The directory says that `holder` has these pages no more."""
        keep = ~self._bit(holder)
        pages = list(hashes)
        for page in pages:
            _clear(self._masks, page, keep)
            _clear(self._hints, page, keep)
        self._left(pages)

    def hint(self, holder: Holder, hashes: Iterable[bytes]) -> None:
        """One of our requests has just left these pages at `holder`."""
        bit = self._bit(holder)
        hints = self._hints
        for page in hashes:
            hints[page] = hints.get(page, 0) | bit
            hints.move_to_end(page)
        while len(hints) > self._most_hints:
            self._left([hints.popitem(last=False)[0]])

    def meet(self, holder: Holder) -> None:
        """This life of the holder is the present one: what an earlier one had is gone."""
        self._bit(holder)

    def forget(self, name: str, epoch: int | None = None) -> None:
        """The holder of this name (in this life, when told) is gone, and its pages with it."""
        bit = self._bits.get(name)
        holder = self._holders.get(bit) if bit is not None else None
        if bit is None or holder is None or epoch not in (None, holder.epoch):
            return
        del self._holders[bit]
        for table in (self._masks, self._hints):
            pages = [page for page, mask in table.items() if mask & bit]
            for page in pages:
                _clear(table, page, ~bit)
            self._left(pages)

    def drop(self, hashes: Iterable[bytes]) -> None:
        """Everybody has been told to forget these pages."""
        for page in hashes:
            self._masks.pop(page, None)
            self._hints.pop(page, None)

    def forget_directory(self) -> None:
        """A snapshot follows: only what our own requests left is kept."""
        self._masks.clear()

    def forget_storage(self) -> None:
        """The kvstore is away; workers' pages are still where they were."""
        for holder in [holder for holder in self._holders.values() if holder.storage]:
            self.forget(holder.name)

    def held(self, chain: bytes) -> list[Held]:
        """Every holder of the chain's first page, with how many leading pages it has, best first.

        `chain` is n x 16 bytes.
        """
        found: list[Held] = []
        alive = 0
        for bit in self._holders:
            alive |= bit
        pages = 0
        for page in split_hashes(chain):
            still = alive & (self._masks.get(page, 0) | self._hints.get(page, 0))
            if still != alive:
                if pages:
                    found.extend(self._dropped(alive & ~still, pages))
                alive = still
                if not alive:
                    break
            pages += 1
        if pages:
            found.extend(self._dropped(alive, pages))
        found.reverse()
        shards = [bit for bit, holder in self._holders.items() if holder.storage]
        return found if len(shards) < 2 else self._with_shards(found, chain, shards)

    def usable(self, found: list[Held], states: Sequence[bytes], stride: int) -> list[Held]:
        """Of what is held, as much as a state is held of too, best first.

        `states`: for each page that may be reused, what the state after it goes by; there are
        snapshots after every `stride` pages. Of kvstores with a prefix between them, the one with
        the page before a state has the state.
        """
        reached: list[Held] = []
        for _, group in groupby(found, key=lambda held: "" if held.only else held.holder.name):
            parts = list(group)
            pages = min(parts[0].pages, len(states)) // stride * stride
            while pages and not any(self._has_after(h, pages - 1, states) for h in parts):
                pages -= stride
            if pages:
                reached.extend(Held(held.holder, pages, held.only) for held in parts)
        return sorted(reached, key=lambda held: -held.pages)

    def _has_after(self, held: Held, index: int, states: Sequence[bytes]) -> bool:
        mask = self._masks.get(states[index], 0) | self._hints.get(states[index], 0)
        return held.has(index) and bool(mask & self._bits.get(held.holder.name, 0))

    def _with_shards(self, found: list[Held], chain: bytes, shards: list[int]) -> list[Held]:
        """Several kvstores have what they have between them: each is a source of its part."""
        parts = {bit: bytearray(len(chain) // (8 * HASH_BYTES) + 1) for bit in shards}
        together = 0
        for page in split_hashes(chain):
            mask = self._masks.get(page, 0)
            having = [bit for bit in shards if mask & bit]
            if not having:
                break
            for bit in having:
                parts[bit][together // 8] |= 1 << together % 8
            together += 1
        alone = max((held.pages for held in found if held.holder.storage), default=0)
        if together <= alone:
            return found
        size = -(-together // 8)
        stripes = [
            Held(self._holders[bit], together, bytes(part[:size]))
            for bit, part in parts.items()
            if any(part)
        ]
        workers = [held for held in found if not held.holder.storage]
        longer = sum(held.pages >= together for held in workers)
        return [*workers[:longer], *stripes, *workers[longer:]]

    def _left(self, pages: list[bytes]) -> None:
        if self.on_gone is not None:
            gone = [p for p in pages if p not in self._masks and p not in self._hints]
            if gone:
                self.on_gone(gone)

    def _dropped(self, mask: int, pages: int) -> Iterator[Held]:
        while mask:
            bit = mask & -mask
            mask ^= bit
            yield Held(self._holders[bit], pages)

    def _bit(self, holder: Holder) -> int:
        bit = self._bits.get(holder.name)
        if bit is None:
            bit = self._bits[holder.name] = self._free_bit()
        known = self._holders.get(bit)
        if known is not None and known.epoch != holder.epoch:
            self.forget(holder.name)  # its old life's pages died with it
        self._holders[bit] = holder
        return bit

    def _free_bit(self) -> int:
        # Names that left give their bits back, or restarts under new names would widen the masks.
        used = set(self._holders)
        for name in [name for name, bit in self._bits.items() if bit not in used]:
            del self._bits[name]
        bit = 1
        while bit in used:
            bit <<= 1
        return bit


def _clear(table: dict[bytes, int], page: bytes, keep: int) -> None:
    mask = table.get(page)
    if mask is None:
        return
    if mask & keep:
        table[page] = mask & keep
    else:
        del table[page]
