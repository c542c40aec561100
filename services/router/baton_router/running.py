"""Runs requests: placed, executed, answered, counted. Every API of the router comes here."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_router.answers import Answer
from baton_router.config import RouterConfig
from baton_router.execution import Execution
from baton_router.page_index import PageIndex
from baton_router.placing import Placer
from baton_router.pool import WorkerPool
from baton_router.requests import Job
from baton_router.sessions import Sessions
from baton_rpc import Refusal
from baton_telemetry import RouterMetrics


class Writer(Protocol):
    """Where a stream's messages go."""

    async def write(self, message: Any) -> None:
        """Sends one."""


class RequestRunner:
    """One per router: how many requests it runs."""

    def __init__(
        self,
        config: RouterConfig,
        pool: WorkerPool,
        index: PageIndex,
        sessions: Sessions,
        metrics: RouterMetrics,
    ) -> None:
        self._config = config
        self._pool = pool
        self._index = index
        self._metrics = metrics
        self._sessions = sessions
        self.running = 0
        # Told of every request that ended well: the tokens it leaves in the caches, its tenant.
        self.on_cached: Callable[[NDArray[np.int32], str], None] | None = None

    async def run(self, job: Job, answer: Answer[Any], writer: Writer, books: "Books") -> None:
        """Runs `job` to its end; what `answer` makes of it is written. Raises Refusal."""
        request_id = secrets.token_hex(8)
        limits = self._config.limits
        placer = Placer(
            job.terms, self._pool, self._index, self._sessions, self._config, self._metrics
        )
        execution = Execution(request_id, job.ledger, placer, max_attempts=limits.max_attempts)
        async with execution:
            prompt_tokens = len(job.ledger.prompt)
            books.accept(prompt_tokens)
            await _write(writer, answer.accepted(request_id, prompt_tokens))
            while (new := await execution.next_tokens()) is not None:
                message = answer.delta(new)
                if answer.matched_stop is not None:
                    job.ledger.forget_after(answer.tokens)
                    execution.stop(answer.matched_stop)
                await _write(writer, message)
            await _write(writer, answer.rest())
            ending = execution.ending
            if ending is None:
                raise RuntimeError(f"{request_id}: no more tokens, and no ending")
            usage = await execution.usage(limits.usage_wait_s)
        if self.on_cached is not None:
            # The last token's entries are never computed.
            self.on_cached(job.ledger.sequence()[:-1], job.terms.tenant)
        books.finish(answer.reason(ending.reason), usage)
        await _write(writer, answer.finished(ending.reason, ending.matched_stop, usage))

    @contextmanager
    def books(self) -> Iterator["Books"]:
        """Counts a request, and how it ends. Refuses it when there are too many."""
        books = Books(self._metrics)
        try:
            most = self._config.limits.max_concurrent_requests
            if self.running >= most:
                raise Refusal(
                    errors.ERROR_REASON_OVERLOADED,
                    f"this router runs {most} requests, its limit; try again later",
                    {"limit": str(most)},
                )
            self.running += 1
            try:
                yield books
            finally:
                self.running -= 1
        except Refusal as refusal:
            books.fail(refusal.reason_name)
            raise
        except asyncio.CancelledError:
            books.fail("ERROR_REASON_CANCELLED")
            raise
        except Exception:
            books.fail("ERROR_REASON_INTERNAL")
            raise


class Books:
    """One request in the metrics: refused, failed or finished, exactly once."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._accepted = False
        self._closed = False

    def accept(self, prompt_tokens: int) -> None:
        """It passed validation."""
        self._accepted = True
        self._metrics.accepted(prompt_tokens)

    def finish(self, reason: pb.FinishReason, usage: pb.Usage) -> None:
        """It ended well."""
        self._closed = True
        self._metrics.finished(
            route=_word(pb.Route.Name(usage.route), "ROUTE_"),
            reason=_word(pb.FinishReason.Name(reason), "FINISH_REASON_"),
            cached_tokens=usage.cached_tokens,
            generated_tokens=usage.generated_tokens,
            ttft_s=usage.times.ttft_us / 1e6,
            e2e_s=usage.times.total_us / 1e6,
        )

    def fail(self, reason: str) -> None:
        """It was refused, failed or was cancelled."""
        if not self._closed:
            self._closed = True
            self._metrics.failed(_word(reason, "ERROR_REASON_"), accepted=self._accepted)


async def _write(writer: Writer, message: Any | None) -> None:
    if message is not None:
        await writer.write(message)


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
