"""Checksums of all ranks that others read from: asked for once, forgotten with the contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from numpy.typing import NDArray

from baton_engine.arena import PageChecksums
from baton_engine.step_loop import RanksLost
from baton_transfer import MemoryType, PageArena

PAGES = 6


def arena(seed: int) -> PageArena:
    made = PageArena.allocate(page_bytes=64, num_pages=PAGES)
    made.pages[:] = np.random.default_rng(seed).integers(0, 256, made.pages.shape, np.uint8)
    return made


class Followers:
    """Two other ranks, with arenas of two groups each; remembers what it was asked."""

    def __init__(self) -> None:
        self.arenas = {
            (rank, group): arena(10 * rank + group) for rank in (1, 2) for group in (0, 1)
        }
        self.asked: list[tuple[int, list[int], list[int]]] = []
        self.lost = False
        self.silent = False
        self.meanwhile: Callable[[], None] = lambda: None

    def ask(
        self, group: int, pages: NDArray[np.int32], ranks: Sequence[int]
    ) -> list[Future[NDArray[np.uint64]]]:
        self.asked.append((group, pages.tolist(), list(ranks)))
        futures = []
        for rank in ranks:
            future: Future[NDArray[np.uint64]] = Future()
            if self.lost:
                future.set_exception(RanksLost(f"rank {rank} is gone"))
            elif not self.silent:
                future.set_result(self.arenas[rank, group].checksums(pages))
            futures.append(future)
        self.meanwhile()
        return futures


@pytest.fixture
def followers() -> Followers:
    return Followers()


@pytest.fixture
def ours() -> list[PageArena]:
    return [arena(0), arena(1)]


@pytest.fixture
def sums(ours: list[PageArena], followers: Followers) -> PageChecksums:
    # The first group is read of every second rank (there are copies), the other of all.
    return PageChecksums(ours, [(0, 2), (0, 1, 2)], followers.ask)


def test_they_come_rank_after_rank_and_are_asked_for_once(
    sums: PageChecksums, ours: list[PageArena], followers: Followers
) -> None:
    pages = np.array([4, 1], np.int32)
    for group, ranks in enumerate([(2,), (1, 2)]):
        rows = [ours[group], *(followers.arenas[rank, group] for rank in ranks)]
        wanted = np.concatenate([row.checksums(pages) for row in rows])
        assert sums.of(pages, group).tolist() == wanted.tolist()
        assert sums.of(pages, group).tolist() == wanted.tolist()
        assert sums.of(pages[:1], group).tolist() == wanted[::2].tolist()
    assert followers.asked == [(0, [4, 1], [2]), (1, [4, 1], [1, 2])]


def test_a_page_with_new_contents_is_asked_for_again(
    sums: PageChecksums, ours: list[PageArena], followers: Followers
) -> None:
    pages = np.array([0, 3], np.int32)
    before = sums.of(pages)
    ours[0].pages[3] ^= 1
    followers.arenas[2, 0].pages[3] ^= 1
    sums.forget(pages[1:])
    after = sums.of(pages)
    assert (before == after).tolist() == [True, False, True, False]
    assert followers.asked[1:] == [(0, [3], [2])], "the other group and page are known"
    sums.forget(pages, 1)
    assert sums.of(pages).tolist() == after.tolist()


def test_contents_that_change_while_a_rank_answers_are_not_known(
    sums: PageChecksums, followers: Followers
) -> None:
    """A lease that ended while its checksums were asked for: its page may be another by now."""
    pages = np.array([1, 2], np.int32)

    def change() -> None:
        followers.meanwhile = lambda: None
        followers.arenas[2, 0].pages[2] ^= 1
        sums.forget(pages[1:])

    followers.meanwhile = change
    before = sums.of(pages)
    after = sums.of(pages)
    assert (before == after).tolist() == [True, True, True, False]
    assert followers.asked[1] == (0, [2], [2]), "only the one that changed"


def test_a_lost_or_silent_rank_is_an_error_and_nothing_is_taken_for_known(
    sums: PageChecksums, followers: Followers
) -> None:
    pages = np.array([2], np.int32)
    followers.lost = True
    with pytest.raises(RanksLost, match="rank 2"):
        sums.of(pages)
    followers.lost, followers.silent = False, True
    with pytest.raises(TimeoutError):
        sums.of(pages, wait_s=0.0)
    followers.silent = False
    assert len(sums.of(pages)) == 2


def test_pages_on_a_gpu_have_none() -> None:
    there = PageArena(1 << 20, page_bytes=8, num_pages=1, owner=None, memory_type=MemoryType.VRAM)
    with pytest.raises(ValueError, match="checksums: false"):
        PageChecksums([there])
