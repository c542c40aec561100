"""How reads and pulls end."""

from collections.abc import Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import NamedTuple


class ReadFailure(StrEnum):
    """Why a read brought less than was asked for."""

    DISCONNECTED = "disconnected"  # the holder's process or its connection is gone
    DEADLINE = "deadline"  # too slow; the agent was destroyed, nothing writes any more
    CHECKSUM = "checksum"  # a page's bytes are not those that the holder sealed
    STOPPED = "stopped"  # the caller set `stop`
    UNREADABLE = "unreadable"  # the holder's memory description cannot be used
    CLOSED = "closed"  # the reader was closed


class ReadOutcome(NamedTuple):
    """The end of a read. Terminal: nothing writes into the target pages any more.

    Pages [0:arrived] are whole and, where checksums were given, verified. The
    contents of the others are undefined.
    """

    arrived: int
    moved_bytes: int  # of the arrived pages
    seconds: float
    failure: ReadFailure | None = None
    detail: str = ""
    # The arrived pages matched checksums: they are accepted without the holder's verdict.
    verified: bool = False


def together(outcomes: Sequence[ReadOutcome]) -> ReadOutcome:
    """Of reads whose pages are of use together only: the worst, with the bytes of all. They have
    proven themselves when each of them has."""
    worst = min(outcomes, key=lambda outcome: (outcome.arrived, outcome.failure is None))
    return worst._replace(
        moved_bytes=sum(outcome.moved_bytes for outcome in outcomes),
        verified=all(outcome.verified for outcome in outcomes),
    )


def ended_at_once(failure: ReadFailure, detail: str) -> ReadOutcome:
    """A read that does not begin."""
    return ReadOutcome(0, 0, 0.0, failure, detail)


def future_of(read: ReadOutcome | Future[ReadOutcome]) -> Future[ReadOutcome]:
    """For those who wait for a read whether it is over or not."""
    if isinstance(read, Future):
        return read
    future: Future[ReadOutcome] = Future()
    future.set_result(read)
    return future


class PullFailure(StrEnum):
    """Why a pull brought less than was asked for."""

    UNREACHABLE = "unreachable"  # no answer from the holder's KvPeerService
    REFUSED = "refused"  # it answered with a refusal: INCOMPATIBLE_PEER, DRAINING ...
    NOT_HELD = "not_held"  # it has fewer of the pages than were asked for
    READ = "read"  # see Pulled.read_failure
    EXPIRED = "expired"  # the verdict: the pages may have changed while they were read


class Pulled(NamedTuple):
    """The end of a pull. Terminal, as ReadOutcome is; [0:arrived] may be used."""

    arrived: int
    moved_bytes: int
    seconds: float
    failure: PullFailure | None = None
    read_failure: ReadFailure | None = None
    detail: str = ""

    def and_then(self, part: "Pulled", seconds: float) -> "Pulled":
        """This, and the next part of the same pull; `seconds` of both."""
        return Pulled(
            self.arrived + part.arrived,
            self.moved_bytes + part.moved_bytes,
            seconds,
            part.failure,
            part.read_failure,
            part.detail,
        )


def nothing(failure: PullFailure, detail: str) -> Pulled:
    """A pull that brought no page."""
    return Pulled(0, 0, 0.0, failure, None, detail)


def judged(outcome: ReadOutcome, valid: bool | None, wanted: int, address: str) -> Pulled:
    """What may be used of a read, given the holder's verdict on its lease (None: not heard).

    Pages that match the checksums granted with the lease are what the holder had sealed under
    their identities, whatever became of the lease and of the holder: the verdict is not asked.
    """
    if not outcome.verified:
        if valid is None:
            return nothing(PullFailure.UNREACHABLE, f"{address}: no verdict on what was read")
        if not valid:
            return nothing(PullFailure.EXPIRED, f"{address}: the lease ended during the read")
    failure = None
    detail = outcome.detail
    if outcome.failure is not None:
        failure = PullFailure.READ
    elif outcome.arrived < wanted:
        failure = PullFailure.NOT_HELD
        detail = f"{address} has {outcome.arrived} of {wanted} pages"
    return Pulled(
        outcome.arrived, outcome.moved_bytes, outcome.seconds, failure, outcome.failure, detail
    )
