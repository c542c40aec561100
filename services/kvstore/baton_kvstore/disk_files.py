"""The files of the disk tier: for each cache group one of pages and one of records."""

import errno
import itertools
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import xxhash

from baton.v1.kv_pb2 import CacheIdentity
from baton_kvstore.disk_index import DiskIndex, DiskRecord
from baton_kvstore.groups import shares
from baton_kvstore.pool import Move
from baton_transfer import PageArena, PageFile, PageFileError

log = logging.getLogger("baton.kvstore")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class DiskFiles:
    """The two views of one cache group's page file, and its index. Every method blocks."""

    index: DiskIndex
    writer: PageFile
    reader: PageFile
    arena: PageArena
    most_slots: int

    @classmethod
    def open(
        cls, directory: Path, identity: CacheIdentity, group: int, arena: PageArena, most_slots: int
    ) -> "DiskFiles":
        """Raises OSError, ForeignFileError and AgentError."""
        data, records = _paths(directory, group)
        with ExitStack() as opened:
            writer = PageFile(data, arena.page_bytes)
            opened.callback(writer.close)
            reader = PageFile(data, arena.page_bytes, queue=writer.queue)
            opened.callback(reader.close)
            index, ours = DiskIndex.open(records, identity, min(writer.slots, most_slots))
            opened.callback(index.close)
            writer.truncate(most_slots if ours else 0)
            opened.pop_all()
        return cls(index, writer, reader, arena, most_slots)

    def grow(self, slots: int) -> int:
        """Room for up to so many pages, as far as the disk has it; how many there is room for.

        OSError when there is none for a single one more.
        """
        have = self.writer.slots
        more = min(slots, self.most_slots) - have
        while more > 0:
            try:
                self.writer.reserve(have + more)
                break
            except OSError as error:
                if error.errno not in FULL or more == 1:
                    raise
                more //= 2
        return min(self.writer.slots, self.most_slots)

    def erase(self, slots: Sequence[int]) -> None:
        """Their pages are not held any more. OSError."""
        for slot in slots:
            self.index.erase(slot)

    def save(self, moves: Sequence[Move], records: Sequence[DiskRecord]) -> None:
        """OSError: none of the pages is saved."""
        self.erase([move.slot for move in moves])
        pages = self.arena.pages
        self.writer.write([move.slot for move in moves], [pages[move.place] for move in moves])
        for record in records:
            self.index.write(record)

    def load(self, moves: Sequence[Move]) -> list[bool]:
        """Which pages are whole and in their places; the others' places hold anything."""
        there = self.reader.slots
        if any(move.slot >= there for move in moves):
            return [move.slot < there and self.load([move])[0] for move in moves]
        try:
            pages = self.reader.read([move.slot for move in moves])
        except PageFileError as error:
            log.warning("%s", error)
            return [False] * len(moves)
        whole = []
        for move, page in zip(moves, pages, strict=True):
            whole.append(xxhash.xxh3_64_intdigest(page.data) == move.checksum)
            if whole[-1]:
                self.arena.pages[move.place] = page
        return whole

    def close(self) -> None:
        """Idempotent."""
        self.writer.close()
        self.reader.close()
        self.index.close()


def open_files(
    directory: Path, identity: CacheIdentity, arenas: Sequence[PageArena], nvme_mb: int
) -> list[DiskFiles]:
    """Files for each group; those of another cache are erased. Blocks.

    Raises ValueError when there is not a page's room for each group, OSError, ForeignFileError and
    AgentError.
    """
    counts = shares(identity, nvme_mb << 20)
    if not all(counts):
        sizes = ", ".join(f"{group.name} {group.page_bytes}" for group in identity.groups)
        raise ValueError(
            f"nvme_mb is {nvme_mb}, which does not hold a page of every cache group "
            f"(bytes of a page: {sizes}); raise it, or unset nvme_path"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        files = []
        for group, (arena, count) in enumerate(zip(arenas, counts, strict=True)):
            files.append(DiskFiles.open(directory, identity, group, arena, count))
            opened.callback(files[-1].close)
        _erase_groups_from(directory, len(arenas), identity)
        opened.pop_all()
    return files


def _paths(directory: Path, group: int) -> tuple[Path, Path]:
    # By number: names of groups come from workers, and need not be names of files.
    stem = f"pages-{group}" if group else "pages"
    return directory / f"{stem}.data", directory / f"{stem}.index"


def _erase_groups_from(directory: Path, first: int, identity: CacheIdentity) -> None:
    """A cache of more groups has left files here, which nobody would ever erase."""
    for group in itertools.count(first):
        data, records = _paths(directory, group)
        if not records.exists():
            return
        DiskIndex.open(records, identity, 0)[0].close()  # refuses what is not a kvstore's
        data.unlink(missing_ok=True)
        records.unlink()
