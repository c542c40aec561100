"""The disk index: what was written is found; whatever a crash or a disk does to it is noticed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.v1.kv_pb2 import CacheIdentity
from baton_kvstore.disk_index import (
    HEAD_BYTES,
    RECORD_BYTES,
    DiskIndex,
    DiskRecord,
    ForeignFileError,
)

OURS = CacheIdentity(wire_version=1, model_fingerprint="m", page_size=64)
SLOTS = 20
RECORD = st.builds(
    DiskRecord,
    slot=st.integers(0, SLOTS - 1),
    page=st.binary(min_size=16, max_size=16),
    checksum=st.integers(0, 2**64 - 1),
    tenant=st.one_of(st.just(b""), st.binary(min_size=16, max_size=16).filter(any)),
    index=st.integers(0, 2**32 - 1),
    length=st.integers(0, 2**32 - 1),
    uses=st.integers(0, 2**32 - 1),
)


def reopened(path: Path, identity: CacheIdentity = OURS, slots: int = SLOTS) -> DiskIndex:
    index, _ = DiskIndex.open(path, identity, slots)
    index.close()
    return index


@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORD, max_size=15, unique_by=lambda r: r.page), data=st.data())
def test_the_latest_word_on_each_slot_is_found_and_torn_ones_are_not(
    tmp_path_factory: pytest.TempPathFactory, records: list[DiskRecord], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("index") / "pages.index"
    index, ours = DiskIndex.open(path, OURS, SLOTS)
    assert (ours, index.found, index.torn) == (False, [], 0)
    model: dict[int, DiskRecord] = {}
    for record in records:
        index.write(record)
        model[record.slot] = record
        if data.draw(st.booleans()):
            gone = data.draw(st.integers(0, SLOTS - 1))
            index.erase(gone)
            model.pop(gone, None)
    index.close()
    assert {r.slot: r for r in reopened(path).found} == model
    if model:
        # One flipped bit anywhere in a record: it is dropped and counted, the others stay.
        victim = data.draw(st.sampled_from(sorted(model)))
        at = HEAD_BYTES + victim * RECORD_BYTES + data.draw(st.integers(0, RECORD_BYTES - 1))
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw)
        again = reopened(path)
        assert {r.slot: r for r in again.found} == {s: r for s, r in model.items() if s != victim}


@settings(max_examples=30, deadline=None)
@given(
    records=st.lists(RECORD, min_size=1, max_size=10, unique_by=lambda r: r.page), data=st.data()
)
def test_a_file_cut_off_anywhere_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, records: list[DiskRecord], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("index") / "pages.index"
    index, _ = DiskIndex.open(path, OURS, SLOTS)
    model = {}
    for record in records:
        index.write(record)
        model[record.slot] = record
    index.close()
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    again = reopened(path)
    assert {r.slot for r in again.found} <= set(model)
    assert all(model[r.slot] == r for r in again.found)


def test_another_caches_records_are_erased_and_foreign_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "pages.index"
    index, _ = DiskIndex.open(path, OURS, SLOTS)
    index.write(DiskRecord(3, b"p" * 16, 1, b"", 0, 1, 0))
    index.close()
    assert len(reopened(path, slots=3).found) == 0
    assert len(reopened(path).found) == 1
    other = CacheIdentity(wire_version=1, model_fingerprint="n", page_size=64)
    assert not reopened(path, other).found
    assert not reopened(path).found
    path.write_bytes(b"somebody's diary")
    with pytest.raises(ForeignFileError, match=r"pages\.index is not a kvstore's index"):
        reopened(path)
    assert path.read_bytes() == b"somebody's diary"
