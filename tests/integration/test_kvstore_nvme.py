"""The NVMe tier in real processes, of token pages alone and with states: a multiple of DRAM,
kill -9 among writes, damage, a full disk."""

import re
import resource
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baton.v1 import kv_pb2 as pb

from .kvstore_process import (
    KvstoreProcess,
    View,
    healthy,
    kvstore,
    publishing,
    tell_turn,
    until,
    watching,
)
from .transfer_holder import PAGES_BETWEEN_STATES, hashes, page_content, page_hash
from .transfer_rig import HolderProcess, Reading, check_pages, holder, reading

pytestmark = pytest.mark.timeout(180)

PAGES = 64
TOKENS, STATES = 65536, 131072  # bytes of a page
ONE, TWO = (TOKENS,), (TOKENS, STATES)
# Of each cache group what fits capacity_mb 1.
DRAM = {ONE: (16,), TWO: (8, 4)}
GROUPS = pytest.mark.parametrize("sizes", [ONE, TWO], ids=["tokens", "tokens and states"])

Sizes = tuple[int, ...]
Name = tuple[int, int]  # group, and the page of tokens that it is, or that it stands after


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def store_on(path: Path, **settings: object) -> Iterator[tuple[KvstoreProcess, str]]:
    """A kvstore of 1 MiB DRAM over a disk tier in `path`, and where its metrics are."""
    metrics = f"127.0.0.1:{free_port()}"
    with kvstore(
        free_port(), capacity_mb=1, nvme_path=str(path), nvme_mb=16, metrics=metrics, **settings
    ) as store:
        yield store, metrics


