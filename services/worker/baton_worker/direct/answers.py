"""A worker's updates as SMG's messages."""

from __future__ import annotations

from collections.abc import Sequence

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire


class Answer:
    """One request's output: chunks when it streams, and the complete message."""

    def __init__(self, request: smg.GenerateRequest, start: wire.StartRequest) -> None:
        self._request = request
        self._stops = frozenset((*start.stop.eos_token_ids, *start.stop.stop_token_ids))
        self._prompt_tokens = start.prompt_tokens
        self._ids: list[int] = []
        self._logprobs: list[pb.TokenLogprob] = []
        self._generated = 0
        self._last = -1

    def tokens(self, tokens: wire.RequestTokens) -> smg.GenerateResponse | None:
        """A chunk; the token that stops is in it only when asked for."""
        ids, logprobs = list(tokens.token_ids), list(tokens.logprobs)
        self._generated += len(ids)
        self._last = ids[-1]
        if self._last in self._stops and not self._request.sampling_params.no_stop_trim:
            ids, logprobs = ids[:-1], logprobs[:-1]
        self._ids += ids
        self._logprobs += logprobs
        return self.chunk(ids, logprobs) if self._request.stream and ids else None

    def chunk(
        self, ids: Sequence[int] = (), logprobs: Sequence[pb.TokenLogprob] = ()
    ) -> smg.GenerateResponse:
        """Empty by default: a sign of life."""
        chunk = smg.GenerateStreamChunk(
            token_ids=ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._generated,
            output_logprobs=_logprobs(logprobs),
        )
        return smg.GenerateResponse(request_id=self._request.request_id, chunk=chunk)

    def complete(self, done: wire.RequestDone) -> smg.GenerateResponse:
        """The end."""
        complete = smg.GenerateComplete(
            output_ids=self._ids,
            finish_reason="length" if done.reason == pb.FINISH_REASON_LENGTH else "stop",
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._generated,
            cached_tokens=self._cached(done.cost),
            output_logprobs=_logprobs(self._logprobs),
        )
        if done.matched_stop:
            complete.matched_stop_str = done.matched_stop
        elif done.reason == pb.FINISH_REASON_STOP_TOKEN:
            complete.matched_token_id = self._last
        return smg.GenerateResponse(request_id=self._request.request_id, complete=complete)

    def _cached(self, cost: wire.RequestCost) -> int:
        """Prompt tokens that neither worker computed."""
        here = self._prompt_tokens - cost.computed_tokens
        there = cost.first_token.cached_tokens if cost.HasField("first_token") else here
        return max(0, min(here, there))


def _logprobs(logprobs: Sequence[pb.TokenLogprob]) -> smg.OutputLogProbs | None:
    if not logprobs:
        return None
    return smg.OutputLogProbs(
        token_logprobs=[entry.logprob for entry in logprobs],
        token_ids=[entry.token_id for entry in logprobs],
        top_logprobs=[
            smg.TopLogProbs(
                values=[best.logprob for best in entry.top],
                token_ids=[best.token_id for best in entry.top],
            )
            for entry in logprobs
        ],
    )
