"""Which prefixes this cluster has cached, told to gateways as SMG's KV events.

The router knows the tokens of every request it has finished, and hears from its
page index when a page has lost its last holder. Events are kept for late
subscribers; once they no longer reach back to the first one, a subscriber gets
a snapshot of what is cached instead.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from smg_grpc_proto.generated import common_pb2 as common

from baton_router.page_index import split_hashes
from baton_scheduler import page_hashes

log = logging.getLogger("baton.router")

KEPT_BATCHES: Final = 4096
# A snapshot's chunks take the numbers of the batches before it, so there must be fewer.
_CHUNK_BLOCKS: Final = 256
_BEHIND: Final = 4096  # batches that a subscriber may be late


@dataclass(frozen=True, slots=True)
class _Block:
    """One cached page: its tokens, and the page before it in the chain."""

    parent: bytes | None
    tokens: list[int]


class KvEventLog:
    """Used on one event loop. Remembers at most `most_blocks` blocks, the latest stored."""

    def __init__(self, most_blocks: int = KEPT_BATCHES * _CHUNK_BLOCKS // 4) -> None:
        self._most = most_blocks
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # parents before children
        self._page_size = 0
        self._sequence = 0
        self._events = 0
        self._batches: deque[common.KvEventBatch] = deque(maxlen=KEPT_BATCHES)
        self._subscribers: set[asyncio.Queue[common.KvEventBatch | None]] = set()

    def stored(self, tokens: NDArray[np.int32], page_size: int, key: bytes) -> None:
        """The pages of `tokens`, int32 [N], are cached; `key` is that of their identity."""
        if page_size != self._page_size:
            self.cleared()
            self._page_size = page_size
        events: list[common.KvCacheEvent] = []
        parent: bytes | None = None
        new: common.KvBlocksStored | None = None
        chain = page_hashes(tokens, page_size, key).tobytes()
        for index, page in enumerate(split_hashes(chain)):
            if page in self._blocks:
                new = None
            else:
                ids: list[int] = tokens[index * page_size : (index + 1) * page_size].tolist()
                block = self._blocks[page] = _Block(parent, ids)
                if new is None:
                    events.append(common.KvCacheEvent(stored=_stored(parent)))
                    new = events[-1].stored
                new.blocks.append(_block(page, block, page_size))
            parent = page
        self._tell(events)
        while len(self._blocks) > self._most:
            self.removed([next(iter(self._blocks))])

    def removed(self, pages: Sequence[bytes]) -> None:
        """Nobody holds these pages any more."""
        gone = [page for page in pages if self._blocks.pop(page, None) is not None]
        if gone:
            removed = common.KvBlocksRemoved(block_hashes=[_number(page) for page in gone])
            self._tell([common.KvCacheEvent(removed=removed)])

    def cleared(self) -> None:
        """No page of before is found again."""
        if self._blocks:
            self._blocks.clear()
            self._tell([common.KvCacheEvent(cleared=common.KvCacheCleared())])

    async def subscribe(self, start: int) -> AsyncIterator[common.KvEventBatch]:
        """What is cached (from batch `start` on, when it is still kept), then every change.

        Ends when the subscriber is too far behind; it may come again.
        """
        mail: asyncio.Queue[common.KvEventBatch | None] = asyncio.Queue(_BEHIND)
        past = self._past(start)
        self._subscribers.add(mail)
        try:
            for batch in past:
                yield batch
            while (next_batch := await mail.get()) is not None:
                yield next_batch
            log.warning("a subscriber of KV events was %d batches behind; it is let go", _BEHIND)
        finally:
            self._subscribers.discard(mail)

    def _past(self, start: int) -> list[common.KvEventBatch]:
        first = self._batches[0].sequence_number if self._batches else 1
        if max(start, 1) >= first:
            return [batch for batch in self._batches if batch.sequence_number >= start]
        return self._snapshot()

    def _snapshot(self) -> list[common.KvEventBatch]:
        pages = list(self._blocks.items())
        parts = [pages[i : i + _CHUNK_BLOCKS] for i in range(0, len(pages), _CHUNK_BLOCKS)] or [[]]
        batches = []
        for index, part in enumerate(parts):
            events = [common.KvCacheEvent(cleared=common.KvCacheCleared())] if index == 0 else []
            for page, block in part:
                stored = _stored(block.parent)
                stored.blocks.append(_block(page, block, self._page_size))
                events.append(common.KvCacheEvent(stored=stored))
            batches.append(
                common.KvEventBatch(
                    sequence_number=self._sequence - len(parts) + 1 + index,
                    timestamp=time.time(),
                    events=events,
                    snapshot=common.KvSnapshotChunk(
                        index=index, count=len(parts), blocks=len(pages)
                    ),
                )
            )
        return batches

    def _tell(self, events: list[common.KvCacheEvent]) -> None:
        if not events:
            return
        for event in events:
            self._events += 1
            event.event_id = self._events
        self._sequence += 1
        batch = common.KvEventBatch(
            sequence_number=self._sequence, timestamp=time.time(), events=events
        )
        self._batches.append(batch)
        for mail in list(self._subscribers):
            if mail.qsize() >= _BEHIND - 1:
                self._subscribers.discard(mail)
                mail.put_nowait(None)
            else:
                mail.put_nowait(batch)


def _stored(parent: bytes | None) -> common.KvBlocksStored:
    return common.KvBlocksStored(parent_block_hash=None if parent is None else _number(parent))


def _block(page: bytes, block: _Block, page_size: int) -> common.KvBlock:
    return common.KvBlock(block_hash=_number(page), token_ids=block.tokens, block_size=page_size)


def _number(page: bytes) -> int:
    """The wire has 64 bits for an identity of 128."""
    return int.from_bytes(page[:8], "little", signed=True)
