"""InferenceService: validate, run, translate. What a stream says is decided elsewhere."""

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from baton_router.answers import Answer, ChatAnswer, TextAnswer
from baton_router.config import RouterConfig
from baton_router.execution import Execution
from baton_router.page_index import PageIndex
from baton_router.placing import Placer
from baton_router.pool import WorkerPool
from baton_router.requests import Job, RequestReader
from baton_router.sessions import Sessions, session_key
from baton_rpc import Refusal
from baton_telemetry import RouterMetrics

log = logging.getLogger("baton.router")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Writer(Protocol):
    """Where a stream's messages go."""

    async def write(self, message: Any) -> None:
        """Sends one."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The front door."""

    def __init__(
        self,
        config: RouterConfig,
        reader: RequestReader,
        pool: WorkerPool,
        index: PageIndex,
        sessions: Sessions,
        metrics: RouterMetrics,
    ) -> None:
        self._config = config
        self._reader = reader
        self._pool = pool
        self._index = index
        self._metrics = metrics
        self._sessions = sessions
        self._running = 0

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        with self._books() as books:
            self._reader.check_model(request.model)
            prompt = await self._reader.prompt(request)
            job = self._reader.job(prompt, request)
            await self._run(job, TextAnswer(job.text, job.ledger.stop_ids), context, books)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> None:
        with self._books() as books:
            self._reader.check_model(request.model)
            prompt, parser = await self._reader.chat_prompt(request)
            job = self._reader.job(prompt, request)
            answer = ChatAnswer(job.text, job.ledger.stop_ids, parser)
            await self._run(job, answer, context, books)

    async def CloseSession(
        self, request: pb.CloseSessionRequest, context: Context
    ) -> pb.CloseSessionResponse:
        _check_session(request.session_id, "session_id")
        freed, running = await self._sessions.close(session_key(request.tenant, request.session_id))
        return pb.CloseSessionResponse(freed_pages=freed, running_turns=running)

    async def ForkSession(
        self, request: pb.ForkSessionRequest, context: Context
    ) -> pb.ForkSessionResponse:
        _check_session(request.session_id, "session_id")
        _check_session(request.new_session_id, "new_session_id")
        shared = self._sessions.fork(
            session_key(request.tenant, request.session_id),
            session_key(request.tenant, request.new_session_id),
            self._pool.cache_key(request.tenant),
        )
        return pb.ForkSessionResponse(shared_pages=shared)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        self._reader.check_model(request.model)
        card, cache = self._reader.card, self._pool.cache
        return pb.GetModelResponse(
            model=card.name,
            architecture=card.architecture,
            vocab_size=card.vocab_size,
            max_context=self._reader.max_context,
            page_size=cache.page_size if cache else 0,
            eos_token_ids=card.eos_token_ids,
            default_sampling=card.defaults,
            fingerprint=cache.model_fingerprint if cache else "",
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        self._reader.check_model(request.model)
        return pb.TokenizeResponse(token_ids=await self._reader.tokenize(request))

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        self._reader.check_model(request.model)
        return pb.DetokenizeResponse(text=self._reader.detokenize(request))

    # ---- running

    async def _run(self, job: Job, answer: Answer, context: Writer, books: "_Books") -> None:
        request_id = secrets.token_hex(8)
        limits = self._config.limits
        placer = Placer(
            job.terms, self._pool, self._index, self._sessions, self._config, self._metrics
        )
        execution = Execution(request_id, job.ledger, placer, max_attempts=limits.max_attempts)
        async with execution:
            prompt_tokens = len(job.ledger.prompt)
            books.accept(prompt_tokens)
            await context.write(answer.accepted(request_id, prompt_tokens))
            while (new := await execution.next_tokens()) is not None:
                message = answer.delta(new)
                if answer.matched_stop is not None:
                    job.ledger.forget_after(answer.tokens)
                    execution.stop(answer.matched_stop)
                await context.write(message)
            rest = answer.rest()
            if rest is not None:
                await context.write(rest)
            ending = execution.ending
            if ending is None:
                raise RuntimeError(f"{request_id}: no more tokens, and no ending")
            usage = await execution.usage(limits.usage_wait_s)
        finished = answer.finished(ending.reason, ending.matched_stop, usage)
        books.finish(finished.finished)
        await context.write(finished)

    @contextmanager
    def _books(self) -> Iterator["_Books"]:
        """Counts a request, and how it ends. Refuses it when there are too many."""
        books = _Books(self._metrics)
        try:
            most = self._config.limits.max_concurrent_requests
            if self._running >= most:
                raise Refusal(
                    errors.ERROR_REASON_OVERLOADED,
                    f"this router runs {most} requests, its limit; try again later",
                    {"limit": str(most)},
                )
            self._running += 1
            try:
                yield books
            finally:
                self._running -= 1
        except Refusal as refusal:
            books.fail(refusal.reason_name)
            raise
        except asyncio.CancelledError:
            books.fail("ERROR_REASON_CANCELLED")
            raise
        except Exception:
            books.fail("ERROR_REASON_INTERNAL")
            raise


class _Books:
    """One request in the metrics: refused, failed or finished, exactly once."""

    def __init__(self, metrics: RouterMetrics) -> None:
        self._metrics = metrics
        self._accepted = False
        self._closed = False

    def accept(self, prompt_tokens: int) -> None:
        """It passed validation."""
        self._accepted = True
        self._metrics.accepted(prompt_tokens)

    def finish(self, finished: pb.Finished) -> None:
        """It ended well."""
        self._closed = True
        usage = finished.usage
        self._metrics.finished(
            route=_word(pb.Route.Name(usage.route), "ROUTE_"),
            reason=_word(pb.FinishReason.Name(finished.reason), "FINISH_REASON_"),
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


def _check_session(session: str, field: str) -> None:
    if not session:
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD, f"{field} is empty; name a session", {"field": field}
        )


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
