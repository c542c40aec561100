"""What the kvstore measures: the directory's size and the tiers' traffic."""

from baton_telemetry.registry import STEP_BUCKETS, RoleMetrics


class KvstoreMetrics(RoleMetrics):
    """Tiers are dram and nvme; of groups beside the token pages, with _ and the group's name."""

    def __init__(self) -> None:
        super().__init__()
        self.directory_pages = self._gauge("directory_pages", "Distinct pages that somebody holds.")
        self.directory_entries = self._gauge("directory_entries", "Pairs of page and holder.")
        self.holders = self._gauge("directory_holders", "Holders alive.")
        self.watchers = self._gauge("directory_watchers", "Routers that follow the directory.")
        self._publishes = self._counter("directory_publishes_total", "Updates taken.")
        self._resyncs = self._counter(
            "directory_resyncs_total", "Updates answered with a demand for everything."
        )
        self._expired = self._counter(
            "directory_holders_expired_total", "Holders forgotten after their silence."
        )
        self._tier_pages = self._gauge("tier_pages", "Pages in a tier.", "tier")
        self._tier_bytes = self._gauge("tier_bytes", "Bytes of the pages in a tier.", "tier")
        self._tier_capacity = self._gauge("tier_capacity_pages", "Size of a tier.", "tier")
        self._offloaded = self._counter("offloaded_pages_total", "Pages taken in.", "tier")
        self._offloaded_bytes = self._counter("offloaded_bytes_total", "Bytes taken in.", "tier")
        self._evicted = self._counter("tier_evicted_pages_total", "Pages let go.", "tier")
        self._asked = self._counter("tier_queries_total", "Pages asked for.", "tier")
        self._hits = self._counter("tier_hits_total", "Pages asked for and held.", "tier")
        self._offload_seconds = self._histogram(
            "offload_seconds", "One offload, lease to verdict.", STEP_BUCKETS
        )
        self._failures = self._counter(
            "offload_failures_total", "Offloads that brought less than was asked for.", "cause"
        )

        self._restored = self._counter(
            "tier_restored_pages_total", "Pages brought up from a tier to DRAM.", "tier"
        )
        self._dropped = self._counter(
            "tier_dropped_pages_total", "Pages that were not what they should be.", "tier", "cause"
        )
        self._refusals = self._counter(
            "disk_refusals_total", "Times that the disk took no pages.", "cause"
        )
        self.sessions = self._gauge("session_leases", "Sessions with a lease.")
        self.session_pages = self._gauge("session_lease_pages", "Pages that leases name.")

    def published(self, *, resync: bool) -> None:
        """A holder's update was taken, or answered with a demand to resync."""
        (self._resyncs if resync else self._publishes).inc()

    def holder_expired(self) -> None:
        """A holder was silent for too long."""
        self._expired.inc()

    def tier(self, tier: str, *, pages: int, held_bytes: int, capacity_pages: int) -> None:
        """The state of a tier."""
        self._tier_pages.labels(tier).set(pages)
        self._tier_bytes.labels(tier).set(held_bytes)
        self._tier_capacity.labels(tier).set(capacity_pages)

    def offloaded(self, tier: str, *, pages: int, moved_bytes: int, seconds: float) -> None:
        """Pages came into a tier."""
        self._offloaded.labels(tier).inc(pages)
        self._offloaded_bytes.labels(tier).inc(moved_bytes)
        self._offload_seconds.observe(seconds)

    def offload_failed(self, cause: str) -> None:
        """An offload ended short; `cause` is one word."""
        self._failures.labels(cause).inc()

    def evicted(self, tier: str, pages: int) -> None:
        """Pages left a tier."""
        self._evicted.labels(tier).inc(pages)

    def asked(self, tier: str, *, pages: int, held: int) -> None:
        """A reader wanted `pages`; `held` of them could be leased."""
        self._asked.labels(tier).inc(pages)
        self._hits.labels(tier).inc(held)

    def restored(self, tier: str, pages: int) -> None:
        """Pages came up from a tier, whole."""
        self._restored.labels(tier).inc(pages)

    def dropped(self, tier: str, cause: str, pages: int) -> None:
        """Pages of a tier were torn or changed, and are held no more; `cause` is one word."""
        if pages:
            self._dropped.labels(tier, cause).inc(pages)

    def disk_refused(self, cause: str) -> None:
        """The disk is full or failed; `cause` is one word."""
        self._refusals.labels(cause).inc()
