"""SMG's GenerateRequest as a StartRequest without a plan. What is not done here is refused."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import Message
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as smg

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_rpc import Refusal

ATTEMPT: Final = 1  # there is no second one without a router

_UNSUPPORTED: Final = (
    "mm_inputs",
    "encode_bootstrap_info",
    "data_parallel_rank",
    "token_ids_logprob",
)
_UNSUPPORTED_SAMPLING: Final = ("min_new_tokens", "custom_params")
_NUMBERS: Final = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True)
class Served:
    """What a request is read against."""

    checkpoint: Path
    max_context: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    cache_key: bytes


def eos_token_ids(checkpoint: Path) -> tuple[int, ...]:
    """As the checkpoint says; generation_config.json wins."""
    for name in ("generation_config.json", "config.json"):
        file = checkpoint / name
        value = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(value)
    return ()


def start_request(request: smg.GenerateRequest, served: Served) -> wire.StartRequest:
    """Ranges are checked where every StartRequest's are. Raises Refusal."""
    params = request.sampling_params
    _refuse(request, _UNSUPPORTED)
    _refuse(params, _UNSUPPORTED_SAMPLING)
    if params.n > 1:
        raise unsupported("sampling_params.n", "a worker without router gives one answer")
    if request.HasField("logprob_start_len") and request.logprob_start_len >= 0:
        raise unsupported("logprob_start_len", "log-probs of the prompt are not kept")
    prompt = request.tokenized.input_ids
    start = wire.StartRequest(
        request_id=request.request_id,
        attempt=ATTEMPT,
        token_ids=prompt,
        prompt_tokens=len(prompt),
        max_new_tokens=_most(params, len(prompt), served),
        sampling=_sampling(params),
        stop=wire.ResolvedStop(
            stop=params.stop,
            stop_token_ids=params.stop_token_ids,
            eos_token_ids=() if params.ignore_eos else served.eos_token_ids,
        ),
        logprobs=max(0, request.top_logprobs_num) if request.return_logprob else None,
        cache_key=served.cache_key,
    )
    kind = params.WhichOneof("constraint")
    if kind is not None:
        ours = "ebnf" if kind == "ebnf_grammar" else kind
        setattr(start.constraint, ours, getattr(params, kind))
    return start


def _most(params: smg.SamplingParams, prompt: int, served: Served) -> int:
    room = served.max_context - prompt
    if room < 1:
        raise Refusal(
            errors.ERROR_REASON_PROMPT_TOO_LONG,
            f"the prompt has {prompt} tokens; with at least one new token it must have at most "
            f"{served.max_context - 1}",
            {"prompt_tokens": str(prompt), "max_context": str(served.max_context)},
        )
    asked = params.max_new_tokens if params.HasField("max_new_tokens") else room
    if not 1 <= asked <= room:
        raise Refusal(
            errors.ERROR_REASON_INVALID_STOP,
            f"max_new_tokens is {asked}; it must, with a prompt of {prompt} tokens, be 1 to {room}",
            {"field": "max_new_tokens", "value": str(asked)},
        )
    return int(asked)


def _sampling(params: smg.SamplingParams) -> wire.ResolvedSampling:
    sampling = wire.ResolvedSampling(
        top_k=max(0, params.top_k),
        seed=params.sampling_seed if params.HasField("sampling_seed") else secrets.randbits(64),
    )
    for name, otherwise in _NUMBERS.items():
        setattr(sampling, name, getattr(params, name) if params.HasField(name) else otherwise)
    for token, bias in params.logit_bias.items():
        if not token.isdecimal():
            raise unsupported("sampling_params.logit_bias", f"{token!r} is no token id")
        sampling.logit_bias[int(token)] = bias
    return sampling


def _refuse(message: Message, fields: tuple[str, ...]) -> None:
    for field, _ in message.ListFields():
        if field.name in fields:
            raise unsupported(field.name, "is given; Baton does not have it")


def unsupported(field: str, message: str) -> Refusal:
    """The refusal of a field by its name."""
    return Refusal(errors.ERROR_REASON_UNSUPPORTED_FIELD, f"{field}: {message}", {"field": field})
