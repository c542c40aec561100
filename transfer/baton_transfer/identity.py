"""Which caches can exchange pages, and which life of a process is meant."""

import secrets
from collections.abc import Iterable

from baton.v1.kv_pb2 import CacheGroupIdentity, CacheIdentity

WIRE_VERSION = 1


def cache_identity(
    model_fingerprint: str, page_size: int, groups: Iterable[CacheGroupIdentity]
) -> CacheIdentity:
    """The identity of a cache. page_size: tokens."""
    return CacheIdentity(
        wire_version=WIRE_VERSION,
        model_fingerprint=model_fingerprint,
        page_size=page_size,
        groups=groups,
    )


def new_epoch() -> int:
    """A number for this life of the process: never 0, never that of an earlier life."""
    return secrets.randbits(63) | 1


def differing_field(ours: CacheIdentity, theirs: CacheIdentity) -> str | None:
    """The first field in which two identities differ, with both values; None when equal."""
    for name in ("wire_version", "model_fingerprint", "page_size"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name}: ours {getattr(ours, name)!r}, theirs {getattr(theirs, name)!r}"
    our_names = [group.name for group in ours.groups]
    their_names = [group.name for group in theirs.groups]
    if our_names != their_names:
        return f"groups: ours {our_names}, theirs {their_names}"
    for mine, other in zip(ours.groups, theirs.groups, strict=True):
        for name in ("dtype", "layers", "blocks", "page_bytes", "snapshot_every"):
            ours_is, theirs_is = _told(mine, name), _told(other, name)
            if ours_is != theirs_is:
                return f"groups[{mine.name}].{name}: ours {ours_is}, theirs {theirs_is}"
    return None


def _told(group: CacheGroupIdentity, name: str) -> str:
    if name == "blocks":
        return " + ".join(f"{block.heads} heads of {block.head_bytes} B" for block in group.blocks)
    return repr(getattr(group, name))
