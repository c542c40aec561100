"""What a prefill or decode worker measures: its pool, its steps, its transfers."""

from typing import Protocol

from baton_telemetry.registry import STEP_BUCKETS, RoleMetrics, Total

# The first four add up to the pool's size; leased pages are part of the referenced ones and
# quarantined pages part of the owned ones.
PAGE_STATES = ("free", "cached", "referenced", "owned", "leased", "quarantined")


class PoolStats(Protocol):
    """The scheduler's figures, read once a step (baton_scheduler.Stats has this shape)."""

    @property
    def total_pages(self) -> int: ...
    @property
    def free_pages(self) -> int: ...
    @property
    def cached_pages(self) -> int: ...
    @property
    def owned_pages(self) -> int: ...
    @property
    def referenced_pages(self) -> int: ...
    @property
    def leased_pages(self) -> int: ...
    @property
    def quarantined_pages(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def computed_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def reused_tokens(self) -> int: ...
    @property
    def fetched_tokens(self) -> int: ...
    @property
    def retractions(self) -> int: ...
    @property
    def draft_tokens(self) -> int: ...
    @property
    def accepted_draft_tokens(self) -> int: ...


class WorkerMetrics(RoleMetrics):
    """One set for both roles; what a role never does stays at zero."""

    def __init__(self) -> None:
        super().__init__()
        self._running = self._gauge("num_requests_running", "Requests in the batch.")
        self._waiting = self._gauge("num_requests_waiting", "Requests queued.")
        self._usage = self._gauge(
            "kv_cache_usage_perc", "Share of pages that cannot be had for a new request, 0 to 1."
        )
        self._pages = self._gauge("pool_pages", "Pages of the pool by state.", "state")
        self._reclaimable = self._gauge(
            "pool_pages_reclaimable", "Pages that a new request could have: free or only cached."
        )
        self._beside = self._gauge(
            "group_pages",
            "Pages of the cache groups beside the tokens', by state.",
            "group",
            "state",
        )
        self._computed = Total(
            self._counter("prompt_tokens_computed_total", "Prompt tokens run through the model.")
        )
        self._reused = Total(
            self._counter("prompt_tokens_reused_total", "Prompt tokens held already.")
        )
        self._fetched = Total(
            self._counter("prompt_tokens_fetched_total", "Prompt tokens whose pages were pulled.")
        )
        self._generated = Total(self._counter("generation_tokens_total", "Tokens sampled."))
        self._retractions = Total(
            self._counter("num_preemptions_total", "Requests retracted for want of pages.")
        )
        self._drafted = Total(
            self._counter("spec_decode_num_draft_tokens_total", "Tokens guessed and verified.")
        )
        self._accepted = Total(
            self._counter(
                "spec_decode_num_accepted_tokens_total", "Guesses that were what was sampled."
            )
        )
        self._step = self._histogram("step_seconds", "One step, plan to tokens.", STEP_BUCKETS)
        self._pages_moved = self._counter(
            "pages_moved_total", "Pages pulled, by where they came from.", "holder"
        )
        self._bytes_moved = self._counter(
            "bytes_moved_total", "Bytes pulled, by where they came from.", "holder"
        )
        self._transfer = self._histogram(
            "transfer_seconds", "One pull, lease to verdict.", STEP_BUCKETS
        )
        self._transfer_failures = self._counter(
            "transfer_failures_total", "Pulls that brought less than was asked for.", "cause"
        )
        self._directory_failures = self._counter(
            "directory_failures_total", "Updates that the directory did not take."
        )
        self._failed = self._counter("request_failure_total", "Requests failed here.", "reason")

    def pool(self, stats: PoolStats) -> None:
        """Takes over the scheduler's figures. Totals become counters' increments."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        available = stats.free_pages + stats.cached_pages
        self._reclaimable.set(available)
        self._usage.set(1 - available / stats.total_pages if stats.total_pages else 0)
        for state in PAGE_STATES:
            self._pages.labels(state).set(getattr(stats, f"{state}_pages"))
        self._computed.reached(stats.computed_tokens)
        self._reused.reached(stats.reused_tokens)
        self._fetched.reached(stats.fetched_tokens)
        self._generated.reached(stats.generated_tokens)
        self._retractions.reached(stats.retractions)
        self._drafted.reached(stats.draft_tokens)
        self._accepted.reached(stats.accepted_draft_tokens)

    def group(self, number: int, **pages: int) -> None:
        """Takes over the figures of a cache group beside the tokens: how many pages in each state
        (all of PAGE_STATES but quarantined)."""
        for state, count in pages.items():
            self._beside.labels(str(number), state).set(count)

    def step(self, seconds: float) -> None:
        """One step has run."""
        self._step.observe(seconds)

    def pulled(self, *, holder: str, pages: int, moved_bytes: int, seconds: float) -> None:
        """Pages arrived from `holder` and were valid."""
        self._pages_moved.labels(holder).inc(pages)
        self._bytes_moved.labels(holder).inc(moved_bytes)
        self._transfer.observe(seconds)

    def transfer_failed(self, cause: str) -> None:
        """A pull ended short; `cause` is one word (expired, checksum, disconnected, ...)."""
        self._transfer_failures.labels(cause).inc()

    def directory_failed(self) -> None:
        """An update did not reach the directory (it is tried again)."""
        self._directory_failures.inc()

    def request_failed(self, reason: str) -> None:
        """A request failed on this worker."""
        self._failed.labels(reason).inc()
