"""Lease protocol under loss, duplication, reordering, crashes: nothing stale is ever accepted."""

import subprocess
import sys

import pytest

from . import lease_world
from .lease_world import Holder, Reader, explore

SCHEDULES = 100_000


@pytest.mark.timeout(600)
def test_no_schedule_accepts_a_page_that_changed() -> None:
    """All of them: about 32 s of one core, on two."""
    processes = [
        subprocess.Popen(
            [sys.executable, lease_world.__file__, str(first), str(SCHEDULES // 2)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, SCHEDULES // 2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "see the schedule's seed above"
    accepted, rejected, outlived, unleased = (
        sum(map(int, part)) for part in zip(*map(str.split, said), strict=True)
    )
    # The world must be able to go both ways, or the checks say nothing.
    assert accepted > SCHEDULES
    assert rejected > SCHEDULES // 100
    assert outlived > SCHEDULES // 100
    assert unleased > SCHEDULES // 10


FLAWS = ["every verdict is valid", "no lease protects", "checksums prove nothing"]


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_simulation_notices_a_broken_protocol(
    flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release(self: Holder, epoch: int, lease: int) -> bool:
        self.book.release([lease], self.world.now)
        return True

    def is_leased(self: lease_world.LeaseBook, page: int) -> bool:
        return False

    def verified(self: Reader, pull: lease_world.Pull) -> tuple[int, None]:
        return len(pull.sums), None

    if flaw == "no lease protects":
        monkeypatch.setattr(lease_world.LeaseBook, "is_leased", is_leased)
    elif flaw == "checksums prove nothing":
        monkeypatch.setattr(Reader, "verified", verified)
    else:
        monkeypatch.setattr(Holder, "release", release)
    with pytest.raises(AssertionError, match="schedule"):
        explore(0, 4_000)
