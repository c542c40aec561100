"""What a process that holds pages must be able to do; KvPeerServicer speaks for it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import Handover


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """Pages that cannot change before the lease ends.

    lease: 0 when nothing was granted. pages: int32 [m], the leading m of the asked ones.
    checksums: uint64 [m], or None when the holder keeps none. ttl_ms: how long from now.
    """

    lease: int
    pages: NDArray[np.int32]
    checksums: NDArray[np.uint64] | None
    ttl_ms: int


class PageHolder(Protocol):
    """Called on the event loop; every method but `watch` answers without waiting.

    The holder has its own clock. It never takes a page back from a lease that
    has neither been released nor expired.
    """

    def grant(self, reader: str, hashes: NDArray[np.uint8], ttl_ms: int, group: int) -> LeaseGrant:
        """Leases the longest held prefix of `hashes`, uint8 [n, 16] in chain order, all of one
        cache group: an index of CacheIdentity.groups.

        The holder may grant another time than `ttl_ms`, within its own bounds.
        """

    def renew(self, leases: Sequence[int], ttl_ms: int) -> list[int]:
        """Moves the deadlines; returns those leases that have expired (or never were)."""

    def release(self, leases: Sequence[int]) -> list[bool]:
        """Ends leases. For each: whether its pages could not change while it lasted."""

    def handed_over(self, request_id: str, attempt: int) -> None:
        """The reader has all it wants of this request; unknown ones are ignored."""

    def watch(self, reader: str) -> AsyncIterator[Sequence[Handover]]:
        """Hand-overs for `reader`: the state of every live one, then batches of changes.

        Cumulative, so a slow consumer is told the latest state, not every state.
        A holder without hand-overs (the kvstore) returns an iterator that ends.
        """
