"""Page copies of a step: in every group, whole pages, all sources read before a target changes."""

from __future__ import annotations

import numpy as np
import torch

from baton_engine.arena import KvArena
from baton_modeling.cache import CacheGroup, CacheLayout

PAGES, PAGE = 7, 4


def arena() -> KvArena:
    groups = (
        CacheGroup(name="latent", layers=3, entry_width=5, dtype=torch.float32, replicated=True),
        CacheGroup(name="keys", layers=2, entry_width=8, dtype=torch.bfloat16, replicated=False),
    )
    arena = KvArena(CacheLayout(groups=groups), PAGES, PAGE, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for tensor in arena.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return arena


def test_targets_hold_their_sources_in_every_group_and_nothing_else_changes() -> None:
    kv = arena()
    before = {name: tensor.clone() for name, tensor in kv.tensors.items()}
    kv.copy_pages(np.array([[1, 4], [1, 5], [6, 0]], np.int32))
    source_of = [6, 1, 2, 3, 1, 1, 6]
    for name, tensor in kv.tensors.items():
        assert torch.equal(tensor, before[name][source_of])


def test_no_copies_change_nothing() -> None:
    kv = arena()
    before = {name: tensor.clone() for name, tensor in kv.tensors.items()}
    kv.copy_pages(np.empty((0, 2), np.int32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in kv.tensors.items())
