"""Free pages are overwritten once, and pages in use never."""

import numpy as np
import pytest

from baton_engine import EngineConfig
from baton_engine.poison import PATTERN, FreePagePoison
from baton_scheduler import Config, Goal, Role, Scheduler
from baton_transfer import PageArena

PAGES = 6


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(
        Config(
            role=Role.FUSED, page_size=4, num_pages=PAGES, max_running=2, max_step_tokens=16,
            max_chunk_tokens=16, max_context=24, max_waiting=4, hold_us=1000,
        )
    )  # fmt: skip


def test_pages_are_filled_when_they_become_free_and_left_alone_before(scheduler: Scheduler) -> None:
    arena = PageArena.allocate(page_bytes=32, num_pages=PAGES)
    poison = FreePagePoison([arena])
    poison.fill_free(scheduler)
    assert (arena.pages == PATTERN).all()

    scheduler.submit(
        1, np.arange(7, dtype=np.int32), max_new_tokens=1, key=bytes(16), goal=Goal.GENERATE,
        now_us=0,
    )  # fmt: skip
    step = scheduler.plan(0)
    used = scheduler.pages(1)
    assert len(used) == 2
    arena.pages[used] = 7
    poison.fill_free(scheduler)
    assert (arena.pages[used] == 7).all()

    scheduler.complete(step, np.array([5], np.int32), np.ones(1, np.uint8), 0)
    free = scheduler.free_pages()
    poison.fill_free(scheduler)
    # The full page stays, sealed, for the next prompt; the partial one is free.
    assert len(free) == PAGES - 1
    assert (arena.pages[free] == PATTERN).all()
    kept = np.setdiff1d(np.arange(PAGES), free)
    assert (arena.pages[kept] == 7).all()
    arena.pages[free[0]] = 1  # poisoned already: not written again at every step
    poison.fill_free(scheduler)
    assert (arena.pages[free[0]] == 1).all()


def test_it_is_never_on_by_itself_and_refused_where_it_cannot_work() -> None:
    assert not EngineConfig(model_path="m").debug_poison_free_pages
    for where in ({"tp": 2}, {"device": "cuda"}):
        with pytest.raises(ValueError, match="debug_poison_free_pages works on the cpu"):
            EngineConfig(model_path="m", debug_poison_free_pages=True, **where)
