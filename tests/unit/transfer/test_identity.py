"""Every field of a cache identity counts, and a difference is named."""

import pytest

from baton.v1.kv_pb2 import CacheGroupIdentity, CacheIdentity, HeadBlock
from baton_transfer import cache_identity, differing_field, new_epoch


def identity(**changes: object) -> CacheIdentity:
    group = CacheGroupIdentity(name="full", dtype="float32", layers=2, page_bytes=4096)
    heads = int(str(changes.pop("heads", 4)))
    group.blocks.append(HeadBlock(heads=heads, head_bytes=128 // heads))
    for name in ("dtype", "layers", "page_bytes"):
        if name in changes:
            setattr(group, name, changes.pop(name))
    made = cache_identity("model", 16, [group] * int(str(changes.pop("copies", 1))))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"wire_version": 9}, "wire_version"),
        ({"model_fingerprint": "other"}, "model_fingerprint"),
        ({"page_size": 32}, "page_size"),
        ({"dtype": "bfloat16"}, "groups[full].dtype"),
        ({"layers": 3}, "groups[full].layers"),
        ({"page_bytes": 1}, "groups[full].page_bytes"),
        ({"heads": 2}, "groups[full].blocks"),
        ({"copies": 2}, "groups"),
    ],
)
def test_a_difference_is_named(change: dict[str, object], name: str) -> None:
    found = differing_field(identity(), identity(**change))
    assert found is not None
    assert found.partition(":")[0] == name
    assert differing_field(identity(**change), identity(**change)) is None


def test_epochs_differ_and_are_never_zero() -> None:
    epochs = {new_epoch() for _ in range(100)}
    assert len(epochs) == 100
    assert 0 not in epochs
