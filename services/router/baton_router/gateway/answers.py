"""Tokens to SMG's stream: chunks and a complete one, token ids only."""

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton.v1 import inference_pb2 as pb
from baton_router.answers import AnswerText
from baton_router.ledger import NewTokens
from baton_router.requests import Job


class SampleAnswer(AnswerText):
    """One sample of one request. The gateway makes the text; ours only finds stop strings.

    The token that stops is no part of the output unless `no_stop_trim` asks for it.
    """

    def __init__(self, request: wire.GenerateRequest, index: int, job: Job) -> None:
        super().__init__(job.text, job.ledger.stop_ids)
        self._request = request
        self._index = index
        self._prompt_tokens = len(job.ledger.prompt)
        self._keep_stop = request.sampling_params.no_stop_trim
        self._output = NewTokens([], [])
        self._last = -1

    def accepted(self, request_id: str, prompt_tokens: int) -> None:
        """Nothing: before the first message a refusal can still become an HTTP status."""

    def delta(self, new: NewTokens) -> wire.GenerateResponse | None:
        _, new = self._take(new)
        if new.token_ids:
            self._last = new.token_ids[-1]
        if self._last in self._stop_ids and not self._keep_stop:
            new = NewTokens(new.token_ids[:-1], new.logprobs[:-1])
        self._output.token_ids.extend(new.token_ids)
        self._output.logprobs.extend(new.logprobs)
        return self._chunk(new) if self._request.stream and new.token_ids else None

    def rest(self) -> None:
        """Text that was held back; the gateway holds its own."""

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> wire.GenerateResponse:
        complete = wire.GenerateComplete(
            output_ids=self._output.token_ids,
            finish_reason="length" if reason == pb.FINISH_REASON_LENGTH else "stop",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.generated_tokens,
            cached_tokens=usage.cached_tokens,
            output_logprobs=_logprobs(self._output.logprobs),
            index=self._index,
        )
        if matched_stop:
            complete.matched_stop_str = matched_stop
        elif reason == pb.FINISH_REASON_STOP_TOKEN:
            complete.matched_token_id = self._last
        return wire.GenerateResponse(request_id=self._request.request_id, complete=complete)

    def _chunk(self, new: NewTokens) -> wire.GenerateResponse:
        chunk = wire.GenerateStreamChunk(
            token_ids=new.token_ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.tokens,
            output_logprobs=_logprobs(new.logprobs),
            index=self._index,
        )
        return wire.GenerateResponse(request_id=self._request.request_id, chunk=chunk)


def _logprobs(logprobs: list[pb.TokenLogprob]) -> wire.OutputLogProbs | None:
    if not logprobs:
        return None
    return wire.OutputLogProbs(
        token_logprobs=[entry.logprob for entry in logprobs],
        token_ids=[entry.token_id for entry in logprobs],
        top_logprobs=[
            wire.TopLogProbs(
                values=[best.logprob for best in entry.top],
                token_ids=[best.token_id for best in entry.top],
            )
            for entry in logprobs
        ],
    )
