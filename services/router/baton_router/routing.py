"""The routing policy: which decode worker, which route, which prefill worker, who leases pages.

Everything is estimated in seconds until the first token. For a prompt of N
tokens of which a decode worker D holds h, and a prefill worker P holds p:

    local    (N - h) / local rate
    restore  (N - s) / local rate + bytes(s - h) / bandwidth + overhead
    remote   max((N - p') / remote rate + P's queue, bytes(N - h) / bandwidth) + overhead

where s is the longest prefix that anybody holds, and p' is max(p, s) when P
gains by fetching what it lacks first (then that fetch is added). At least one
token is always computed: the last one, whose logits are the first token.

D's own load is added to each, and the cheapest (D, route) wins. A page that is
known to nobody is no page; a hint that proves stale costs time, never truth.

Pure functions over what the caller saw; nothing here talks to anybody.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from baton.v1 import inference_pb2 as pb
from baton_router.config import RoutingConfig
from baton_router.page_index import Held, Holder


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the policy sees it."""

    name: str
    holder: Holder
    max_context: int
    total_pages: int
    free_pages: int  # free or evictable
    running: int
    waiting: int
    pending_tokens: int = 0  # prompt tokens given to it and not yet computed


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be run."""

    tokens: int  # to have in the cache before the first new token
    max_new_tokens: int
    page_size: int
    bytes_per_token: float
    holders: Sequence[Held]  # of its chain, best first
    session_worker: str = ""  # the decode worker of the session's last turn

    @property
    def usable_pages(self) -> int:
        """Full pages that may be reused: the last token is always computed."""
        return (self.tokens - 1) // self.page_size

    def pages(self, new_tokens: int) -> int:
        """Pages that the prompt and so many new tokens fill."""
        return -(-(self.tokens + new_tokens) // self.page_size)

    def cached(self, pages: int) -> int:
        """Tokens that need no computing when `pages` leading pages are there."""
        return min(pages, self.usable_pages) * self.page_size


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision."""

    decode: str
    prefill: str | None  # a remote route's
    route: pb.Route
    estimate_s: float
    cached_tokens: int  # prompt tokens that nobody will compute, if every hint holds
    decode_sources: tuple[Held, ...] = ()
    prefill_sources: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prefill:
    worker: WorkerView
    seconds: float
    cached: int
    sources: tuple[Held, ...]


def choose(
    prompt: Prompt,
    decode: Sequence[WorkerView],
    prefill: Sequence[WorkerView],
    costs: RoutingConfig,
) -> Plan | None:
    """The best plan, or None when no decode worker can take the request."""
    fitting = [worker for worker in decode if _fits(prompt, worker, prompt.max_new_tokens)]
    held = {h.holder.name: h.pages for h in prompt.holders}
    best_prefill = _best_prefill(prompt, prefill, held, costs)
    plans = [
        _best_route(prompt, worker, held.get(worker.holder.name, 0), best_prefill, costs)
        for worker in fitting
    ]
    # Among equals the least used; then by name, so that the choice can be repeated.
    load = {worker.name: worker.running + worker.waiting for worker in fitting}
    return min(plans, key=lambda p: (p.estimate_s, load[p.decode], p.decode), default=None)


def _fits(prompt: Prompt, worker: WorkerView, new_tokens: int) -> bool:
    fits = prompt.pages(new_tokens) <= worker.total_pages
    return fits and prompt.tokens + new_tokens <= worker.max_context


