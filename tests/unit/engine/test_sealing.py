"""Only what stayed where it was while it was hashed is listed for readers."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baton_engine import EngineConfig
from baton_engine.arena import PageChecksums
from baton_engine.sealing import lease_sealed, list_sealed
from baton_scheduler import Verdict
from baton_transfer import PageArena, SealTable
from baton_transfer.seals import SealView

PAGES = 8


class Index:
    """A scheduler that knows which identity is where, and can lose a lease."""

    def __init__(self, places: dict[bytes, int]) -> None:
        self.places = places
        self.leased: set[int] = set()
        self.verdict = Verdict.VALID

    def grant(
        self, identities: NDArray[np.uint8], now: int, ttl: int, group: int
    ) -> SimpleNamespace:
        pages = []
        for row in identities:
            if row.tobytes() not in self.places:
                break
            pages.append(self.places[row.tobytes()])
        if not pages:
            return SimpleNamespace(id=0, pages=np.empty(0, np.int32))
        self.leased.add(1)
        return SimpleNamespace(id=1, pages=np.array(pages, np.int32))

    def release(self, lease: int, now: int) -> Verdict:
        self.leased.remove(lease)
        return self.verdict


class World:
    """A core of one arena whose pages can be looked up as a reader does."""

    def __init__(self, held: list[int]) -> None:
        self.arena = PageArena.allocate(page_bytes=64, num_pages=PAGES)
        self.arena.pages[:] = np.arange(PAGES, dtype=np.uint8)[:, None]
        table = SealTable(PAGES)
        self.identities = np.random.default_rng(0).integers(0, 256, (PAGES, 16), np.uint8)
        self.index = Index({self.identities[page].tobytes(): page for page in held})
        checksums = PageChecksums([self.arena], tables=[table])
        self.core: Any = SimpleNamespace(
            checksums=checksums, scheduler=self.index, lock=threading.Lock()
        )
        view = SealView.open(table.exported, PAGES)
        assert view is not None
        self.view = view

    def seal(self, pages: list[int]) -> None:
        completion: Any = SimpleNamespace(
            sealed_groups=np.zeros(len(pages), np.int32),
            sealed_hashes=self.identities[pages],
            sealed_pages=np.array(pages, np.int32),
        )
        with self.core.lock:
            leased = lease_sealed(self.core, completion)
        assert self.index.leased == ({1} if leased else set())
        list_sealed(self.core, leased)
        assert not self.index.leased

    def listed(self) -> list[int]:
        found = []
        for page in range(PAGES):
            answer = self.view.find(self.identities[page : page + 1])
            if answer is not None:
                assert answer == ([page], [self.arena.checksum(page)])
                found.append(page)
        return found


def test_what_was_sealed_is_listed_with_its_checksum() -> None:
    world = World(held=[2, 5, 6])
    world.seal([5, 2])
    assert world.listed() == [2, 5]
    world.seal([6])
    assert world.listed() == [2, 5, 6]


def test_what_is_gone_before_it_could_be_leased_is_not_listed() -> None:
    world = World(held=[2])
    world.seal([2, 5])
    assert world.listed() == [2]
    world.seal([7])
    assert world.listed() == [2]


def test_what_may_have_changed_while_it_was_hashed_is_not_listed() -> None:
    world = World(held=[2])
    world.index.verdict = Verdict.EXPIRED
    world.seal([2])
    assert world.listed() == []


@pytest.mark.parametrize("sealed", [[], [3]])
def test_without_checksums_nothing_is_leased_for_nothing(sealed: list[int]) -> None:
    world = World(held=[3])
    world.core.checksums = None
    world.seal(sealed)
    assert world.listed() == []


def test_pages_are_listed_where_they_can_be_proved_and_nowhere_else() -> None:
    assert EngineConfig(model_path="m").lists_sealed_pages
    assert not EngineConfig(model_path="m", list_sealed_pages=False).lists_sealed_pages
    for unproved in ({"checksums": False}, {"device": "cuda"}):
        assert not EngineConfig(model_path="m", **unproved).lists_sealed_pages
        with pytest.raises(ValueError, match="list_sealed_pages is true, but"):
            EngineConfig(model_path="m", list_sealed_pages=True, **unproved)
