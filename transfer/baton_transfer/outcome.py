"""How reads and pulls end."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum


class ReadFailure(StrEnum):
    """Why a read brought less than was asked for."""

    DISCONNECTED = "disconnected"  # the holder's process or its connection is gone
    DEADLINE = "deadline"  # too slow; the agent was destroyed, nothing writes any more
    CHECKSUM = "checksum"  # a page's bytes are not those that the holder sealed
    STOPPED = "stopped"  # the caller set `stop`
    UNREADABLE = "unreadable"  # the holder's memory description cannot be used
    CLOSED = "closed"  # the reader was closed


@dataclass(frozen=True, slots=True)
class ReadOutcome:
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
    return replace(
        worst,
        moved_bytes=sum(outcome.moved_bytes for outcome in outcomes),
        verified=all(outcome.verified for outcome in outcomes),
    )


def ended_at_once(failure: ReadFailure, detail: str) -> Future[ReadOutcome]:
    """A read that does not begin."""
    future: Future[ReadOutcome] = Future()
    future.set_result(ReadOutcome(0, 0, 0.0, failure, detail))
    return future


class PullFailure(StrEnum):
    """Why a pull brought less than was asked for."""

    UNREACHABLE = "unreachable"  # no answer from the holder's KvPeerService
    REFUSED = "refused"  # it answered with a refusal: INCOMPATIBLE_PEER, DRAINING ...
    NOT_HELD = "not_held"  # it has fewer of the pages than were asked for
    READ = "read"  # see Pulled.read_failure
    EXPIRED = "expired"  # the verdict: the pages may have changed while they were read


@dataclass(frozen=True, slots=True)
class Pulled:
    """The end of a pull. Terminal, as ReadOutcome is; [0:arrived] may be used."""

    arrived: int
    moved_bytes: int
    seconds: float
    failure: PullFailure | None = None
    read_failure: ReadFailure | None = None
    detail: str = ""