def _best_route(
    prompt: Prompt, worker: WorkerView, held: int, prefill: _Prefill | None, costs: RoutingConfig
) -> Plan:
    here = prompt.cached(held)
    queue = worker.pending_tokens / costs.local_tokens_per_s
    sources = _longer(prompt, held, worker.holder.name)
    routes = [
        Plan(
            worker.name,
            None,
            pb.ROUTE_LOCAL,
            queue + (prompt.tokens - here) / costs.local_tokens_per_s,
            here,
        )
    ]
    if sources:
        there = prompt.cached(sources[0].pages)
        fetch = _fetch_s(prompt, there - here, costs)
        compute = (prompt.tokens - there) / costs.local_tokens_per_s
        routes.append(
            Plan(worker.name, None, pb.ROUTE_RESTORE, queue + fetch + compute, there, sources)
        )
    computed_here = min(routes, key=lambda plan: plan.estimate_s)
    if prefill is None:
        chosen = computed_here
    else:
        move = (prompt.tokens - here) * prompt.bytes_per_token / costs.transfer_bytes_per_s
        remote = Plan(
            worker.name,
            prefill.worker.name,
            pb.ROUTE_REMOTE,
            max(prefill.seconds, move) + costs.handover_overhead_s,
            prefill.cached,
            sources,
            prefill.sources,
        )
        chosen = _threshold(prompt, computed_here, remote, costs)
    return _with_load(chosen, prompt, worker, held, costs)


def _threshold(prompt: Prompt, here: Plan, remote: Plan, costs: RoutingConfig) -> Plan:
    """Local or remote, by the configured number of tokens or else by cost."""
    if costs.local_suffix_tokens is None:
        return min(here, remote, key=lambda plan: plan.estimate_s)
    missing = prompt.tokens - here.cached_tokens
    return here if missing <= costs.local_suffix_tokens else remote


def _with_load(
    plan: Plan, prompt: Prompt, worker: WorkerView, held: int, costs: RoutingConfig
) -> Plan:
    load = worker.running * costs.running_penalty_s + worker.waiting * costs.waiting_penalty_s
    # Most answers are far shorter than they may be, above all when nobody set a limit.
    soon = prompt.pages(min(prompt.max_new_tokens, costs.expected_new_tokens))
    if soon - held > worker.free_pages:
        load += costs.shortage_penalty_s
    if worker.name == prompt.session_worker:
        load -= costs.session_affinity_s
    return Plan(
        plan.decode,
        plan.prefill,
        plan.route,
        plan.estimate_s + load,
        plan.cached_tokens,
        plan.decode_sources,
        plan.prefill_sources,
    )


def _best_prefill(
    prompt: Prompt, workers: Sequence[WorkerView], held: dict[str, int], costs: RoutingConfig
) -> _Prefill | None:
    """The prefill worker that would be ready first, with what it should fetch to be so."""
    options = []
    for worker in workers:
        if not _fits(prompt, worker, 1):
            continue
        pages = held.get(worker.holder.name, 0)
        queue = worker.pending_tokens / costs.remote_tokens_per_s
        here = prompt.cached(pages)
        alone = (prompt.tokens - here) / costs.remote_tokens_per_s
        options.append(_Prefill(worker, queue + alone, here, ()))
        sources = _longer(prompt, pages, worker.holder.name)
        if sources:
            there = prompt.cached(sources[0].pages)
            helped = (prompt.tokens - there) / costs.remote_tokens_per_s
            fetch = _fetch_s(prompt, there - here, costs)
            if fetch + helped < alone:
                options[-1] = _Prefill(worker, queue + fetch + helped, there, sources)
    return min(options, key=lambda o: (o.seconds, o.worker.running, o.worker.name), default=None)


def _fetch_s(prompt: Prompt, tokens: int, costs: RoutingConfig) -> float:
    moved = tokens * prompt.bytes_per_token
    return moved / costs.transfer_bytes_per_s + costs.restore_overhead_s


def _longer(prompt: Prompt, pages: int, name: str) -> tuple[Held, ...]:
    """The holders, best first, from whom a worker with `pages` usable pages gains some."""
    own = min(pages, prompt.usable_pages)
    return tuple(
        Held(h.holder, min(h.pages, prompt.usable_pages), h.only)
        for h in prompt.holders
        if h.holder.name != name and min(h.pages, prompt.usable_pages) > own
    )
