"""What a gateway is told of the caches: a replica of ours, however late it subscribes."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from smg_grpc_proto.generated import common_pb2 as common

from baton_router.gateway import kv_events
from baton_router.gateway.kv_events import KvEventLog
from baton_router.page_index import Holder, PageIndex, split_hashes
from baton_scheduler import page_hashes

PAGE, KEY = 4, bytes(range(16))


class Replica:
    """Applies batches as the protocol says: block hash -> (parent, tokens)."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        self.sequence = 0

    def take(self, batch: common.KvEventBatch) -> None:
        assert self.sequence in (0, batch.sequence_number - 1), "a gap, or twice"
        self.sequence = batch.sequence_number
        for event in batch.events:
            kind = event.WhichOneof("data")
            if kind == "cleared":
                self.blocks.clear()
            elif kind == "removed":
                for block in event.removed.block_hashes:
                    del self.blocks[block]
            else:
                stored = event.stored
                parent = stored.parent_block_hash if stored.HasField("parent_block_hash") else None
                for block in stored.blocks:
                    assert block.block_size == len(block.token_ids) == PAGE
                    self.blocks[block.block_hash] = (parent, tuple(block.token_ids))
                    parent = block.block_hash


def tokens(rng: random.Random, words: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Sequences that often begin alike."""
    return np.asarray([t for _ in range(words) for t in [rng.randrange(3)] * PAGE], np.int32)


async def taken(log: KvEventLog, start: int, count: int) -> list[common.KvEventBatch]:
    stream = log.subscribe(start)
    try:
        return [await asyncio.wait_for(anext(stream), 5) for _ in range(count)]
    finally:
        await stream.aclose()


def expected(log: KvEventLog) -> dict[int, tuple[int | None, tuple[int, ...]]]:
    replica = Replica()
    for batch in log._snapshot():
        replica.take(batch)
    return replica.blocks


@pytest.mark.parametrize("seed", range(5))
async def test_late_and_early_subscribers_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history is short and the log forgets, so some get a snapshot and some every event."""
    monkeypatch.setattr(kv_events, "KEPT_BATCHES", 8)
    rng = random.Random(seed)
    log = KvEventLog(most_blocks=40)
    log._batches = type(log._batches)(maxlen=8)
    early = Replica()
    stream = log.subscribe(0)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    known: list[bytes] = []
    for _ in range(60):
        before = log._sequence
        if known and rng.random() < 0.3:
            log.removed([known.pop(rng.randrange(len(known)))])
        elif rng.random() < 0.03:
            log.cleared()
        else:
            sequence = tokens(rng, rng.randrange(1, 8))
            log.stored(sequence, PAGE, KEY)
            known = list(log._blocks)
        for _ in range(log._sequence - before):
            early.take(await asyncio.wait_for(waiting, 5))
            waiting = asyncio.ensure_future(anext(stream))
        late = Replica()
        past = log._past(0)
        for batch in past:
            late.take(batch)
        assert late.blocks == early.blocks == expected(log)
        assert late.sequence == log._sequence
    waiting.cancel()
    assert any(batch.HasField("snapshot") for batch in log._past(0))


async def test_a_cursor_is_resumed() -> None:
    log = KvEventLog()
    for words in (2, 3, 4):
        log.stored(np.arange(words * PAGE, dtype=np.int32), PAGE, KEY)
    batches = await taken(log, 2, 2)
    assert [batch.sequence_number for batch in batches] == [2, 3]
    assert [len(event.stored.blocks) for batch in batches for event in batch.events] == [1, 1]


async def test_a_subscriber_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "_BEHIND", 4)
    log = KvEventLog()
    stream = log.subscribe(0)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    for begin in range(10):
        log.stored(np.arange(begin * 100, begin * 100 + PAGE, dtype=np.int32), PAGE, KEY)
    assert (await waiting).sequence_number == 1
    assert [batch.sequence_number async for batch in stream] == [2, 3]


def test_a_page_is_gone_when_its_last_holder_lost_it() -> None:
    index = PageIndex()
    gone: list[bytes] = []
    index.on_gone = gone.extend
    one, two = (Holder(name, f"{name}:1", 1, storage=False) for name in ("one", "two"))
    pages = list(split_hashes(page_hashes(np.arange(8, dtype=np.int32), PAGE, KEY).tobytes()))
    index.add(one, pages)
    index.hint(two, pages[:1])
    index.remove(one, pages)
    assert gone == pages[1:]
    index.forget("two")
    assert gone == [pages[1], pages[0]]
