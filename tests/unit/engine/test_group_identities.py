"""A cache group's identity is of the whole model: the same from every number of ranks."""

from __future__ import annotations

import pytest
import torch

from baton.v1.kv_pb2 import CacheGroupIdentity
from baton_engine.arena import KvArena
from baton_modeling import CacheGroup, CacheLayout, HeadBlock, tensor_parallel_mesh
from baton_modeling.cache import entry_group
from baton_modeling.layers.gdn import DeltaShape, state_group
from baton_modeling.layers.gqa import HeadShape, head_group
from baton_transfer import Cut, PageArena, cache_identity, differing_field

PAGE = 16
HEADS = HeadShape(heads=8, kv_heads=4, size=24, rotary=24)
DELTA = DeltaShape(key_heads=4, value_heads=8, key_size=6, value_size=10, taps=4)


def latents(ranks: int, dtype: torch.dtype) -> CacheGroup:
    return entry_group("full", 3, (HeadBlock(1, 40),), ranks, dtype)


def seen(token_group: CacheGroup) -> tuple[list[CacheGroupIdentity], list[PageArena]]:
    """With a group of states beside it."""
    mesh = tensor_parallel_mesh(token_group.ranks)
    groups = (state_group(DELTA, 2, mesh), token_group)
    pages = {"full": 3, "state": 2}
    arena = KvArena(CacheLayout(groups), pages, PAGE, torch.device("cpu"))
    return arena.group_identities(), arena.exported()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", ["heads", "latents", "float8 latents"])
def test_all_sizes_have_one_identity_and_its_cut_gives_their_pages(kind: str, ranks: int) -> None:
    def group(ranks: int) -> CacheGroup:
        if kind == "heads":
            return head_group(HEADS, 3, tensor_parallel_mesh(ranks), torch.bfloat16)
        return latents(ranks, torch.float8_e4m3fn if "float8" in kind else torch.bfloat16)

    identities, arenas = seen(group(ranks))
    assert identities == seen(group(1))[0]
    assert [identity.name for identity in identities] == ["full", "state"], "0 is of token pages"
    for identity, arena in zip(identities, arenas, strict=True):
        assert Cut.of(identity).page_bytes(ranks) == arena.page_bytes


def test_float8_heads_fit_equal_sizes_only() -> None:
    """The scale of a token's keys is of all that a rank has of them."""

    def identity(ranks: int) -> list[CacheGroupIdentity]:
        mesh = tensor_parallel_mesh(ranks)
        group = head_group(HEADS, 3, mesh, torch.float8_e4m3fn)
        identities, arenas = seen(group)
        assert Cut.of(identities[0]).page_bytes(ranks) == arenas[0].page_bytes
        return identities

    one, two = (cache_identity("m", PAGE, identity(ranks)) for ranks in (1, 2))
    difference = differing_field(one, two)
    assert difference is not None and difference.startswith("groups[full].blocks: ours 1 heads")
    assert differing_field(two, cache_identity("m", PAGE, identity(2))) is None


def test_states_are_cut_by_key_heads_and_value_heads() -> None:
    whole = seen(latents(1, torch.float32))[0][1]
    blocks = [(block.heads, block.head_bytes) for block in whole.blocks]
    # Three past inputs of each channel, then a matrix a value head; float32.
    assert blocks == [(4, 4 * 6 * 3), (4, 4 * 6 * 3), (8, 4 * 10 * 3), (8, 4 * 6 * 10)]
