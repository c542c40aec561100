"""Puts attempts on workers: the router's knowledge to a plan, the plan to commands."""

import asyncio
import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire
from baton_router.afterword import Afterword
from baton_router.attempt import Attempt
from baton_router.config import RouterConfig
from baton_router.ledger import Ledger, token_list
from baton_router.page_index import Held, PageIndex, split_hashes
from baton_router.pool import WorkerPool
from baton_router.routing import Plan, Prompt, choose
from baton_router.sessions import Sessions
from baton_router.usage import AttemptCost
from baton_router.worker_link import Listener
from baton_rpc import Refusal
from baton_scheduler import in_group, page_hashes
from baton_telemetry import RouterMetrics

log = logging.getLogger("baton.router")


@dataclass(frozen=True)
class Terms:
    """What every attempt of a request has in common."""

    sampling: wire.ResolvedSampling
    stop: wire.ResolvedStop
    logprobs: int | None
    constraint: pb.Constraint | None
    tenant: str
    session: bytes  # key of the session, empty without one


class Placer:
    """One per request: its terms, and where its session was last."""

    def __init__(
        self,
        terms: Terms,
        pool: WorkerPool,
        index: PageIndex,
        sessions: Sessions,
        config: RouterConfig,
        metrics: RouterMetrics,
    ) -> None:
        self.metrics = metrics
        self._terms = terms
        self._pool = pool
        self._index = index
        self._sessions = sessions
        self._config = config

    def eos_of(self, ledger: Ledger) -> frozenset[int]:
        """The ids that end the text by themselves."""
        return frozenset(self._terms.stop.eos_token_ids)

    def turn_began(self) -> None:
        """The request is about to run."""
        self._sessions.turn_began(self._terms.session)

    def turn_ended(self, ledger: Ledger, last: Attempt | None, *, well: bool) -> None:
        """The request is over; what it has computed is its session's."""
        hashes = self._computed(ledger.heard())
        chain = hashes.tobytes()
        if last is not None and well:
            cache = self._pool.cache
            prompt_pages = len(ledger.prompt) // cache.page_size if cache is not None else 0
            pages, prompt = list(split_hashes(chain)), hashes[:prompt_pages]
            last.leave(
                pages + self._last_state(hashes), pages[:prompt_pages] + self._last_state(prompt)
            )
        elif last is not None:
            last.leave((), ())
        key = self._pool.cache_key(self._terms.tenant)
        self._sessions.turn_ended(self._terms.session, key, chain)

    def afterword(self, ledger: Ledger) -> Afterword | None:
        """Listens to a cancelled attempt to its end: the pages that it completes meanwhile, which
        the turn does not name, are forgotten. None without a session, which alone promises that."""
        return Afterword(ledger.sequel(), self._strayed) if self._terms.session else None

    def _strayed(self, sequel: Ledger) -> None:
        cache = self._pool.cache
        if sequel.emitted and cache is not None:
            named = (len(sequel.prompt) - 1) // cache.page_size
            strays = self._computed(sequel.sequence())[named:]
            self._sessions.strayed(list(split_hashes(strays.tobytes())))

    def _computed(self, tokens: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The identities [n, 16] of the full pages that a worker has of a sequence it has told."""
        cache = self._pool.cache
        if cache is None:
            return np.empty((0, 16), np.uint8)
        # The last token's entries are never computed.
        return page_hashes(tokens[:-1], cache.page_size, self._pool.cache_key(self._terms.tenant))

    async def place(
        self,
        request_id: str,
        ledger: Ledger,
        listener: Listener,
        *,
        refused: AbstractSet[str],
        lost: AbstractSet[str],
        refusal: Refusal | None,
    ) -> Attempt:
        """Starts the ledger's attempt. Raises `refusal`, OUT_OF_PAGES or NO_WORKER."""
        deadline = asyncio.get_running_loop().time() + self._config.limits.no_worker_wait_s
        while True:
            attempt = self._try(request_id, ledger, listener, refused, lost)
            if attempt is not None:
                return attempt
            if refusal is not None:  # every worker that there is has said no
                raise refusal
            await self._wait_for_worker(deadline, ledger)

    def _try(
        self,
        request_id: str,
        ledger: Ledger,
        listener: Listener,
        refused: AbstractSet[str],
        lost: AbstractSet[str],
    ) -> Attempt | None:
        """None when no decode worker is there that can take it."""
        ready = [link for link in self._pool.decode if link.ready and link.name not in refused]
        # One that was lost under this request and is back is better than none.
        ready = [link for link in ready if link.name not in lost] or ready
        cache = self._pool.cache
        if cache is None or not ready:
            return None
        tokens = ledger.sequence()
        cache_key = self._pool.cache_key(self._terms.tenant)
        chain = page_hashes(tokens, cache.page_size, cache_key)
        prompt = Prompt(
            tokens=len(tokens),
            max_new_tokens=ledger.remaining,
            page_size=cache.page_size,
            bytes_per_token=self._pool.bytes_per_token,
            holders=self._holders(chain, (len(tokens) - 1) // cache.page_size),
            session_worker=self._sessions.worker(self._terms.session),
        )
        plan = choose(
            prompt,
            [link.view() for link in ready],
            [link.view() for link in self._pool.prefill if link.ready],
            self._config.routing,
        )
        if plan is None:
            raise self._never_fits(prompt)
        start = self._command(request_id, ledger, cache_key)
        start.token_ids.extend(token_list(tokens))
        return self._dispatch(plan, start, ledger, listener, prompt)

    def _holders(self, chain: NDArray[np.uint8], reusable: int) -> list[Held]:
        """Who has what of a chain, in as far as it can be used."""
        held = [h for h in self._index.held(chain.tobytes()) if self._pool.reachable(h.holder)]
        if self._pool.states is None or not held:
            return held
        group, stride = self._pool.states
        states = list(split_hashes(in_group(chain[:reusable], group).tobytes()))
        return self._index.usable(held, states, stride)

    def _last_state(self, chain: NDArray[np.uint8]) -> list[bytes]:
        """What the last snapshot goes by that computing a chain leaves."""
        if self._pool.states is None:
            return []
        group, stride = self._pool.states
        last = len(chain) // stride * stride
        return list(split_hashes(in_group(chain[last - 1 : last], group).tobytes())) if last else []

    def _command(self, request_id: str, ledger: Ledger, cache_key: bytes) -> wire.StartRequest:
        terms = self._terms
        return wire.StartRequest(
            request_id=request_id,
            attempt=ledger.attempt,
            prompt_tokens=len(ledger.prompt),
            max_new_tokens=ledger.remaining,
            sampling=terms.sampling,
            stop=terms.stop,
            logprobs=terms.logprobs,
            cache_key=cache_key,
            constraint=terms.constraint,
        )

    def _dispatch(
        self,
        plan: Plan,
        start: wire.StartRequest,
        ledger: Ledger,
        listener: Listener,
        prompt: Prompt,
    ) -> Attempt:
        decode = self._pool.find(plan.decode)
        prefill = self._pool.find(plan.prefill) if plan.prefill else None
        if decode is None or decode.holder is None:
            raise RuntimeError(f"the plan names {plan.decode}, which is not connected")
        cost = AttemptCost(plan.route, len(ledger.prompt), prompt.tokens, plan.cached_tokens)
        attempt = Attempt(start.request_id, start.attempt, decode, prefill, cost, self._index)
        attempt.begin(prompt.tokens - plan.cached_tokens)
        self._sessions.moved(self._terms.session, decode.name)
        if prefill is None or prefill.holder is None:
            start.compute.SetInParent()
        else:
            handover = wire.StartRequest()
            handover.CopyFrom(start)
            handover.prefill_for.reader = decode.holder.name
            handover.sources.extend(_source(held) for held in plan.prefill_sources)
            prefill.start(handover, listener)
            start.await_prefill.prefill.CopyFrom(prefill.holder.peer())
        start.sources.extend(_source(held) for held in plan.decode_sources)
        decode.start(start, listener)
        log.debug("%s attempt %d: %s", start.request_id, start.attempt, plan)
        return attempt

    def _never_fits(self, prompt: Prompt) -> Refusal:
        pages = prompt.pages(prompt.max_new_tokens)
        return Refusal(
            errors.ERROR_REASON_OUT_OF_PAGES,
            f"{prompt.tokens} tokens and up to {prompt.max_new_tokens} new ones need "
            f"{pages} pages of {prompt.page_size} tokens, more than any worker has; "
            f"the largest holds {self._pool.largest_pool_tokens} tokens",
            {"pages": str(pages)},
        )

    async def _wait_for_worker(self, deadline: float, ledger: Ledger) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._pool.change()
        except TimeoutError:
            raise Refusal(
                errors.ERROR_REASON_NO_WORKER,
                f"no decode worker came within {self._config.limits.no_worker_wait_s:g} s "
                f"({len(ledger.emitted)} tokens had been emitted); try again later",
                {"emitted": str(len(ledger.emitted))},
            ) from None


def _source(held: Held) -> wire.PageSource:
    return wire.PageSource(holder=held.holder.peer(), pages=held.pages, only=held.only)
