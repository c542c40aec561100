"""Arenas are views of memory that they keep alive; indices are checked."""

import subprocess
import sys

import numpy as np
import pytest

from baton_transfer import MemoryType, PageArena


def test_an_arena_over_foreign_memory_sees_every_write_and_keeps_it_alive() -> None:
    memory = np.zeros((4, 8), np.uint8)
    arena = PageArena(memory.ctypes.data, page_bytes=8, num_pages=4, owner=memory)
    memory[2] = 7
    before = arena.checksum(2)
    assert (arena.pages[2] == 7).all()
    memory[2, 3] ^= 1
    assert arena.checksum(2) != before
    del memory
    assert arena.pages[2, 0] == 7


def test_checksums_are_per_page_and_in_order() -> None:
    arena = PageArena.allocate(page_bytes=64, num_pages=3)
    arena.pages[:] = np.arange(3, dtype=np.uint8)[:, None]
    sums = arena.checksums([2, 0])
    assert sums.tolist() == [arena.checksum(2), arena.checksum(0)]


def test_what_cannot_be_is_refused() -> None:
    arena = PageArena.allocate(page_bytes=64, num_pages=3)
    with pytest.raises(ValueError, match="page 3 is outside"):
        arena.check_indices(np.array([0, 3], np.int32))
    with pytest.raises(ValueError, match="must be positive"):
        PageArena(1, page_bytes=0, num_pages=1, owner=None)
    there = PageArena(1 << 20, page_bytes=8, num_pages=1, owner=None, memory_type=MemoryType.VRAM)
    with pytest.raises(ValueError, match="no view on the host"):
        there.checksum(0)


def test_neither_transfer_nor_its_agents_import_torch() -> None:
    code = (
        "import sys, baton_transfer; from baton_transfer.agent import Agent;"
        "Agent('t', progress_thread=False).destroy(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
