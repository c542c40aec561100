"""Lease protocol under loss, duplication, reordering, crashes: nothing stale is ever accepted."""

import pytest

from . import lease_world
from .lease_world import Holder, run_schedule

FEW, MANY = 1_500, 100_000


def explore(seeds: range) -> None:
    accepted = rejected = 0
    for seed in seeds:
        try:
            good, bad = run_schedule(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
        accepted, rejected = accepted + good, rejected + bad
    # The world must be able to go both ways, or the checks say nothing.
    assert accepted > len(seeds)
    assert rejected > len(seeds) // 100


def test_no_schedule_accepts_a_page_that_changed() -> None:
    explore(range(FEW))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_schedule_of_many_accepts_a_page_that_changed() -> None:
    explore(range(FEW, FEW + MANY))


@pytest.mark.parametrize("flaw", ["every verdict is valid", "no lease protects"])
def test_the_simulation_notices_a_broken_holder(flaw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(self: Holder, epoch: int, lease: int) -> bool:
        self.book.release([lease], self.world.now)
        return True

    def is_leased(self: lease_world.LeaseBook, page: int) -> bool:
        return False

    if flaw == "no lease protects":
        monkeypatch.setattr(lease_world.LeaseBook, "is_leased", is_leased)
    else:
        monkeypatch.setattr(Holder, "release", release)
    with pytest.raises(AssertionError, match="schedule"):
        explore(range(4_000))
