"""What a request has cost, from what the workers report.

`cached_tokens` are the prompt tokens that nobody computed for this request. A
worker computes suffixes only, so of everything that was computed for it, over
all workers and attempts, the longest suffix counts.

An attempt's figures are complete when its first tokens are (they carry the
cost of the prompt), and are replaced by those of the end, which also know of
what was computed again under memory pressure.
"""

import time
from dataclasses import dataclass

from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire


@dataclass
class AttemptCost:
    """What is known of one attempt."""

    route: pb.Route
    prompt_tokens: int  # of the request
    sequence_tokens: int  # of the attempt: the prompt and what earlier attempts had emitted
    planned_cached: int
    reused_tokens: int = 0  # at the decode worker, when it was admitted
    decode: wire.RequestCost | None = None
    prefill: wire.RequestCost | None = None

    @property
    def first_token(self) -> kv.FirstToken | None:
        """What the prefill worker said with the first token, if the decode worker repeats it."""
        if self.decode is not None and self.decode.HasField("first_token"):
            return self.decode.first_token
        return None

    @property
    def exact(self) -> bool:
        """Whether waiting for another report would change nothing."""
        if self.decode is None:
            return False
        return self.took is not pb.ROUTE_REMOTE or bool(self.prefill or self.first_token)

    @property
    def took(self) -> pb.Route:
        """The route as it turned out: a fetch that fetched nothing is a local one."""
        cost = self.decode
        if cost is None or self.route == pb.ROUTE_LOCAL:
            return self.route
        moved = cost.fetched_tokens > 0
        if self.route == pb.ROUTE_REMOTE and not moved:
            return pb.ROUTE_LOCAL if cost.computed_tokens else pb.ROUTE_REMOTE
        return self.route if moved else pb.ROUTE_LOCAL

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens nobody computed in this attempt; None when nobody has said."""
        known = []
        if self.prefill is not None:
            known.append(self.sequence_tokens - self.prefill.computed_tokens)
        elif self.first_token is not None:
            known.append(self.first_token.cached_tokens)
        if self.decode is not None:
            known.append(self.sequence_tokens - self.decode.computed_tokens)
            if self.route == pb.ROUTE_REMOTE and len(known) == 1 and self.decode.fetched_tokens:
                # The prefill worker died. What it had handed over, it had computed or not as
                # was planned.
                known.append(max(self.planned_cached, self.decode.reused_tokens))
        return max(0, min(*known, self.prompt_tokens)) if known else None

    def moved(self) -> tuple[int, int]:
        """Pages and bytes, in any direction."""
        pages = bytes_ = 0
        for cost in (self.decode, self.prefill or self.first_token):
            if cost is not None:
                pages += cost.pages_moved
                bytes_ += cost.bytes_moved
        return pages, bytes_

    def times(self) -> pb.PhaseTimes:
        """Queue, prefill and hand-over, from whoever computed the prompt."""
        decode = self.decode or wire.RequestCost()
        computing = decode if self.took != pb.ROUTE_REMOTE else self.prefill or self.first_token
        return pb.PhaseTimes(
            queue_us=(computing or decode).queue_us,
            prefill_us=(computing or decode).prefill_us,
            handover_us=decode.handover_us,
        )


class Clock:
    """When things happened to one request, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.accepted = time.monotonic()
        self.first: float | None = None
        self.last: float | None = None

    def tokens(self) -> None:
        """Tokens have arrived."""
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last

    def fill(self, times: pb.PhaseTimes) -> None:
        """Sets the phases that the router itself has seen."""
        now = time.monotonic()
        first = self.first if self.first is not None else now
        times.ttft_us = _us(first - self.accepted)
        times.decode_us = _us((self.last or first) - first)
        times.total_us = _us(now - self.accepted)


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


def total_usage(
    attempts: list[AttemptCost],
    *,
    clock: Clock,
    generated_tokens: int,
    deaths: int,
    prefill_worker: str,
    decode_worker: str,
) -> pb.Usage:
    """The usage of a request that ended with the last of `attempts`."""
    last = attempts[-1]
    cached = [known for cost in attempts if (known := cost.cached_tokens) is not None]
    if not cached:
        cached = [min(last.planned_cached, last.prompt_tokens)]
    moved = [cost.moved() for cost in attempts]
    times = last.times()
    clock.fill(times)
    return pb.Usage(
        prompt_tokens=last.prompt_tokens,
        cached_tokens=min(cached),
        generated_tokens=generated_tokens,
        times=times,
        route=last.took,
        pages_moved=sum(pages for pages, _ in moved),
        bytes_moved=sum(bytes_ for _, bytes_ in moved),
        attempts=1 + deaths,
        prefill_worker=prefill_worker if last.took == pb.ROUTE_REMOTE else "",
        decode_worker=decode_worker,
    )
