"""A step's figures as metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from baton_engine import PoolState, StepEvents
from baton_telemetry import WorkerMetrics


class Measuring:
    """Takes the engine's figures over into the metrics."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._directory_failures = 0

    def request_failed(self, reason: str) -> None:
        """A request was refused or failed; `reason` is one word."""
        self._metrics.request_failed(reason)

    def step(self, events: StepEvents) -> None:
        """After every step."""
        self.pool(events.pool)
        times = events.times
        if times is not None:
            computed = times.forward_us + times.sample_us + times.draft_us
            self._metrics.step((times.plan_us + computed + times.complete_us) / 1e6)
        for pull in events.pulls:
            if pull.pages:
                self._metrics.pulled(
                    holder=pull.holder,
                    pages=pull.pages,
                    moved_bytes=pull.moved_bytes,
                    seconds=pull.seconds,
                )
            if pull.failure:
                self._metrics.transfer_failed(pull.failure)

    def directory(self, failures: int) -> None:
        """Updates that the directory has not taken, since the start."""
        for _ in range(failures - self._directory_failures):
            self._metrics.directory_failed()
        self._directory_failures = failures

    def pool(self, pool: PoolState) -> None:
        """The state of the pool, and the totals that are kept with it."""
        self._metrics.pool(_Figures.of(pool))
        for number, pages in enumerate(pool.beside, start=1):
            self._metrics.group(number, **asdict(pages))


@dataclass(frozen=True, slots=True)
class _Figures:
    """baton_telemetry.PoolStats: the scheduler's words, where the engine's differ."""

    total_pages: int
    free_pages: int  # not the cached ones
    cached_pages: int
    owned_pages: int
    referenced_pages: int
    leased_pages: int
    quarantined_pages: int
    running: int
    waiting: int
    computed_tokens: int
    generated_tokens: int
    reused_tokens: int
    fetched_tokens: int
    retractions: int
    draft_tokens: int
    accepted_draft_tokens: int

    @classmethod
    def of(cls, pool: PoolState) -> _Figures:
        return cls(
            total_pages=pool.total_pages,
            free_pages=pool.free_pages - pool.cached_pages,
            cached_pages=pool.cached_pages,
            owned_pages=pool.owned_pages,
            referenced_pages=pool.referenced_pages,
            leased_pages=pool.leased_pages,
            quarantined_pages=pool.quarantined_pages,
            running=pool.running,
            waiting=pool.waiting,
            computed_tokens=pool.computed_tokens,
            generated_tokens=pool.generated_tokens,
            reused_tokens=pool.reused_tokens,
            fetched_tokens=pool.fetched_tokens,
            retractions=pool.retractions,
            draft_tokens=pool.draft_tokens,
            accepted_draft_tokens=pool.accepted_draft_tokens,
        )
