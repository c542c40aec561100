"""Ranges of what a router sends. The router has checked them for the client's sake; a worker
checks again, because one bad value inside a batch would harm the batch."""

from __future__ import annotations

import math
from typing import Final

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_rpc import Refusal

MAX_LOGPROBS: Final = 20
_LOGIT_BIAS: Final = 100.0
# field: lowest, highest, whether the lowest is allowed
_RANGES: Final = {
    "temperature": (0.0, math.inf, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, math.inf, False),
}


def check_sampling(sampling: wire.ResolvedSampling, vocab_size: int) -> None:
    """Raises Refusal (INVALID_SAMPLING) naming field, value and range."""
    for name, (low, high, closed) in _RANGES.items():
        value = getattr(sampling, name)
        above = value >= low if closed else value > low
        if not (above and value <= high and math.isfinite(value)):
            bounds = f"{'[' if closed else '('}{low:g}, {high:g}{']' if high < math.inf else ')'}"
            raise _sampling(name, f"{value:g}", f"be in {bounds}")
    for token, bias in sampling.logit_bias.items():
        if token >= vocab_size:
            raise _sampling("logit_bias", f"for token {token}", f"be below {vocab_size}")
        if not abs(bias) <= _LOGIT_BIAS:
            raise _sampling("logit_bias", f"{bias:g} for token {token}", "be in [-100, 100]")


def check_stop(stop: wire.ResolvedStop, vocab_size: int) -> None:
    """Raises Refusal (INVALID_STOP)."""
    for name in ("stop_token_ids", "eos_token_ids"):
        for token in getattr(stop, name):
            if token >= vocab_size:
                raise _refusal(
                    errors.ERROR_REASON_INVALID_STOP,
                    f"stop.{name}",
                    str(token),
                    f"be below {vocab_size}, the vocabulary's size",
                )
    if "" in stop.stop:
        raise _refusal(errors.ERROR_REASON_INVALID_STOP, "stop.stop", "empty", "have a character")


def check_logprobs(logprobs: int) -> None:
    """Raises Refusal (INVALID_OUTPUT)."""
    if logprobs > MAX_LOGPROBS:
        reason = errors.ERROR_REASON_INVALID_OUTPUT
        raise _refusal(reason, "logprobs", str(logprobs), f"be 0 to {MAX_LOGPROBS}")


def check_present(value: object, field: str) -> None:
    """Raises Refusal (MISSING_FIELD) for an empty value."""
    if not value:
        raise Refusal(
            errors.ERROR_REASON_MISSING_FIELD, f"{field} is empty; it is needed", {"field": field}
        )


def _sampling(field: str, value: str, must: str) -> Refusal:
    return _refusal(errors.ERROR_REASON_INVALID_SAMPLING, f"sampling.{field}", value, must)


def _refusal(reason: errors.ErrorReason, field: str, value: str, must: str) -> Refusal:
    metadata = {"field": field, "value": value}
    return Refusal(reason, f"{field} is {value}; it must {must}", metadata)
