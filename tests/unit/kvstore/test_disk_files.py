"""The disk tier's files: one pair for each cache group, all of one cache, nobody else's touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baton.v1.kv_pb2 import CacheGroupIdentity, CacheIdentity
from baton_kvstore.disk_files import DiskFiles, open_files
from baton_kvstore.disk_index import DiskRecord, ForeignFileError
from baton_transfer import PageArena

GROUPS = [
    CacheGroupIdentity(name="full", page_bytes=4096),
    CacheGroupIdentity(name="state", page_bytes=16384, snapshot_every=32),
]
ONE = CacheIdentity(page_size=16, groups=GROUPS[:1])
TWO = CacheIdentity(page_size=16, groups=GROUPS)


@contextmanager
def opened(directory: Path, identity: CacheIdentity, nvme_mb: int = 1) -> Iterator[list[DiskFiles]]:
    arenas = [PageArena.allocate(page_bytes=g.page_bytes, num_pages=1) for g in identity.groups]
    files = open_files(directory, identity, arenas, nvme_mb)
    try:
        yield files
    finally:
        for each in files:
            each.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_groups_share_the_disk_as_they_share_dram(tmp_path: Path) -> None:
    with opened(tmp_path, TWO) as (tokens, states):
        assert (tokens.most_slots, states.most_slots) == (85, 42)
        assert 85 * 4096 + 42 * 16384 <= 1 << 20
    with opened(tmp_path, ONE) as (tokens,):
        assert tokens.most_slots == 256


def test_each_group_finds_its_own_records_again(tmp_path: Path) -> None:
    with opened(tmp_path, TWO) as files:
        for number, each in enumerate(files):
            each.grow(2)
            each.index.write(DiskRecord(1, bytes([number]) * 16, 7, b"", 3, 4, 5))
    with opened(tmp_path, TWO) as files:
        found = [[record.page for record in each.index.found] for each in files]
    assert found == [[bytes(16)], [b"\x01" * 16]]


def test_another_cache_erases_every_groups_files(tmp_path: Path) -> None:
    with opened(tmp_path, TWO) as files:
        for each in files:
            each.grow(1)
            each.index.write(DiskRecord(0, bytes(16), 7, b"", 0, 1, 1))
    assert names(tmp_path) == ["pages-1.data", "pages-1.index", "pages.data", "pages.index"]
    with opened(tmp_path, ONE) as (tokens,):
        assert (tokens.index.found, tokens.writer.slots) == ([], 0)
    assert names(tmp_path) == ["pages.data", "pages.index"]


@pytest.mark.parametrize("identity", [ONE, TWO], ids=["of no group of ours", "of a group of ours"])
def test_a_foreign_file_is_refused_by_name_and_left_alone(
    tmp_path: Path, identity: CacheIdentity
) -> None:
    foreign = {"pages-1.index": b"dear diary", "pages-1.data": b"x" * 100_000}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ForeignFileError, match=r"pages-1\.index"), opened(tmp_path, identity):
        pass
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign


def test_a_disk_too_small_for_a_page_of_each_group_is_refused(tmp_path: Path) -> None:
    large = CacheGroupIdentity(name="state", page_bytes=1 << 20, snapshot_every=32)
    both = CacheIdentity(page_size=16, groups=[GROUPS[0], large])
    with pytest.raises(ValueError, match=r"nvme_mb is 1, .* full 4096, state 1048576"):
        open_files(tmp_path / "disk", both, [], 1)
    assert not (tmp_path / "disk").exists()
