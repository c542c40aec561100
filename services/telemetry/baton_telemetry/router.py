"""What the router measures: requests as their clients see them."""

from baton_telemetry.registry import (
    REQUEST_BUCKETS,
    TOKEN_BUCKETS,
    TPOT_BUCKETS,
    TTFT_BUCKETS,
    RoleMetrics,
)


class RouterMetrics(RoleMetrics):
    """Routes and finish reasons are lower case: local, remote, restore; eos, length, ..."""

    def __init__(self) -> None:
        super().__init__()
        self._success = self._counter(
            "request_success_total", "Requests that finished.", "route", "finished_reason"
        )
        self._failure = self._counter(
            "request_failure_total", "Requests that were refused or failed.", "reason"
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Accepted to first token.", TTFT_BUCKETS, "route"
        )
        self._tpot = self._histogram(
            "time_per_output_token_seconds",
            "Mean time between a request's tokens after the first.",
            TPOT_BUCKETS,
            "route",
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Accepted to finished.", REQUEST_BUCKETS, "route"
        )
        self._prompt_size = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS
        )
        self._output_size = self._histogram(
            "request_generation_tokens", "Generated tokens of a request.", TOKEN_BUCKETS
        )
        self._prompt = self._counter("prompt_tokens_total", "Prompt tokens accepted.")
        self._cached = self._counter(
            "prompt_tokens_cached_total", "Prompt tokens that nobody had to compute."
        )
        self._generated = self._counter("generation_tokens_total", "Tokens sent to clients.")
        self._failovers = self._counter(
            "failovers_total", "Attempts that were moved to another worker.", "role"
        )
        self.running = self._gauge("num_requests_running", "Requests accepted and not finished.")
        self.workers = self._gauge("workers", "Workers connected.", "role")

    def accepted(self, prompt_tokens: int) -> None:
        """A request passed validation."""
        self.running.inc()
        self._prompt.inc(prompt_tokens)
        self._prompt_size.observe(prompt_tokens)

    def finished(
        self,
        *,
        route: str,
        reason: str,
        cached_tokens: int,
        generated_tokens: int,
        ttft_s: float,
        e2e_s: float,
    ) -> None:
        """A request that was accepted has ended well."""
        self.running.dec()
        self._success.labels(route, reason).inc()
        self._cached.inc(cached_tokens)
        self._generated.inc(generated_tokens)
        self._output_size.observe(generated_tokens)
        self._e2e.labels(route).observe(e2e_s)
        if generated_tokens > 0:
            self._ttft.labels(route).observe(ttft_s)
        if generated_tokens > 1:
            self._tpot.labels(route).observe((e2e_s - ttft_s) / (generated_tokens - 1))

    def failed(self, reason: str, *, accepted: bool) -> None:
        """A request was refused, failed, or was cancelled; `accepted` says whether it had begun."""
        if accepted:
            self.running.dec()
        self._failure.labels(reason).inc()

    def failover(self, role: str) -> None:
        """A worker of `role` (prefill, decode) was lost under a request that went on elsewhere."""
        self._failovers.labels(role).inc()
