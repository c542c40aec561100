"""Ranks that are processes of their own, read by ranks of another number: real NIXL agents."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedCache, ExportedRank
from baton_transfer import (
    CacheReader,
    Cut,
    PageArena,
    ReadFailure,
    ReadOutcome,
    Transport,
    configure_ucx,
    staged,
)

from .transfer_rank import BLOCKS, filled, group_identity, rank_page

PAGES = 80
STAGING = 1 << 20  # holds a few pages at a time
GROUPS = list(BLOCKS)
CUTS = [Cut.of(group_identity(name)) for name in GROUPS]


@dataclass
class Ranks:
    """Processes that hold the pages of one worker between them."""

    processes: list[subprocess.Popen[str]]
    memory: bytes

    def sums(self, group: int, pages: Sequence[int]) -> NDArray[np.uint64]:
        """As a lease brings them, computed from what the pages should be."""
        count = len(self.processes)
        rows = [
            filled(GROUPS[group], pages, rank, count).checksums(range(len(pages)))
            for rank in CUTS[group].sources(count)
        ]
        return np.concatenate(rows)


@contextmanager
def holding(ranks: int, *, corrupt: dict[int, list[int]] | None = None) -> Iterator[Ranks]:
    """corrupt: by rank, pages of the first group that are not what they should be."""
    script = Path(__file__).with_name("transfer_rank.py")
    processes = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UCX_")}
    try:
        for rank in range(ranks):
            spoilt = (corrupt or {}).get(rank, [])
            given = {"pages": PAGES, "rank": rank, "ranks": ranks, "corrupt": spoilt}
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(script), json.dumps({**given, "transport": "local"})],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        exported = []
        for process in processes:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 60)
            line = process.stdout.readline() if ready else ""
            assert line, f"a rank did not start: exit code {process.poll()}"
            exported.append(ExportedRank.FromString(bytes.fromhex(line)))
        yield Ranks(processes, ExportedCache(ranks=exported).SerializeToString())
    finally:
        for process in processes:
            with process:
                assert process.stdin is not None
                process.stdin.close()


@pytest.fixture(autouse=True)
def small_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "STAGING_BYTES", STAGING)


@contextmanager
def reading(ranks: int, rank: int) -> Iterator[tuple[CacheReader, list[PageArena]]]:
    configure_ucx(Transport.LOCAL)
    arenas = [PageArena.allocate(page_bytes=cut.page_bytes(ranks), num_pages=PAGES) for cut in CUTS]
    reader = CacheReader(
        "reader", [group_identity(name) for name in GROUPS], arenas, rank=rank, ranks=ranks
    )
    try:
        yield reader, arenas
    finally:
        reader.close()


def submit(
    reader: CacheReader, theirs: Ranks, group: int, pages: Sequence[int], targets: Sequence[int]
) -> Future[ReadOutcome]:
    slots = [PAGES - 1 - page for page in pages]
    return reader.submit(theirs.memory, group, slots, targets, theirs.sums(group, pages))


def check(arena: PageArena, group: int, pages: Sequence[int], rank: int, ranks: int) -> None:
    """Page i of these lies at target i."""
    for target, page in enumerate(pages):
        wanted = rank_page(GROUPS[group], page, rank, ranks)
        assert np.array_equal(arena.pages[target], wanted), f"page {page}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(2, 4), (2, 1), *(pytest.param(*s, marks=pytest.mark.slow) for s in ((1, 2), (4, 2), (2, 2)))],
)
def test_every_rank_gets_its_heads_of_every_group(theirs: int, ours: int) -> None:
    with holding(theirs) as ranks:
        for rank in range(ours):
            with reading(ours, rank) as (reader, arenas):
                order = np.random.default_rng(rank).permutation(PAGES).tolist()
                asked = [order, order[:5]]
                reads = [
                    submit(reader, ranks, group, pages, range(len(pages)))
                    for group, pages in enumerate(asked)
                ]
                for group, (pages, read) in enumerate(zip(asked, reads, strict=True)):
                    outcome = read.result(60)
                    assert (outcome.arrived, outcome.failure) == (len(pages), None), outcome
                    assert outcome.verified
                    check(arenas[group], group, pages, rank, ours)
                    assert not arenas[group].pages[len(pages) :].any()


@pytest.mark.parametrize("ours", [1, 2])
def test_a_page_that_is_wrong_on_one_rank_has_not_arrived(ours: int) -> None:
    with holding(2, corrupt={1: [7, 70]}) as ranks, reading(ours, ours - 1) as (reader, arenas):
        outcome = submit(reader, ranks, 0, range(PAGES), range(PAGES)).result(60)
        assert (outcome.arrived, outcome.failure) == (7, ReadFailure.CHECKSUM), outcome
        check(arenas[0], 0, range(7), ours - 1, ours)
        rest = submit(reader, ranks, 0, range(8, 70), range(62)).result(60)
        assert (rest.arrived, rest.failure) == (62, None), "the others are read as before"
        check(arenas[0], 0, range(8, 70), ours - 1, ours)


async def test_a_rank_that_is_killed_under_a_read_leaves_a_whole_prefix() -> None:
    with holding(2) as ranks, reading(1, 0) as (reader, arenas):
        future = submit(reader, ranks, 0, range(PAGES), range(PAGES))
        while not arenas[0].pages[0].any() and not future.done():
            await asyncio.sleep(0)
        ranks.processes[1].send_signal(signal.SIGKILL)
        outcome = await asyncio.wait_for(asyncio.wrap_future(future), 60)
        if outcome.failure is None:  # the copy was faster than the signal
            assert outcome.arrived == PAGES
        else:
            assert outcome.failure is ReadFailure.DISCONNECTED
        check(arenas[0], 0, range(outcome.arrived), 0, 1)
        assert not arenas[0].pages[outcome.arrived :].any(), "what was not proved is not written"
        ranks.processes[1].wait()
        again = await asyncio.to_thread(submit(reader, ranks, 0, [1], [0]).result, 60)
        assert again.failure is not None and again.arrived == 0
        # A holder that starts again has other memory; what was made to read this one ends.
        reader.forget(ranks.memory)


def test_a_closed_reader_ends_its_reads() -> None:
    with holding(2) as ranks, reading(1, 0) as (reader, arenas):
        reads = [submit(reader, ranks, 0, range(PAGES), range(PAGES)) for _ in range(3)]
        reader.close()
        assert reads[-1].result(10).failure is ReadFailure.CLOSED
        for read in reads:
            assert read.done(), "whoever closes a reader knows that nothing writes any more"
        arenas[0].pages[:] = 0xAB
        late = submit(reader, ranks, 0, [1], [0]).result(10)
        assert late.failure is ReadFailure.CLOSED
        assert (arenas[0].pages == 0xAB).all()


def test_memory_that_does_not_fit_is_refused_without_a_read() -> None:
    with holding(1) as ranks, reading(1, 0) as (reader, _):
        memory = ExportedCache.FromString(ranks.memory)
        three = ExportedCache(ranks=[memory.ranks[0]] * 3).SerializeToString()
        two = ExportedCache(ranks=[memory.ranks[0]] * 2).SerializeToString()
        one_group = ExportedCache(ranks=[ExportedRank(groups=memory.ranks[0].groups[:1])])
        cases = [
            ("4 heads cannot be shared evenly by 3 ranks", three, 0, None),
            ("bytes", two, 0, None),
            ("no cache group 1", one_group.SerializeToString(), 1, None),
            ("3 checksums for 1 pages of 1 ranks", ranks.memory, 0, [1, 2, 3]),
        ]
        for words, data, group, sums in cases:
            outcome = reader.submit(data, group, [0], [0], sums).result(30)
            assert outcome.failure is ReadFailure.UNREADABLE, outcome
            assert words in outcome.detail, outcome
        with pytest.raises(ValueError, match="outside the arena"):
            reader.submit(ranks.memory, 0, [0], [PAGES]).result(30)
