"""Sampling, stop and output parameters: ranges checked, the model's defaults filled in."""

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import worker_pb2 as wire
from baton_router import strict_json
from baton_router.checkpoint import ModelCard
from baton_rpc import Refusal

MAX_STOPS: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_LOGPROBS: Final = 20


@dataclass(frozen=True)
class Range:
    """Allowed values of a number; `open_low` excludes the lower end."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"finite and {'above' if self.open_low else 'at least'} {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"


RANGES: Final = {
    "temperature": Range(0.0),
    "top_p": Range(0.0, 1.0, open_low=True),
    "min_p": Range(0.0, 1.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "presence_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(0.0, open_low=True),
}
LOGIT_BIAS: Final = Range(-100.0, 100.0)


def resolve_sampling(params: pb.SamplingParams, card: ModelCard) -> wire.ResolvedSampling:
    """Every field set. Raises Refusal (INVALID_SAMPLING) naming field, value and range."""
    resolved = wire.ResolvedSampling(
        top_k=params.top_k if params.HasField("top_k") else card.defaults.top_k,
        seed=params.seed if params.HasField("seed") else secrets.randbits(64),
    )
    for name, allowed in RANGES.items():
        value = getattr(params if params.HasField(name) else card.defaults, name)
        if value not in allowed:
            raise _sampling(name, f"{value:g}", f"must be {allowed}")
        setattr(resolved, name, value)
    for token, bias in params.logit_bias.items():
        if token >= card.vocab_size:
            raise _sampling("logit_bias", f"token {token}", _below(card))
        if bias not in LOGIT_BIAS:
            raise _sampling("logit_bias", f"{bias:g} for token {token}", f"must be {LOGIT_BIAS}")
        resolved.logit_bias[token] = bias
    return resolved


def resolve_stop(stop: pb.StopParams, card: ModelCard) -> wire.ResolvedStop:
    """Raises Refusal (INVALID_STOP)."""
    if len(stop.stop) > MAX_STOPS:
        raise _stop("stop.stop", f"{len(stop.stop)} strings", f"may hold at most {MAX_STOPS}")
    for text in stop.stop:
        size = len(text.encode())
        if not 1 <= size <= MAX_STOP_BYTES:
            raise _stop(
                "a string of stop.stop", f"{size} bytes long", f"must have 1 to {MAX_STOP_BYTES}"
            )
    unknown = first_outside(stop.stop_token_ids, card)
    if unknown is not None:
        raise _stop("stop.stop_token_ids", f"token {unknown}", _below(card))
    return wire.ResolvedStop(
        stop=dict.fromkeys(stop.stop),
        stop_token_ids=dict.fromkeys(stop.stop_token_ids),
        eos_token_ids=() if stop.ignore_eos else card.eos_token_ids,
    )


def resolve_max_tokens(stop: pb.StopParams, prompt_tokens: int, max_context: int) -> int | None:
    """The number asked for, None when left to us. Raises Refusal (INVALID_STOP)."""
    if not stop.HasField("max_tokens"):
        return None
    if stop.max_tokens < 1:
        raise _stop("stop.max_tokens", "0", "must be at least 1; leave it unset for no limit")
    if prompt_tokens + stop.max_tokens > max_context:
        raise _stop(
            "stop.max_tokens",
            str(stop.max_tokens),
            f"must, with a prompt of {prompt_tokens} tokens, be at most "
            f"{max_context - prompt_tokens} (the context is {max_context} tokens)",
        )
    return stop.max_tokens


def resolve_logprobs(output: pb.OutputParams) -> int | None:
    """Raises Refusal (INVALID_OUTPUT)."""
    if not output.HasField("logprobs"):
        return None
    if output.logprobs > MAX_LOGPROBS:
        raise Refusal(
            errors.ERROR_REASON_INVALID_OUTPUT,
            f"output.logprobs is {output.logprobs}; it must be 0 to {MAX_LOGPROBS}",
            {"field": "output.logprobs", "value": str(output.logprobs)},
        )
    return output.logprobs


def resolve_constraint(output: pb.OutputParams, stop: wire.ResolvedStop) -> pb.Constraint | None:
    """Raises Refusal (INVALID_CONSTRAINT). Whether it compiles, a worker knows."""
    if not output.HasField("constraint"):
        return None
    kind = output.constraint.WhichOneof("language")
    if kind is None or not getattr(output.constraint, kind):
        raise _constraint("constraint", "is empty; give json_schema, regex, ebnf, structural_tag")
    if not stop.eos_token_ids:
        raise _constraint(
            "constraint", "needs an end-of-sequence token to end with; ignore_eos must be off"
        )
    if kind == "json_schema":
        try:
            strict_json.parse(output.constraint.json_schema)
        except ValueError as error:
            raise _constraint("constraint.json_schema", f"is not JSON: {error}") from error
    return output.constraint


def first_outside(token_ids: Iterable[int], card: ModelCard) -> int | None:
    """The first id that is not in the vocabulary."""
    return next((token for token in token_ids if token >= card.vocab_size), None)


def _below(card: ModelCard) -> str:
    return f"must be below the vocabulary's size, {card.vocab_size}"


def _sampling(field: str, value: str, allowed: str) -> Refusal:
    return _refusal(errors.ERROR_REASON_INVALID_SAMPLING, f"sampling.{field}", value, allowed)


def _stop(field: str, value: str, allowed: str) -> Refusal:
    return _refusal(errors.ERROR_REASON_INVALID_STOP, field, value, allowed)


def _constraint(field: str, message: str) -> Refusal:
    return Refusal(
        errors.ERROR_REASON_INVALID_CONSTRAINT,
        f"output.{field} {message}",
        {"field": f"output.{field}"},
    )


def _refusal(reason: errors.ErrorReason, field: str, value: str, allowed: str) -> Refusal:
    return Refusal(reason, f"{field} is {value}; it {allowed}", {"field": field, "value": value})
