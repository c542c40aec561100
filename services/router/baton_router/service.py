"""InferenceService: validate, run, translate. What a stream says is decided elsewhere."""

from typing import Any, TypeAlias

import grpc

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from baton_router.answers import ChatAnswer, TextAnswer
from baton_router.pool import WorkerPool
from baton_router.requests import RequestReader
from baton_router.running import RequestRunner
from baton_router.sessions import Sessions, session_key
from baton_rpc import Refusal

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The front door."""

    def __init__(
        self, reader: RequestReader, runner: RequestRunner, pool: WorkerPool, sessions: Sessions
    ) -> None:
        self._reader = reader
        self._runner = runner
        self._pool = pool
        self._sessions = sessions

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        with self._runner.books() as books:
            self._reader.check_model(request.model)
            prompt = await self._reader.prompt(request)
            job = self._reader.job(prompt, request)
            await self._runner.run(job, TextAnswer(job.text, job.ledger.stop_ids), context, books)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> None:
        with self._runner.books() as books:
            self._reader.check_model(request.model)
            prompt, parser = await self._reader.chat_prompt(request)
            job = self._reader.job(prompt, request)
            answer = ChatAnswer(job.text, job.ledger.stop_ids, parser)
            await self._runner.run(job, answer, context, books)

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


def _check_session(session: str, field: str) -> None:
    if not session:
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD, f"{field} is empty; name a session", {"field": field}
        )
