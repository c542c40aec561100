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

_IDENTITY_BYTES = 16
_ROW = struct.Struct("<16sQQ")  # identity, page, seal
# Two pages a bucket on average: two in ten thousand find no place in one of eight rows.
_ROWS = 8
_PAGES_A_BUCKET = 2
_BUCKET_BYTES = _ROWS * _ROW.size
# More are leased: a trip to the holder is then little beside the read.
_MOST_AT_ONCE = 32


class SealTable:
    """The holder's end: rows of one arena's sealed pages. Thread-safe."""

    def __init__(self, num_pages: int) -> None:
        """`num_pages`: of the arena whose pages it lists."""
        self._buckets = -(-num_pages // _PAGES_A_BUCKET)
        self._name = f"baton-seals-{secrets.token_hex(16)}"
        # It has no name in the file system, so it ends with us, however we end.
        self._file = os.memfd_create(self._name)
        os.ftruncate(self._file, self._buckets * _BUCKET_BYTES)
        self._rows = mmap.mmap(self._file, 0)
        self._next = bytearray(self._buckets)  # the row of each bucket that is given away next
        self._lock = threading.Lock()

    @property
    def exported(self) -> ExportedSeals:
        """What a reader needs to read it."""
        return ExportedSeals(
            pid=os.getpid(), file=self._file, name=self._name, buckets=self._buckets
        )

    def put(
        self, identities: NDArray[np.uint8], pages: Pages, checksums: NDArray[np.uint64]
    ) -> None:
        """Lists pages: identities uint8 [n, 16], pages int32 [n], checksums uint64 [n].

        The pages must not have changed since before their checksums were taken: hold a lease on
        them, or what is bound to an identity could be another page's bytes.
        """
        data, lists = identities.tobytes(), zip(pages.tolist(), checksums.tolist(), strict=True)
        with self._lock:
            for at, (page, checksum) in enumerate(lists):
                identity = data[at * _IDENTITY_BYTES :][:_IDENTITY_BYTES]
                mask = _head(identity)
                self._write(
                    identity, mask % self._buckets, _ROW.pack(identity, page, checksum ^ mask)
                )

    def close(self) -> None:
        """Nobody opens it any more. Who has it open keeps what was in it. Idempotent."""
        with self._lock:
            if not self._rows.closed:
                self._rows.close()
                os.close(self._file)

    def _write(self, identity: bytes, bucket: int, row: bytes) -> None:
        start = bucket * _BUCKET_BYTES
        at = _row_of(self._rows[start : start + _BUCKET_BYTES], identity)
        if at < 0:
            at = self._next[bucket] * _ROW.size
            self._next[bucket] = (self._next[bucket] + 1) % _ROWS
        self._rows[start + at : start + at + _ROW.size] = row


class SealView:
    """The reader's end. Thread-safe."""

    def __init__(self, rows: mmap.mmap, buckets: int) -> None:
        self._rows = rows
        self._buckets = buckets

    @classmethod
    def open(cls, seals: ExportedSeals) -> "SealView | None":
        """None when the holder's table cannot be seen from here: it is on another host, in
        another PID namespace, or of another user."""
        path = Path(f"/proc/{seals.pid}/fd/{seals.file}")
        try:
            # Another process of that number may have anything there, and opening may block.
            if path.readlink() != Path(f"/memfd:{seals.name} (deleted)"):
                return None
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            size = seals.buckets * _BUCKET_BYTES
            rows = mmap.mmap(file, size, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            return None
        finally:
            os.close(file)
        return cls(rows, seals.buckets)

    def find(self, identities: NDArray[np.uint8]) -> tuple[Pages, NDArray[np.uint64]] | None:
        """Pages int32 [n] and checksums uint64 [n] of identities uint8 [n, 16]; None when one of
        them is not listed, or n is more than a few."""
        if len(identities) > _MOST_AT_ONCE:
            return None
        data = identities.tobytes()
        pages, checksums = [], []
        for at in range(0, len(data), _IDENTITY_BYTES):
            identity = data[at : at + _IDENTITY_BYTES]
            mask = _head(identity)
            start = mask % self._buckets * _BUCKET_BYTES
            bucket = self._rows[start : start + _BUCKET_BYTES]
            row = _row_of(bucket, identity)
            if row < 0:
                return None
            _, page, seal = _ROW.unpack_from(bucket, row)
            pages.append(page)
            checksums.append(seal ^ mask)
        return np.array(pages, np.int32), np.array(checksums, np.uint64)


def _head(identity: bytes) -> int:
    """Its first eight bytes: as good as random, identities being keyed hashes."""
    return int.from_bytes(identity[:8], "little")


def _row_of(bucket: bytes, identity: bytes) -> int:
    """Where the row of an identity begins, -1 without one."""
    at = bucket.find(identity)
    while at % _ROW.size and at >= 0:  # bytes like it within other rows
        at = bucket.find(identity, at + 1)
    return at
