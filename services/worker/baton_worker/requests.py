"""A StartRequest as the engine wants it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_engine import EngineRequest, Grammar, SamplingParams, Source, StopParams
from baton_rpc import Refusal
from baton_worker.checks import check_logprobs, check_present, check_sampling, check_stop
from baton_worker.role import Role

_MAX_TOKEN = np.iinfo(np.int32).max


def engine_request(
    start: wire.StartRequest, role: Role, vocab_size: int, grammar: Grammar | None = None
) -> EngineRequest:
    """Raises Refusal naming what is wrong. The engine checks prompt, lengths and cache key."""
    check_present(start.request_id, "start.request_id")
    check_sampling(start.sampling, vocab_size)
    check_stop(start.stop, vocab_size)
    logprobs = start.logprobs if start.HasField("logprobs") else None
    if logprobs is not None:
        check_logprobs(logprobs)
    return EngineRequest(
        request_id=start.request_id,
        attempt=start.attempt,
        token_ids=_tokens(start),
        prompt_tokens=start.prompt_tokens,
        max_new_tokens=start.max_new_tokens,
        sampling=_sampling(start.sampling, logprobs, grammar),
        stop=StopParams(
            eos_token_ids=tuple(start.stop.eos_token_ids),
            stop_token_ids=tuple(start.stop.stop_token_ids),
            stop=tuple(start.stop.stop),
        ),
        cache_key=start.cache_key,
        goal=role.goal_of(start),
        sources=tuple(_source(source) for source in start.sources),
    )


def page_hashes(forget: wire.ForgetPages) -> NDArray[np.uint8]:
    """uint8 [n, 16]. Raises Refusal (MALFORMED_MESSAGE)."""
    data = forget.page_hashes
    if len(data) % 16:
        raise Refusal(
            errors.ERROR_REASON_MALFORMED_MESSAGE,
            f"forget.page_hashes has {len(data)} bytes, which is no multiple of 16",
            {"field": "forget.page_hashes"},
        )
    return np.frombuffer(data, np.uint8).reshape(-1, 16)


def _tokens(start: wire.StartRequest) -> NDArray[np.int32]:
    tokens = np.fromiter(start.token_ids, np.uint32, len(start.token_ids))
    if len(tokens) and tokens.max() > _MAX_TOKEN:
        raise Refusal(
            errors.ERROR_REASON_INVALID_PROMPT,
            f"token id {int(tokens.max())} is outside every vocabulary",
            {"field": "start.token_ids"},
        )
    return tokens.astype(np.int32)


def _sampling(
    sampling: wire.ResolvedSampling, logprobs: int | None, grammar: Grammar | None
) -> SamplingParams:
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=sampling.seed,
        logprobs=logprobs,
        grammar=grammar,
    )


def _source(source: wire.PageSource) -> Source:
    check_present(source.holder.name and source.holder.address, "start.sources.holder")
    return Source(source.holder, source.pages, source.only)
