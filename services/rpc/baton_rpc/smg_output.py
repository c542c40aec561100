"""One answer in SMG's messages, as the router and a worker without one both write it.

Not part of the package's face: `smg-grpc-proto` is there only where a gateway is served.
"""

from __future__ import annotations

from collections.abc import Sequence

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import inference_pb2 as pb


class SmgOutput:
    """Chunks when the request streams, and the complete message.

    The token that stops is no part of the output unless `no_stop_trim` asks for it.
    """

    def __init__(
        self,
        request: smg.GenerateRequest,
        prompt_tokens: int,
        stop_ids: frozenset[int],
        index: int = 0,
    ) -> None:
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._trimmed = frozenset() if request.sampling_params.no_stop_trim else stop_ids
        self._index = index
        self._ids: list[int] = []
        self._logprobs: list[pb.TokenLogprob] = []
        self._generated = 0
        self._last = -1

    def take(
        self, ids: Sequence[int], logprobs: Sequence[pb.TokenLogprob]
    ) -> smg.GenerateResponse | None:
        """New tokens, and as many log-probs or none: their chunk, if there is one to send."""
        if not ids:
            return None
        self._generated += len(ids)
        self._last = ids[-1]
        if self._last in self._trimmed:
            ids, logprobs = ids[:-1], logprobs[:-1]
        self._ids.extend(ids)
        self._logprobs.extend(logprobs)
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
            index=self._index,
        )
        return smg.GenerateResponse(request_id=self._request.request_id, chunk=chunk)

    def complete(
        self, reason: pb.FinishReason, matched_stop: str, cached_tokens: int
    ) -> smg.GenerateResponse:
        """The end."""
        complete = smg.GenerateComplete(
            output_ids=self._ids,
            finish_reason="length" if reason == pb.FINISH_REASON_LENGTH else "stop",
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._generated,
            cached_tokens=cached_tokens,
            output_logprobs=_logprobs(self._logprobs),
            index=self._index,
        )
        if matched_stop:
            complete.matched_stop_str = matched_stop
        elif reason == pb.FINISH_REASON_STOP_TOKEN:
            complete.matched_token_id = self._last
        return smg.GenerateResponse(request_id=self._request.request_id, complete=complete)


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
