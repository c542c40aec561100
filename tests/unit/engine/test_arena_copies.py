"""Page copies of a step: whole token pages, all sources read before a target changes."""

from __future__ import annotations

import numpy as np
import torch

from baton_engine.arena import KvArena
from baton_modeling.cache import CacheGroup, CacheLayout, GroupKind, HeadBlock

PAGES, PAGE = 7, 4


def arena() -> KvArena:
    groups = (
        CacheGroup("keys", 3, (HeadBlock(1, 5),), torch.bfloat16),
        CacheGroup("state", 2, (HeadBlock(1, 8),), torch.float32, kind=GroupKind.STATE),
    )
    pages = {"keys": PAGES, "state": 3}
    arena = KvArena(CacheLayout(groups=groups), pages, PAGE, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for tensor in arena.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return arena


def test_targets_hold_their_sources_and_nothing_else_changes() -> None:
    """States are of another pool: a copy names token pages, and snapshots are never copied."""
    kv = arena()
    before = {name: tensor.clone() for name, tensor in kv.tensors.items()}
    kv.copy_pages(np.array([[1, 4], [1, 5], [6, 0]], np.int32))
    assert torch.equal(kv.tensors["keys"], before["keys"][[6, 1, 2, 3, 1, 1, 6]])
    assert torch.equal(kv.tensors["state"], before["state"])


def test_no_copies_change_nothing() -> None:
    kv = arena()
    before = {name: tensor.clone() for name, tensor in kv.tensors.items()}
    kv.copy_pages(np.empty((0, 2), np.int32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in kv.tensors.items())
