"""A reader here, a holder behind a cable: one scene per run, `python partition_scenes.py SCENE`.

A process of its own, because UCX looks at devices and routes once in a process's life.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from integration.transfer_holder import hashes
from integration.transfer_rig import (
    HolderProcess,
    Reading,
    check_pages,
    holder,
    reading,
)

from baton_transfer import PullFailure, ReadFailure
from chaos.network import Namespace, namespace

PAGE, PAGES = 1 << 20, 256
SKIPPED = 77
HOLDER_NOTICES_S = 6.0  # UCX_TCP_USER_TIMEOUT is 5 s


async def cut_under_a_read(apart: Namespace) -> None:
    """The read ends by its deadline; when the cable is mended its pages stay as they are. The
    holder has noticed the cut itself by then, and is read again."""
    await _cut_under_a_read(apart, HOLDER_NOTICES_S)


async def cut_briefly_under_a_read(apart: Namespace) -> None:
    """Mended after the reader's fence and before the holder has noticed, which UCX's TCP may not
    survive (docs/handover.md): the reader does, and reads from its next life."""
    await _cut_under_a_read(apart, 0.0)


async def _cut_under_a_read(apart: Namespace, mended_after_s: float) -> None:
    options = {"transport": "tcp", "listen": f"{apart.address}:7300"}
    with holder(inside=apart.inside, page_bytes=PAGE, pages=PAGES, **options) as peer:
        async with reading(page_bytes=PAGE, pages=PAGES, floor_bytes_per_s=500e6) as mine:
            targets = np.arange(PAGES, dtype=np.int32)
            warm = await mine.puller.pull(peer.peer, hashes(1, 1), targets[:1])
            assert warm.failure is None, warm
            mine.arena.pages[:] = 0
            pull = asyncio.create_task(mine.puller.pull(peer.peer, hashes(1, PAGES), targets))
            while not mine.arena.pages[8].any() and not pull.done():
                await asyncio.sleep(0)
            apart.cut()
            pulled = await asyncio.wait_for(pull, 30)
            assert pulled.failure is not None, "the copy was faster than the cut"
            assert pulled.read_failure in (ReadFailure.DEADLINE, ReadFailure.DISCONNECTED), pulled
            check_pages(mine.arena, targets[: pulled.arrived], 1)
            mine.arena.pages[:] = 0xAB
            await asyncio.sleep(mended_after_s)
            apart.mend()
            await asyncio.sleep(2.0)
            assert (mine.arena.pages == 0xAB).all()
            if mended_after_s or peer.process.poll() is None:
                await _reads_again(mine, peer, targets)
                return
            with holder(inside=apart.inside, page_bytes=PAGE, pages=PAGES, **options) as next_life:
                await _reads_again(mine, next_life, targets)


async def cut_between_pulls(apart: Namespace) -> None:
    options = {"transport": "tcp", "listen": f"{apart.address}:7300"}
    with holder(inside=apart.inside, **options) as peer:
        async with reading() as mine:
            targets = np.arange(8, dtype=np.int32)
            assert (await mine.puller.pull(peer.peer, hashes(1, 8), targets)).failure is None
            apart.cut()
            gone = await asyncio.wait_for(mine.puller.pull(peer.peer, hashes(1, 8), targets), 30)
            assert gone.failure is PullFailure.UNREACHABLE, gone
            apart.mend()
            await _reads_again(mine, peer, targets)


async def slow(apart: Namespace) -> None:
    if reason := apart.delay(20):
        print(f"the kernel delays nothing: {reason}")
        sys.exit(SKIPPED)
    options = {"transport": "tcp", "listen": f"{apart.address}:7300"}
    with holder(inside=apart.inside, **options) as peer:
        async with reading() as mine:
            targets = np.arange(64, dtype=np.int32)
            pulled = await mine.puller.pull(peer.peer, hashes(1, 64), targets)
            assert (pulled.arrived, pulled.failure) == (64, None), pulled
            check_pages(mine.arena, targets, 1)


async def _reads_again(mine: Reading, peer: HolderProcess, targets: np.ndarray) -> None:
    """Within some tries: TCP itself takes a while to notice that the cable is whole."""
    pulled = None
    for _ in range(20):
        pulled = await mine.puller.pull(peer.peer, hashes(1, len(targets)), targets)
        if pulled.failure is None:
            check_pages(mine.arena, targets, 1)
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"not read again: {pulled}")


def main() -> None:
    scene = {
        "under": cut_under_a_read,
        "briefly": cut_briefly_under_a_read,
        "between": cut_between_pulls,
        "slow": slow,
    }[sys.argv[1]]
    with namespace() as there:
        # Another device may have a route there, and none back.
        os.environ.update(UCX_TLS="tcp", UCX_NET_DEVICES=there.cable)
        asyncio.run(scene(there))


if __name__ == "__main__":
    main()
