"""The NVMe tier in real processes: four times DRAM, kill -9 among writes, damage, a full disk."""

import re
import resource
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from baton.v1 import kv_pb2 as pb

from .kvstore_process import KvstoreProcess, View, healthy, kvstore, publishing, until, watching
from .transfer_holder import hashes, page_hash
from .transfer_rig import HolderProcess, Reading, check_pages, holder, reading

pytestmark = pytest.mark.timeout(180)

DRAM = 16  # pages of 64 KiB: capacity_mb 1
PAGES = 4 * DRAM


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


def metric(address: str, name: str) -> float:
    """The sum of a metric's samples; 0 when it has none."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def names(count: int, first: int = 0) -> set[bytes]:
    return {page_hash(1, i) for i in range(first, first + count)}


async def fill(store: KvstoreProcess, view: View, peer: HolderProcess, pages: int = PAGES) -> None:
    """Publishes everything until the kvstore holds it."""
    async with publishing(store.address, peer.peer, lambda: hashes(1, pages)):
        await until(lambda: view.pages.get("kvstore") == names(pages))


async def pulled_pages(mine: Reading, store: pb.Peer, first: int, count: int) -> int:
    """Pulls pages [first, first + count) in pieces that fit DRAM; all that comes is right."""
    arrived = 0
    for start in range(first, first + count, DRAM // 2):
        want = hashes(1, min(DRAM // 2, first + count - start), first=start)
        targets = np.arange(len(want), dtype=np.int32)
        mine.arena.pages[:] = 0xAA
        got = await mine.puller.pull(store, want, targets)
        check_pages(mine.arena, targets[: got.arrived], 1, first=start)
        arrived += got.arrived
    return arrived


async def test_four_times_dram_is_served_from_the_disk_also_after_a_kill(tmp_path: Path) -> None:
    with holder(pages=PAGES) as peer:
        async with reading() as mine:
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer)
                    assert await pulled_pages(mine, view.peers["kvstore"], 0, PAGES) == PAGES
                    assert metric(metrics, "baton_tier_restored_pages_total") >= PAGES - DRAM
                    assert metric(metrics, "baton_tier_dropped_pages_total") == 0
                    await until(lambda: metric(metrics, "baton_tier_pages") >= PAGES + DRAM)
                store.kill()
            # Its next life has it all, before any worker has any of it.
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view:
                    nobody = pb.Peer(name="empty", address="127.0.0.1:1", epoch=3)
                    async with publishing(store.address, nobody, lambda: hashes(1, 0)):
                        await until(lambda: view.pages.get("kvstore") == names(PAGES))
                        assert await pulled_pages(mine, view.peers["kvstore"], 0, PAGES) == PAGES
                    assert metric(metrics, "baton_tier_dropped_pages_total") == 0


def held_at_least(view: View, pages: int) -> Callable[[], bool]:
    return lambda: len(view.pages.get("kvstore", ())) > pages


async def test_killed_among_writes_it_serves_no_bad_page(tmp_path: Path) -> None:
    """Lives that end at a different moment of their writing each, over the same disk."""
    served = 0
    with holder(pages=PAGES) as peer:
        async with reading() as mine:
            for life in range(4):
                with store_on(tmp_path, in_flight_mb=1) as (store, _):
                    await healthy(store.address)
                    async with watching(store.address) as view:
                        async with publishing(store.address, peer.peer, lambda: hashes(1, PAGES)):
                            await until(held_at_least(view, 2 + 13 * life))
                            known = sorted(
                                int.from_bytes(page[8:], "little") for page in view.pages["kvstore"]
                            )
                            # Bytes are compared in there, whatever arrives.
                            for first in known[:: max(1, len(known) // 4)]:
                                served += await pulled_pages(mine, view.peers["kvstore"], first, 1)
                            store.kill()
    assert served


async def test_a_damaged_page_is_dropped_and_counted_and_its_neighbours_served(
    tmp_path: Path,
) -> None:
    with holder(pages=PAGES) as peer:
        async with reading() as mine:
            with store_on(tmp_path) as (store, _):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer)
            data = tmp_path / "pages.data"
            raw = bytearray(data.read_bytes())
            content = np.random.default_rng([1, 20]).integers(0, 256, 4096, np.uint8).tobytes()
            at = raw.find(content)
            assert at >= 0
            assert at % 65536 == 0
            raw[at + 30_000] ^= 1
            data.write_bytes(raw)
            with store_on(tmp_path) as (store, metrics):
                await healthy(store.address)
                async with watching(store.address) as view:
                    nobody = pb.Peer(name="empty", address="127.0.0.1:1", epoch=3)
                    async with publishing(store.address, nobody, lambda: hashes(1, 0)):
                        await until(lambda: view.pages.get("kvstore") == names(PAGES))
                        kv = view.peers["kvstore"]
                        assert await pulled_pages(mine, kv, 16, 4) == 4
                        assert await pulled_pages(mine, kv, 20, 1) == 0
                        await until(
                            lambda: view.pages["kvstore"] == names(PAGES) - {page_hash(1, 20)}
                        )
                        assert await pulled_pages(mine, kv, 21, 8) == 8
                        assert metric(metrics, "baton_tier_dropped_pages_total") == 1


async def test_a_file_that_shrinks_under_it_costs_its_pages_only(tmp_path: Path) -> None:
    with holder(pages=PAGES) as peer:
        async with reading() as mine:
            with store_on(tmp_path) as (store, _):
                await healthy(store.address)
                async with watching(store.address) as view:
                    await fill(store, view, peer)
                    with (tmp_path / "pages.data").open("r+b") as data:
                        data.truncate(20 * 65536)
                    got = [
                        await pulled_pages(mine, view.peers["kvstore"], i, 1) for i in range(PAGES)
                    ]
                    assert 20 <= sum(got) < PAGES
                    await healthy(store.address)


async def test_a_full_disk_is_counted_and_the_service_lives(tmp_path: Path) -> None:
    # The limit on a file's size stands in for the disk's: posix_fallocate meets it the same way.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with holder(pages=PAGES) as peer:
        async with reading() as mine:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            try:
                context = store_on(tmp_path)
                store, metrics = context.__enter__()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            try:
                await healthy(store.address)
                async with watching(store.address) as view:
                    async with publishing(store.address, peer.peer, lambda: hashes(1, PAGES)):
                        await until(
                            lambda: (
                                metric(metrics, "baton_disk_refusals_total") > 0
                                and len(view.pages.get("kvstore", ())) > DRAM
                            )
                        )
                        # It goes on with what it has room for: pages come and go, and are right.
                        served = 0
                        while not served:
                            page = max(view.pages["kvstore"])
                            first = int.from_bytes(page[8:], "little")
                            served = await pulled_pages(mine, view.peers["kvstore"], first, 1)
                        await healthy(store.address)
            finally:
                context.__exit__(None, None, None)
