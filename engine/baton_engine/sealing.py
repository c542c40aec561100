"""What a step sealed: leased while its checksums are taken, then listed for readers.

The lease is what makes the listing true. Without it a page could be given to another request
between its seal and its hash, and the hash of that one's bytes be bound to this identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton_engine.core import EngineCore, now_us
from baton_engine.events import Hashes
from baton_scheduler import Completion, Verdict

_TTL_US = 60_000_000


@dataclass(frozen=True, slots=True)
class SealedPages:
    """Of one cache group, under a lease of our own."""

    group: int
    lease: int
    identities: Hashes
    pages: NDArray[np.int32]


def lease_sealed(core: EngineCore, completion: Completion) -> list[SealedPages]:
    """Keep what was sealed where it is. Lock held."""
    if core.checksums is None or not len(completion.sealed_pages):
        return []
    leased = []
    for group in np.unique(completion.sealed_groups).tolist():
        identities = completion.sealed_hashes[completion.sealed_groups == group].copy()
        lease = core.scheduler.grant(identities, now_us(), _TTL_US, group=group)
        if lease.id:  # of pages that are gone already there is none
            pages = lease.pages.copy()
            leased.append(SealedPages(group, lease.id, identities[: len(pages)], pages))
    return leased


def list_sealed(core: EngineCore, leased: list[SealedPages]) -> None:
    """Take the checksums, end the leases, and list what they held. Takes the lock."""
    if core.checksums is None or not leased:
        return
    sums = [core.checksums.of(sealed.pages, sealed.group) for sealed in leased]
    with core.lock:
        now = now_us()
        verdicts = [core.scheduler.release(sealed.lease, now) for sealed in leased]
    for sealed, checksums, verdict in zip(leased, sums, verdicts, strict=True):
        if verdict is Verdict.VALID:
            core.checksums.tell(sealed.identities, sealed.pages, checksums, sealed.group)
