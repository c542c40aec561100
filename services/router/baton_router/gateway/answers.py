"""Tokens to SMG's stream: chunks and a complete one, token ids only."""

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton.v1 import inference_pb2 as pb
from baton_router.answers import AnswerText
from baton_router.ledger import NewTokens
from baton_router.requests import Job
from baton_rpc.smg_output import SmgOutput


class SampleAnswer(AnswerText):
    """One sample of one request. The gateway makes the text; ours only finds stop strings."""

    def __init__(self, request: wire.GenerateRequest, index: int, job: Job) -> None:
        super().__init__(job.text, job.ledger.stop_ids)
        self._output = SmgOutput(request, len(job.ledger.prompt), job.ledger.stop_ids, index)

    def accepted(self, request_id: str, prompt_tokens: int) -> None:
        """Nothing: before the first message a refusal can still become an HTTP status."""

    def delta(self, new: NewTokens) -> wire.GenerateResponse | None:
        _, new = self._take(new)
        return self._output.take(new.token_ids, new.logprobs)

    def rest(self) -> None:
        """Text that was held back; the gateway holds its own."""

    def finished(
        self, reason: pb.FinishReason, matched_stop: str, usage: pb.Usage
    ) -> wire.GenerateResponse:
        return self._output.complete(reason, matched_stop, usage.cached_tokens)
