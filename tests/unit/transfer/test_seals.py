"""The table of sealed pages: what it says was once true, whatever it was read amidst."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedSeals
from baton_transfer import SealTable
from baton_transfer.seals import SealView

PAGES = 8  # four buckets


def identities(*numbers: int) -> NDArray[np.uint8]:
    """As keyed hashes are: nothing of one in another."""
    rows = [np.random.default_rng(number).bytes(16) for number in numbers]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)


def checksum(identity: int, life: int = 0) -> int:
    return int(np.random.default_rng([identity, life]).integers(1 << 63))


def put(table: SealTable, numbers: list[int], pages: list[int], life: int = 0) -> None:
    sums = np.array([checksum(number, life) for number in numbers], np.uint64)
    table.put(identities(*numbers), np.array(pages, np.int32), sums)


def view_of(table: SealTable) -> SealView:
    view = SealView.open(table.exported)
    assert view is not None
    return view


def found(view: SealView, *numbers: int) -> list[tuple[int, int]] | None:
    answer = view.find(identities(*numbers))
    if answer is None:
        return None
    return list(zip(answer[0].tolist(), answer[1].tolist(), strict=True))


@pytest.fixture
def table() -> SealTable:
    return SealTable(PAGES)


def test_what_is_listed_is_found_and_nothing_else(table: SealTable) -> None:
    view = view_of(table)
    put(table, [1, 2, 3], [5, 0, 7])
    assert found(view, 1, 2, 3) == [(5, checksum(1)), (0, checksum(2)), (7, checksum(3))]
    assert found(view, 2) == [(0, checksum(2))]
    assert found(view, 4) is None
    assert found(view, 1, 4, 2) is None


def test_many_pages_at_once_are_not_looked_up(table: SealTable) -> None:
    put(table, [1], [5])
    view = view_of(table)
    assert found(view, *[1] * 32) is not None
    assert found(view, *[1] * 33) is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, PAGES - 1), st.integers(0, 3))))
def test_an_answer_is_the_last_that_was_said_of_an_identity(
    puts: list[tuple[int, int, int]],
) -> None:
    table = SealTable(PAGES)
    view, last = view_of(table), {}
    for number, page, life in puts:
        put(table, [number], [page], life)
        last[number] = page, checksum(number, life)
        assert found(view, number) == [last[number]]  # the newest always has its row
    for number in range(41):
        answer = found(view, number)
        assert answer is None or answer == [last[number]]
    table.close()


def test_a_table_of_its_size_finds_nearly_all_of_a_full_pool() -> None:
    table = SealTable(4096)
    everything = np.random.default_rng(0).integers(0, 256, (4096, 16), np.uint8)
    table.put(everything, np.arange(4096, dtype=np.int32), np.arange(4096, dtype=np.uint64))
    view = view_of(table)
    missing = sum(view.find(everything[i : i + 1]) is None for i in range(4096))
    assert missing < 4096 // 500


def test_a_row_read_while_it_is_written_vouches_for_nobodys_bytes() -> None:
    """Every mixture of the bytes of two pages' rows, as a reader may see them."""
    rows = []
    for number in (1, 2):
        table = SealTable(1)  # one bucket
        put(table, [number], [number])
        rows.append(os.pread(table.exported.file, 32, 0))
        table.close()
    torn = SealTable(1)
    view = view_of(torn)
    for cut in range(33):
        for first, second in (rows, rows[::-1]):
            os.pwrite(torn.exported.file, first[:cut] + second[cut:], 0)
            for number, other in ((1, 2), (2, 1)):
                for page, told in found(view, number) or ():
                    assert told != checksum(other), (cut, number)
                    assert told != checksum(number) or page in (1, 2)
    torn.close()


def test_only_the_file_that_was_named_is_opened(table: SealTable) -> None:
    right = table.exported

    def opened(**changed: object) -> SealView | None:
        wrong = ExportedSeals()
        wrong.CopyFrom(right)
        for field, value in changed.items():
            setattr(wrong, field, value)
        return SealView.open(wrong)

    assert opened() is not None
    assert opened(name="baton-seals-of-another") is None  # as on another host
    with Path(os.devnull).open() as other:
        assert opened(file=other.fileno()) is None
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert opened(pid=gone.pid) is None
    assert opened(buckets=1 << 20) is None  # more than the file has


def test_a_closed_table_is_not_opened_and_open_views_stay_readable(table: SealTable) -> None:
    put(table, [1], [3])
    view, told = view_of(table), table.exported
    table.close()
    table.close()
    assert SealView.open(told) is None
    assert found(view, 1) == [(3, checksum(1))]
