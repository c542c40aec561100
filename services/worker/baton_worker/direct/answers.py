"""A worker's updates as SMG's messages."""

from __future__ import annotations

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import worker_pb2 as wire
from baton_rpc.smg_output import SmgOutput


class Answer:
    """One request's output."""

    def __init__(self, request: smg.GenerateRequest, start: wire.StartRequest) -> None:
        stop_ids = frozenset((*start.stop.eos_token_ids, *start.stop.stop_token_ids))
        self._output = SmgOutput(request, start.prompt_tokens, stop_ids)
        self._prompt_tokens = start.prompt_tokens

    def sign_of_life(self) -> smg.GenerateResponse:
        """A chunk without tokens."""
        return self._output.chunk()

    def tokens(self, tokens: wire.RequestTokens) -> smg.GenerateResponse | None:
        """The chunk to send, if there is one."""
        return self._output.take(list(tokens.token_ids), list(tokens.logprobs))

    def complete(self, done: wire.RequestDone) -> smg.GenerateResponse:
        """The end."""
        return self._output.complete(done.reason, done.matched_stop, self._cached(done.cost))

    def _cached(self, cost: wire.RequestCost) -> int:
        """Prompt tokens that neither worker computed."""
        here = self._prompt_tokens - cost.computed_tokens
        there = cost.first_token.cached_tokens if cost.HasField("first_token") else here
        return max(0, min(here, there))
