"""Whether one token ends one request: for a first token that another worker sampled."""

from __future__ import annotations

from baton_engine.events import FinishReason
from baton_engine.ports import StopMatch
from baton_engine.request import StopParams


def stop_match(params: StopParams, token: int) -> StopMatch | None:
    """Why `token` ends a request with these parameters, or None when it does not."""
    if token in params.eos_token_ids:
        return StopMatch(FinishReason.EOS)
    if token in params.stop_token_ids:
        return StopMatch(FinishReason.STOP_TOKEN)
    return None
