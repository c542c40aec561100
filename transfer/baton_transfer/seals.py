"""A table of sealed pages, by which a reader on the same host finds a page without asking for it.

A row is an identity, the page where it lies, and its seal: the checksum of what was sealed there,
masked with the identity. What is read of the page proves itself by the checksum, as under a lease.
A row that is read while it is written may have the identity of one page and the rest of another;
unmasked by that identity, the seal is no checksum of anything. So neither end locks
(self-verifying reads: Mitchell, Geng, Li, "Using One-Sided RDMA Reads to Build a Fast,
CPU-Efficient Key-Value Store", USENIX ATC 2013).

The table is a hint. A page that left its place since, and a row that others have crowded out, cost
a read in vain or none; then the page is leased.
"""

import mmap
import os
import secrets
import struct
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedSeals
from baton_transfer.arena import Pages

# An identity's halves, the page, the seal. Identities are keyed hashes, so each half is as good as
# random: modulo the rows, each says one of the two that the identity may be in.
_ROW = struct.Struct("<QQQQ")
_HALVES = struct.Struct("<QQ")
_EMPTY = bytes(_ROW.size)
# With rows to spare, both are taken for two or three pages of a hundred.
_ROWS_A_PAGE = 4
# More are leased: a trip to the holder is then little beside the read.
_MOST_AT_ONCE = 32


class SealTable:
    """The holder's end: rows of one arena's sealed pages. Thread-safe."""

    def __init__(self, num_pages: int) -> None:
        """`num_pages`: of the arena whose pages it lists."""
        self._count = _ROWS_A_PAGE * num_pages
        self._name = f"baton-seals-{secrets.token_hex(16)}"
        # It has no name in the file system, so it ends with us, however we end.
        self._file = os.memfd_create(self._name)
        os.ftruncate(self._file, self._count * _ROW.size)
        self._rows = mmap.mmap(self._file, 0)
        self._row_of_page = [-1] * num_pages
        self._page_in_row = [-1] * self._count
        self._lock = threading.Lock()

    @property
    def exported(self) -> ExportedSeals:
        """What a reader needs to read it."""
        return ExportedSeals(pid=os.getpid(), file=self._file, name=self._name, rows=self._count)

    def put(
        self, identities: NDArray[np.uint8], pages: Pages, checksums: NDArray[np.uint64]
    ) -> None:
        """Lists pages: identities uint8 [n, 16], pages int32 [n], checksums uint64 [n].

        The pages must not have changed since before their checksums were taken: hold a lease on
        them, or what is bound to an identity could be another page's bytes.
        """
        halves = _HALVES.iter_unpack(identities.tobytes())
        listed = zip(halves, pages.tolist(), checksums.tolist(), strict=True)
        with self._lock:
            for (first, second), page, checksum in listed:
                self._take_row(page, first % self._count, second % self._count)
                seal = checksum ^ first
                self._write(self._row_of_page[page], _ROW.pack(first, second, page, seal))

    def close(self) -> None:
        """Nobody opens it any more. Who has it open keeps what was in it. Idempotent."""
        with self._lock:
            if not self._rows.closed:
                self._rows.close()
                os.close(self._file)

    def _take_row(self, page: int, first: int, second: int) -> None:
        """A row for what the page holds now; what was said of it before is said no more."""
        before = self._row_of_page[page]
        if before >= 0:
            self._page_in_row[before] = -1
            self._write(before, _EMPTY)
        row = second if self._page_in_row[first] >= 0 and self._page_in_row[second] < 0 else first
        crowded_out = self._page_in_row[row]
        if crowded_out >= 0:
            self._row_of_page[crowded_out] = -1
        self._page_in_row[row], self._row_of_page[page] = page, row

    def _write(self, row: int, what: bytes) -> None:
        self._rows[row * _ROW.size : (row + 1) * _ROW.size] = what


class SealView:
    """The reader's end. Thread-safe."""

    def __init__(self, rows: mmap.mmap, count: int, pages: int) -> None:
        self._rows = rows
        self._count = count
        self._pages = pages

    @classmethod
    def open(cls, seals: ExportedSeals, pages: int) -> "SealView | None":
        """`pages`: of the arena. None when the holder's table cannot be seen from here: it is on
        another host, in another PID namespace, or of another user."""
        path = Path(f"/proc/{seals.pid}/fd/{seals.file}")
        try:
            # Another process of that number may have anything there, and opening may block.
            if path.readlink() != Path(f"/memfd:{seals.name} (deleted)"):
                return None
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            size = seals.rows * _ROW.size
            rows = mmap.mmap(file, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        except (OSError, ValueError):
            return None
        finally:
            os.close(file)
        return cls(rows, seals.rows, pages)

    def find(self, identities: NDArray[np.uint8]) -> tuple[list[int], list[int]] | None:
        """Pages and checksums of identities uint8 [n, 16]; None when one of them is not listed, or
        n is more than a few.

        Lists, and few steps: after a pause each call takes a microsecond, a new array five.
        """
        if len(identities) > _MOST_AT_ONCE:
            return None
        pages, checksums = [], []
        for first, second in _HALVES.iter_unpack(identities.tobytes()):
            one, two, page, seal = _ROW.unpack_from(self._rows, first % self._count * _ROW.size)
            if one != first or two != second:
                place = second % self._count * _ROW.size
                one, two, page, seal = _ROW.unpack_from(self._rows, place)
                if one != first or two != second:
                    return None
            if page >= self._pages:
                return None
            pages.append(page)
            checksums.append(seal ^ first)
        return pages, checksums
