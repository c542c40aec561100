import numpy as np
import pytest

from baton_engine.page_table import VOID, PageTable


def ints(*rows: object) -> np.ndarray:
    return np.array(rows, np.int32)


NONE = np.empty(0, np.int32)
NO_DELTAS = np.empty((0, 3), np.int32)


def test_deltas_write_and_resets_void() -> None:
    table = PageTable(2, 3)
    table.apply(NONE, ints([0, 0, 7], [0, 1, 8], [1, 0, 9]))
    assert table.rows(ints(0, 1), 2).tolist() == [[7, 8], [9, VOID]]
    table.apply(ints(0), NO_DELTAS)
    assert table.rows(ints(0, 1), 2).tolist() == [[VOID, VOID], [9, VOID]]


def test_a_slot_reset_and_given_out_in_one_step_keeps_the_new_pages() -> None:
    table = PageTable(1, 2)
    table.apply(NONE, ints([0, 0, 1], [0, 1, 2]))
    table.apply(ints(0), ints([0, 0, 5]))
    assert table.rows(ints(0), 2).tolist() == [[5, VOID]]


def test_a_void_page_is_refused_by_name() -> None:
    table = PageTable(2, 2)
    table.apply(NONE, ints([1, 0, 4]))
    with pytest.raises(IndexError, match="slot 1 has no page 1"):
        table.pages(ints(1, 1), np.array([0, 1]))


def test_it_grows_with_what_the_scheduler_uses() -> None:
    table = PageTable(1, 1)
    table.apply(NONE, ints([5, 9, 3]))
    assert table.pages(ints(5), np.array([9])).tolist() == [3]
    assert table.rows(ints(5), 12)[0, 9:].tolist() == [3, VOID, VOID]
