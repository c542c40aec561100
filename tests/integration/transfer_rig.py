"""Starts holder processes and makes readers for the transfer tests."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baton.v1 import kv_pb2 as pb
from baton_transfer import (
    CacheReader,
    PageArena,
    Puller,
    PullSettings,
    Transport,
    configure_ucx,
    new_epoch,
)

from .transfer_holder import identity, page_content

START_S = 30.0


@dataclass
class HolderProcess:
    process: subprocess.Popen[str]
    peer: pb.Peer

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@contextmanager
def holder(*, inside: Sequence[str] = (), **options: object) -> Iterator[HolderProcess]:
    """A holder process with these options (see transfer_holder), ended with the block.

    `inside`: a command that runs it, such as `ip netns exec NAME`.
    """
    script = Path(__file__).with_name("transfer_holder.py")
    given = {"page_bytes": 65536, "pages": 64, "seed": 1, **options}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UCX_")}
    process = subprocess.Popen(
        [*inside, sys.executable, str(script), json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if ready else ""
        assert line, f"the holder did not start: exit code {process.poll()}"
        yield HolderProcess(process, pb.Peer(**json.loads(line)))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass
class Reading:
    arenas: list[PageArena]
    reader: CacheReader
    puller: Puller

    @property
    def arena(self) -> PageArena:
        """Of the first cache group."""
        return self.arenas[0]


@asynccontextmanager
async def reading(
    *,
    page_bytes: int | Sequence[int] = 65536,
    pages: int = 64,
    fingerprint: str = "model",
    settings: PullSettings | None = None,
    floor_bytes_per_s: float = 50e6,
) -> AsyncIterator[Reading]:
    configure_ucx(Transport.LOCAL)
    sizes = [page_bytes] if isinstance(page_bytes, int) else page_bytes
    cache = identity(page_bytes, fingerprint)
    arenas = [PageArena.allocate(page_bytes=size, num_pages=pages) for size in sizes]
    reader = CacheReader("reader", cache.groups, arenas, floor_bytes_per_s=floor_bytes_per_s)
    me = pb.Peer(name="reader", address="127.0.0.1:1", epoch=new_epoch())
    puller = Puller(
        me,
        cache,
        reader,
        settings=settings,
    )
    try:
        yield Reading(arenas, reader, puller)
    finally:
        await puller.close()
        reader.close()


def check_pages(arena: PageArena, targets: np.ndarray, seed: int, first: int = 0) -> None:
    """Every target page holds what its holder sealed."""
    for i, page in enumerate(targets):
        wanted = page_content(seed, first + i, arena.page_bytes)
        assert np.array_equal(arena.pages[page], wanted), f"page {i}"
