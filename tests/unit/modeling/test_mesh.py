"""Meshes, their axes and placements on them."""

from __future__ import annotations

import pytest

from baton_modeling import Axis, Mesh, MeshError, tensor_parallel_mesh
from baton_modeling.placements import Partial, Replicate, Shard, describe, resolve


def test_axes_of_a_view_split_the_ranks() -> None:
    mesh = Mesh({"dp": 2, "attn_tp": 2, "ep": 4}, rank=2)
    assert mesh.world_size == 4
    assert mesh.axis("attn_tp").peers(2) == (2, 3)
    assert mesh.axis("dp").peers(2) == (0, 2)
    assert mesh.axis("ep").peers(2) == (0, 1, 2, 3)
    assert [mesh.axis("dp").coordinate(r) for r in range(4)] == [0, 0, 1, 1]


def test_every_rank_is_in_one_group_of_an_axis() -> None:
    mesh = Mesh({"dp": 2, "attn_tp": 3, "ep": 2, "moe_tp": 3})
    for axis in mesh.products():
        groups = {axis.peers(rank) for rank in range(mesh.world_size)}
        assert sorted(rank for group in groups for rank in group) == list(range(6))


def test_axes_are_the_same_ranks_under_two_names() -> None:
    mesh = tensor_parallel_mesh(4)
    assert mesh.axis("attn_tp") == mesh.axis("vocab")
    assert mesh.products() == [Axis("attn_tp", 4, 1)]


@pytest.mark.parametrize(
    ("axes", "rank", "message"),
    [
        ({"tensor": 2}, 0, "'tensor' is unknown; the axes are dp, attn_tp"),
        ({"attn_tp": 0}, 0, "size 0; it must be at least 1"),
        ({"attn_tp": 4, "ep": 3}, 0, "ep x moe_tp make 3 ranks, which does not divide the 4"),
        ({"attn_tp": 2}, 2, "rank 2 is outside the mesh of 2 ranks"),
    ],
)
def test_impossible_meshes(axes: dict[str, int], rank: int, message: str) -> None:
    with pytest.raises(MeshError, match=message):
        Mesh(axes, rank)


def test_partial_sums_of_neighbouring_axes_join() -> None:
    mesh = Mesh({"attn_tp": 4, "ep": 2, "moe_tp": 2})
    placed = resolve({"ep": Partial(), "moe_tp": Partial()}, mesh)
    assert placed == resolve({"attn_tp": Partial()}, mesh)
    assert describe(placed) == "ep*moe_tp:P"
    apart = resolve({"ep": Partial(), "moe_tp": Shard(1)}, mesh)
    assert len(apart) == 2


def test_axes_of_one_rank_vanish() -> None:
    mesh = Mesh({"attn_tp": 2})
    assert resolve({"vocab": Partial(), "attn_tp": Replicate()}, mesh) == {}
    assert describe({}) == "R"
