"""Log-probabilities between the engine's form and the wire's."""

from __future__ import annotations

from baton.v1.inference_pb2 import TokenLogprob as PbTokenLogprob
from baton_engine.events import TokenLogprob


def logprob_message(logprob: TokenLogprob) -> PbTokenLogprob:
    """The wire's form of a token's log-probability."""
    return PbTokenLogprob(
        token_id=logprob.token_id,
        logprob=logprob.logprob,
        top=[PbTokenLogprob.Alternative(token_id=t, logprob=p) for t, p in logprob.top],
    )


def logprob_of(message: PbTokenLogprob) -> TokenLogprob:
    """The engine's form of a token's log-probability."""
    top = tuple((alternative.token_id, alternative.logprob) for alternative in message.top)
    return TokenLogprob(message.token_id, message.logprob, top)