def metric(address: str, name: str, tier: str = "") -> float:
    """The sum of a metric's samples, or of those of one tier; 0 when it has none."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    labels = f'tier="{tier}"' if tier else "[^}]*"
    samples = re.findall(rf"^{name}(?:{{{labels}}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, samples))


def published(sizes: Sizes) -> list[Name]:
    """What a worker has after a prompt of PAGES pages: those, and each snapshot."""
    states = range(PAGES_BETWEEN_STATES - 1, PAGES, PAGES_BETWEEN_STATES)
    return [(0, i) for i in range(PAGES)] + [(1, i) for i in states if len(sizes) > 1]


def identities(names: Iterable[Name]) -> dict[bytes, Name]:
    return {page_hash(1, i, group): (group, i) for group, i in names}


def rows(names: Iterable[Name]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(identities(names)), np.uint8).reshape(-1, 16)


@asynccontextmanager
async def offered(store: KvstoreProcess, peer: HolderProcess, sizes: Sizes) -> AsyncIterator[None]:
    """A worker publishes everything, and a turn has used it."""
    held = rows(published(sizes))
    async with publishing(store.address, peer.peer, lambda: held, page_bytes=sizes):
        await tell_turn(store.address, hashes(1, PAGES))
        yield


@asynccontextmanager
async def woken(store: KvstoreProcess, sizes: Sizes) -> AsyncIterator[None]:
    """A worker that has nothing says which cache it has, which opens the tier."""
    nobody = pb.Peer(name="empty", address="127.0.0.1:1", epoch=3)
    async with publishing(store.address, nobody, lambda: hashes(1, 0), page_bytes=sizes):
        yield


def holds(view: View, names: Iterable[Name]) -> Callable[[], bool]:
    """Exactly these."""
    wanted = set(identities(names))
    return lambda: view.pages.get("kvstore") == wanted


async def fill(store: KvstoreProcess, view: View, peer: HolderProcess, sizes: Sizes) -> None:
    """Until the kvstore holds everything."""
    async with offered(store, peer, sizes):
        await until(holds(view, published(sizes)))


async def pulled(mine: Reading, store: pb.Peer, first: int, count: int) -> int:
    """Pulls token pages [first, first + count) in pieces that fit DRAM; all that comes is right."""
    arrived = 0
    for start in range(first, first + count, 4):
        want = hashes(1, min(4, first + count - start), first=start)
        targets = np.arange(len(want), dtype=np.int32)
        mine.arena.pages[:] = 0xAA
        got = await mine.puller.pull(store, want, targets)
        check_pages(mine.arena, targets[: got.arrived], 1, first=start)
        arrived += got.arrived
    return arrived


async def pulled_state(mine: Reading, store: pb.Peer, index: int) -> int:
    """Pulls the state after token page `index`; what comes is right."""
    mine.arenas[1].pages[:] = 0xAA
    targets = np.zeros(1, np.int32)
    got = await mine.puller.pull(store, hashes(1, 1, index, group=1), targets, group=1)
    check_pages(mine.arenas[1], targets[: got.arrived], 2, first=index)
    return got.arrived


async def pulled_one(mine: Reading, store: pb.Peer, name: Name) -> int:
    group, index = name
    if group:
        return await pulled_state(mine, store, index)
    return await pulled(mine, store, index, 1)


async def pulled_all(mine: Reading, store: pb.Peer, sizes: Sizes) -> int:
    states = [await pulled_state(mine, store, i) for group, i in published(sizes) if group]
    return await pulled(mine, store, 0, PAGES) + sum(states)


@GROUPS
async def test_a_multiple_of_dram_is_served_from_the_disk_also_after_a_kill(
    tmp_path: Path, sizes: Sizes
) -> None:
    everything = len(published(sizes))
    with holder(pages=PAGES, page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer, sizes)
                    assert await pulled_all(mine, view.peers["kvstore"], sizes) == everything
                    kept = (PAGES, everything - PAGES)
                    tiers = ("nvme", "nvme_state")
                    for tier, count, in_dram in zip(tiers, kept, DRAM[sizes], strict=False):
                        restored = metric(metrics, "baton_tier_restored_pages_total", tier)
                        assert restored >= count - in_dram
                    assert metric(metrics, "baton_tier_dropped_pages_total") == 0
                    in_both = everything + sum(DRAM[sizes])
                    await until(lambda: metric(metrics, "baton_tier_pages") >= in_both)
                store.kill()
            # Its next life has it all, before any worker has any of it.
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view, woken(store, sizes):
                    await until(holds(view, published(sizes)))
                    assert await pulled_all(mine, view.peers["kvstore"], sizes) == everything
                    assert metric(metrics, "baton_tier_dropped_pages_total") == 0


def held_at_least(view: View, pages: int) -> Callable[[], bool]:
    return lambda: len(view.pages.get("kvstore", ())) > pages


@GROUPS
async def test_killed_among_writes_it_serves_no_bad_page(tmp_path: Path, sizes: Sizes) -> None:
    """Lives that end at a different moment of their writing each, over the same disk."""
    served = [0, 0]
    names = identities(published(sizes))
    with holder(pages=PAGES, page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            for life in range(4):
                with store_on(tmp_path, in_flight_mb=1) as (store, _):
                    await healthy(store.address)
                    async with watching(store.address) as view, offered(store, peer, sizes):
                        await until(held_at_least(view, 2 + 13 * life))
                        known = sorted(names[page] for page in view.pages["kvstore"])
                        # Bytes are compared in there, whatever arrives.
                        for name in known[:: max(1, len(known) // 6)] + known[-1:]:
                            served[name[0]] += await pulled_one(mine, view.peers["kvstore"], name)
                        store.kill()
    assert all(served[: len(sizes)])


@pytest.mark.parametrize(
    ("sizes", "victim"), [(ONE, (0, 20)), (TWO, (0, 20)), (TWO, (1, 21))], ids=str
)
async def test_a_damaged_page_is_dropped_and_counted_and_its_neighbours_served(
    tmp_path: Path, sizes: Sizes, victim: Name
) -> None:
    group, index = victim
    with holder(pages=PAGES, page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            with store_on(tmp_path) as (store, _):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer, sizes)
            data = tmp_path / ("pages-1.data" if group else "pages.data")
            raw = bytearray(data.read_bytes())
            at = raw.find(page_content(1 + group, index, 4096).tobytes())
            assert at >= 0
            assert at % sizes[group] == 0
            raw[at + 30_000] ^= 1
            data.write_bytes(raw)
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view, woken(store, sizes):
                    await until(holds(view, published(sizes)))
                    kv = view.peers["kvstore"]
                    others = [name for name in published(sizes) if name != victim]
                    near = [name for name in others if 0 < abs(name[1] - index) < 4]
                    for name in near[::2]:
                        assert await pulled_one(mine, kv, name) == 1
                    assert await pulled_one(mine, kv, victim) == 0
                    await until(holds(view, others))
                    for name in near:
                        assert await pulled_one(mine, kv, name) == 1
                    assert metric(metrics, "baton_tier_dropped_pages_total") == 1


@GROUPS
async def test_a_file_that_shrinks_under_it_costs_its_pages_only(
    tmp_path: Path, sizes: Sizes
) -> None:
    files = ("pages.data", "pages-1.data")
    left = 20  # pages of each file
    with holder(pages=PAGES, page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            with store_on(tmp_path) as (store, _):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer, sizes)
                    for file, page_bytes in zip(files, sizes, strict=False):
                        with (tmp_path / file).open("r+b") as data:
                            data.truncate(left * page_bytes)
                    got = [0] * len(sizes)
                    for name in published(sizes):
                        got[name[0]] += await pulled_one(mine, view.peers["kvstore"], name)
                    counts = PAGES, PAGES // PAGES_BETWEEN_STATES
                    for came, count in zip(got, counts, strict=False):
                        assert left <= came < count
                    await healthy(store.address)


@GROUPS
async def test_a_full_disk_is_counted_and_the_service_lives(tmp_path: Path, sizes: Sizes) -> None:
    # The limit on a file's size stands in for the disk's: posix_fallocate meets it the same way.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    names = identities(published(sizes))
    with holder(pages=PAGES, page_bytes=sizes) as peer:
        async with reading(page_bytes=sizes) as mine:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            try:
                context = store_on(tmp_path)
                store, metrics = context.__enter__()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            try:
                await healthy(store.address)
                async with watching(store.address) as view, offered(store, peer, sizes):
                    await until(
                        lambda: (
                            metric(metrics, "baton_disk_refusals_total") > 0
                            and held_at_least(view, sum(DRAM[sizes]))()
                        )
                    )
                    # It goes on with what it has room for: pages come and go, and are right.
                    served = [0] * len(sizes)
                    while not all(served):
                        for group in range(len(sizes)):
                            theirs = (names[page] for page in view.pages["kvstore"])
                            name = max(name for name in theirs if name[0] == group)
                            served[group] += await pulled_one(mine, view.peers["kvstore"], name)
                    await healthy(store.address)
            finally:
                context.__exit__(None, None, None)


async def test_files_of_another_cache_are_erased_with_all_their_groups(tmp_path: Path) -> None:
    with holder(pages=PAGES, page_bytes=TWO) as peer:
        with store_on(tmp_path) as (store, _):
            await healthy(store.address)
            async with watching(store.address) as view:
                await fill(store, view, peer, TWO)
    assert len(list(tmp_path.iterdir())) == 4
    with store_on(tmp_path) as (store, _):
        await healthy(store.address)
        async with watching(store.address) as view, woken(store, ONE):
            await until(lambda: len(list(tmp_path.iterdir())) == 2)
            assert not view.pages.get("kvstore")
            assert (tmp_path / "pages.data").stat().st_size == 0
