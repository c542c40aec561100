"""Pages read from ranks of another number, against pages read as they lie, in the same run.

python bench/handover/layouts.py [--rounds N]

The holder's ranks are processes; the reader is one rank of so many, in this one. Every read
verifies checksums. "Sorted" reads whole pages of the ranks that have its heads into staging and
sorts them; its figure counts the bytes of the reader's own pages, like the other's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np

from baton.v1 import kv_pb2 as pb
from baton_transfer import CacheReader, Cut, Exporter, PageArena, configure_ucx, new_epoch

PAGES = 64
# Keys and values of 8 heads of 128 elements in bf16, 64 tokens, 16 layers: 4 MB for one rank.
GROUP = pb.CacheGroupIdentity(
    name="full",
    dtype="bfloat16",
    layers=16,
    page_bytes=16 * 64 * 2 * 8 * 256,
    blocks=[pb.HeadBlock(heads=8, head_bytes=256)] * 2,
)
CUT = Cut.of(GROUP)


def rank_arena(ranks: int) -> PageArena:
    arena = PageArena.allocate(page_bytes=CUT.page_bytes(ranks), num_pages=PAGES)
    arena.pages[:] = np.arange(PAGES, dtype=np.uint8)[:, None]
    return arena


def hold(rank: int, ranks: int) -> None:
    """One rank of the holder: serves until its stdin ends."""
    configure_ucx()
    exporter = Exporter("bench-ranks", new_epoch(), [rank_arena(ranks)], rank)
    print(exporter.exported.SerializeToString().hex(), flush=True)
    sys.stdin.read()
    exporter.close()


def measure(theirs: int, ours: int, rounds: int) -> float:
    """Median bytes a second of our pages."""
    holders = [
        subprocess.Popen(
            [sys.executable, __file__, "--hold", json.dumps([rank, theirs])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(theirs)
    ]
    arena = rank_arena(ours)
    reader = CacheReader("bench", [GROUP], [arena], rank=0, ranks=ours)
    try:
        lines = [holder.stdout.readline() for holder in holders if holder.stdout is not None]
        exported = [pb.ExportedRank.FromString(bytes.fromhex(line)) for line in lines]
        memory = pb.ExportedCache(ranks=exported).SerializeToString()
        order = np.random.default_rng(1).permutation(PAGES).astype(np.int32)
        sums = np.tile(rank_arena(theirs).checksums(order), len(CUT.sources(theirs)))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            outcome = reader.submit(memory, 0, order, np.arange(PAGES), sums).result()
            seconds.append(time.perf_counter() - started)
            if outcome.failure is not None or outcome.arrived != PAGES:
                raise RuntimeError(f"read failed: {outcome}")
        return PAGES * arena.page_bytes / median(seconds[1:])
    finally:
        reader.close()
        for holder in holders:
            with holder:
                if holder.stdin is not None:
                    holder.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(*json.loads(options.hold))
        return
    configure_ucx()
    whole = measure(1, 1, options.rounds)
    print(f"1 to 1 ranks, as they lie: {whole / 1e9:5.2f} GB/s")
    for theirs, ours in ((2, 1), (4, 1), (1, 2), (4, 2)):
        rate = measure(theirs, ours, options.rounds)
        print(f"{theirs} to {ours} ranks, sorted:     {rate / 1e9:5.2f} GB/s, {rate / whole:4.0%}")
    print(f"load while this ran: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
