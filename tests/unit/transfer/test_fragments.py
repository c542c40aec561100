"""Plans between any two numbers of ranks: every byte once, none wrong, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baton.v1.kv_pb2 import CacheGroupIdentity, HeadBlock
from baton_transfer.fragments import Block, Cut, Fragment, Part, is_whole, plan

RANKS = (1, 2, 4)
Pages = list[NDArray[np.uint8]]  # of every rank

blocks = st.builds(Block, st.sampled_from([1, 2, 4, 8]), st.integers(1, 9))
cuts = st.builds(Cut, st.lists(blocks, min_size=1, max_size=5).map(tuple), st.integers(1, 4))


def cut_by_hand(cut: Cut, whole: NDArray[np.uint8], ranks: int) -> Pages:
    """What each rank has of a page [entries, bytes], by the definition of blocks and copies."""
    pages: list[list[NDArray[np.uint8]]] = [[] for _ in range(ranks)]
    start = 0
    for block in cut.blocks:
        end = start + block.heads * block.head_bytes
        heads = whole[:, start:end].reshape(cut.entries, block.heads, block.head_bytes)
        for rank in range(ranks):
            if block.heads >= ranks:
                mine = np.array_split(heads, ranks, axis=1)[rank]
            else:
                mine = np.repeat(heads, ranks // block.heads, axis=1)[:, rank : rank + 1]
            pages[rank].append(mine.reshape(cut.entries, -1))
        start = end
    return [np.concatenate(parts, axis=1) for parts in pages]


def moved(cut: Cut, pages: Pages, ours: int) -> Pages:
    """What `ours` ranks have after reading from these; every byte must be written once."""
    made = []
    for rank in range(ours):
        target = np.zeros((cut.entries, cut.entry_bytes(ours)), np.uint8)
        written = np.zeros(target.shape[1], np.int64)
        for part in plan(cut, len(pages), ours, rank):
            assert part.rank in cut.sources(len(pages))
            for piece in part.fragments:
                into = slice(piece.target, piece.target + piece.size)
                source = pages[part.rank][:, piece.source : piece.source + piece.size]
                assert source.shape[1] == piece.size, "inside the source's entry"
                target[:, into] = source
                written[into] += 1
        assert (written == 1).all()
        made.append(target)
    return made


@given(cuts, st.sampled_from(RANKS), st.sampled_from(RANKS), st.integers(0, 2**32 - 1))
def test_a_page_goes_anywhere_and_back_unchanged(cut: Cut, a: int, b: int, seed: int) -> None:
    size = (cut.entries, cut.entry_bytes(1))
    whole = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    there = cut_by_hand(cut, whole, a)
    assert [page.size for page in there] == [cut.page_bytes(a)] * a
    here = moved(cut, there, b)
    for page, wanted in zip(here, cut_by_hand(cut, whole, b), strict=True):
        assert np.array_equal(page, wanted)
    for page, wanted in zip(moved(cut, here, a), there, strict=True):
        assert np.array_equal(page, wanted)


@given(cuts, st.sampled_from(RANKS))
def test_equal_ranks_read_one_whole_page(cut: Cut, ranks: int) -> None:
    for rank in range(ranks):
        parts = plan(cut, ranks, ranks, rank)
        assert is_whole(cut, parts, ranks, ranks)
        if ranks == max(block.heads for block in cut.blocks):
            assert parts[0].rank == rank, "nobody else has these heads"


def test_keys_and_values_of_two_ranks_join_on_one() -> None:
    cut = Cut((Block(4, 10), Block(4, 10)), 32)
    assert plan(cut, 2, 1, 0) == (
        Part(0, (Fragment(0, 0, 20), Fragment(20, 40, 20))),
        Part(1, (Fragment(0, 20, 20), Fragment(20, 60, 20))),
    )
    assert plan(cut, 1, 2, 1) == (Part(0, (Fragment(20, 0, 20), Fragment(60, 20, 20))),)


def test_latents_are_read_from_the_first_rank_by_everybody() -> None:
    cut = Cut((Block(1, 64),), 8)
    assert cut.sources(4) == (0,)
    assert [plan(cut, 4, 2, rank)[0].rank for rank in range(2)] == [0, 0]


def test_heads_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="6 heads cannot be shared evenly by 4 ranks"):
        plan(Cut((Block(2, 8), Block(6, 8)), 1), 2, 4, 0)


def test_a_page_that_is_not_made_of_its_blocks_is_refused() -> None:
    group = CacheGroupIdentity(name="full", page_bytes=100)
    assert Cut.of(group) == Cut((Block(1, 100),), 1)
    group.blocks.append(HeadBlock(heads=3, head_bytes=10))
    with pytest.raises(ValueError, match="full"):
        Cut.of(group)
