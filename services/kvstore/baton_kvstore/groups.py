"""Cache groups beside the token pages: whose pages they are, and what they are worth.

Routers tell of token pages. A page of group g stands at the end of one of them, and its identity is
that one's, salted by the group. So whatever is known of a token page is known of what stands at its
end: no message need say of which group a page is, and a page that no turn has had is of none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from baton.v1.kv_pb2 import CacheIdentity
from baton_kvstore.directory import HASH_BYTES, PageHash
from baton_kvstore.judge import Judge
from baton_kvstore.worth import worth

_SALT = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
_WORD = (1 << 64) - 1


class PageJudge(Protocol):
    """What a tier of one group asks about its pages."""

    def admits(self, page: PageHash) -> bool: ...

    def worth(self, page: PageHash, *, copy: bool) -> float: ...

    def tenant(self, page: PageHash) -> bytes: ...


def in_group(page: PageHash, group: int) -> PageHash:
    """What a token page's identity is in a group (`cache_group.h`); its own inverse."""
    salt = (group * _SALT[0] & _WORD) | (group * _SALT[1] & _WORD) << 64
    return (int.from_bytes(page, "little") ^ salt).to_bytes(HASH_BYTES, "little")


class StateJudge:
    """A Judge of states: each is as likely to be wanted as the token page that it stands after,
    and to lose it is to compute everything up to there."""

    def __init__(self, judge: Judge, group: int, page_bytes: int) -> None:
        self._judge = judge
        self._group = group
        self._page_bytes = page_bytes

    def admits(self, page: PageHash) -> bool:
        """Whether a tier takes the page; never one that no turn has had."""
        return self._judge.admits(in_group(page, self._group))

    def worth(self, page: PageHash, *, copy: bool) -> float:
        """Of keeping the page in a tier; `copy`: another tier has it too."""
        tokens = in_group(page, self._group)
        seen = self._judge.sightings.of(tokens)
        prefix = replace(seen, index=0, length=seen.index + 1)
        live = self._judge.sessions.live(tokens)
        return worth(prefix, live, self._judge.page_tokens, self._page_bytes, copy=copy)

    def tenant(self, page: PageHash) -> bytes:
        """Empty when nobody has said."""
        return self._judge.tenant(in_group(page, self._group))


def beside(chain: Sequence[PageHash], group: int) -> list[PageHash]:
    """What stands at the ends of these pages in a group; they themselves in group 0."""
    return list(chain) if not group else [in_group(page, group) for page in chain]


def shares(identity: CacheIdentity, capacity_bytes: int) -> list[int]:
    """Pages of each group that fit: each group gets bytes in proportion to those it has for a
    token, so that all of them reach equally far. A state counts for the tokens between two."""
    if len(identity.groups) == 1:
        page_bytes = identity.groups[0].page_bytes
        return [capacity_bytes // page_bytes if page_bytes else 0]
    per_token = [
        group.page_bytes / (group.snapshot_every or identity.page_size) for group in identity.groups
    ]
    tokens = capacity_bytes / sum(per_token)
    return [
        int(tokens // (group.snapshot_every or identity.page_size)) for group in identity.groups
    ]
