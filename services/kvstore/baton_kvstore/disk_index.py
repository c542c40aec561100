"""What lies in which slot of the page file: fixed-size records, each proving itself.

A record says whose page is in its slot and what its bytes' checksum is. Nothing depends on the
order in which records and pages reach the disk: whatever a crash leaves behind, a record that is
torn does not match its own checksum and counts as none, and a page that does not match its record
is found out when it is read. So there is no journal and no fsync.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheIdentity
from baton_kvstore.directory import PageHash

_MAGIC = b"baton pages 1\n"
_RECORD = np.dtype(
    [
        ("page", "V16"),
        ("tenant", "V16"),
        ("checksum", "<u8"),
        ("index", "<u4"),
        ("length", "<u4"),
        ("uses", "<u8"),
        ("own", "<u8"),  # xxh3-64 of the bytes before; never 0
    ]
)
_PROOF_BYTES = 8
RECORD_BYTES = _RECORD.itemsize
HEAD_BYTES = 4096


class ForeignFileError(ValueError):
    """The file was not written by a kvstore."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A page in a slot. `checksum`: xxh3-64 of its bytes. `index`, `length`: see Sighting."""

    slot: int
    page: PageHash
    checksum: int
    tenant: bytes
    index: int
    length: int
    uses: int


class DiskIndex:
    """The record file. One thread uses it after `open`."""

    def __init__(self, descriptor: int, found: list[DiskRecord], torn: int) -> None:
        self._descriptor = descriptor
        self.found = found  # at the start
        self.torn = torn  # records at the start that were not whole

    @classmethod
    def open(cls, path: Path, identity: CacheIdentity, slots: int) -> tuple["DiskIndex", bool]:
        """The index, and whether it is of this cache; another cache's records are erased.

        Records of slots from `slots` on are dropped: there are no pages for them.
        Raises OSError and ForeignFileError.
        """
        head = _MAGIC + xxhash.xxh3_128_digest(identity.SerializeToString(deterministic=True))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            known = os.pread(descriptor, len(head), 0)
            if known and not known.startswith(_MAGIC[: len(known)]):
                raise ForeignFileError(
                    f"{path} is not a kvstore's index; give the NVMe tier a directory of its own"
                )
            if known == head:
                return cls(descriptor, *_load(descriptor, slots)), True
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, head.ljust(HEAD_BYTES, b"\0"), 0)
            return cls(descriptor, [], 0), False
        except BaseException:
            os.close(descriptor)
            raise

    def write(self, record: DiskRecord) -> None:
        """The slot holds this page. OSError."""
        row = np.zeros(1, _RECORD)
        row["page"] = np.void(record.page)
        row["tenant"] = np.void(record.tenant.ljust(16, b"\0"))
        for name in ("checksum", "index", "length", "uses"):
            row[name] = getattr(record, name)
        row["own"] = _proof(row[0].tobytes())
        self._put(record.slot, row.tobytes())

    def erase(self, slot: int) -> None:
        """The slot holds nothing. OSError."""
        self._put(slot, bytes(RECORD_BYTES))

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _put(self, slot: int, row: bytes) -> None:
        written = os.pwrite(self._descriptor, row, HEAD_BYTES + slot * RECORD_BYTES)
        if written != len(row):
            raise OSError(f"record {slot} of the disk index was cut off: the disk is full")


def _load(descriptor: int, slots: int) -> tuple[list[DiskRecord], int]:
    size = os.fstat(descriptor).st_size
    # A torn last record is no record; slots whose pages the file does not have are none either.
    count = min(max(0, size - HEAD_BYTES) // RECORD_BYTES, slots)
    data = os.pread(descriptor, count * RECORD_BYTES, HEAD_BYTES)
    rows: NDArray[np.void] = np.frombuffer(data, _RECORD)
    found: dict[PageHash, DiskRecord] = {}
    torn = 0
    for slot in np.flatnonzero(rows["own"]).tolist():
        row = rows[slot]
        if _proof(row.tobytes()) != int(row["own"]):
            torn += 1
            continue
        page = bytes(row["page"])
        found[page] = DiskRecord(
            slot,
            page,
            int(row["checksum"]),
            _tenant(bytes(row["tenant"])),
            int(row["index"]),
            int(row["length"]),
            int(row["uses"]),
        )
    return list(found.values()), torn


def _tenant(stored: bytes) -> bytes:
    return stored if any(stored) else b""


def _proof(row: bytes) -> int:
    return xxhash.xxh3_64_intdigest(row[:-_PROOF_BYTES]) or 1
