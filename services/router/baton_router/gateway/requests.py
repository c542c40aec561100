"""SMG's GenerateRequest to baton.v1's, which the router reads as any client's.

What Baton does not do is refused by the field's name, never left out.
"""

from typing import Final

from google.protobuf.message import Message
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as wire

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton_rpc import Refusal

MAX_SAMPLES: Final = 16

# Fields whose presence asks for what Baton does not do, and why not.
_UNSUPPORTED: Final = {
    "mm_inputs": "this model reads text only",
    "encode_bootstrap_info": "this model reads text only",
    "kv_bootstrap_info": "prefill and decode are the router's affair; take it as one worker",
    "data_parallel_rank": "the router places requests itself",
    "token_ids_logprob": "log-probs of chosen token ids are not computed",
}
_UNSUPPORTED_SAMPLING: Final = {
    "min_new_tokens": "a least length is not supported; use ignore_eos with max_new_tokens",
    "custom_params": "Baton has no custom sampling parameters",
}
_NUMBERS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)


def samples(request: wire.GenerateRequest) -> int:
    """How many answers are wanted. Raises Refusal."""
    count = request.sampling_params.n or 1
    if count > MAX_SAMPLES:
        raise _refusal("sampling_params.n", f"is {count}; it must be 1 to {MAX_SAMPLES}")
    return count


def to_baton(request: wire.GenerateRequest, index: int = 0) -> pb.GenerateRequest:
    """Sample `index` of the request. Raises Refusal for what is not supported."""
    _refuse(request, _UNSUPPORTED, "")
    params = request.sampling_params
    _refuse(params, _UNSUPPORTED_SAMPLING, "sampling_params.")
    if request.HasField("logprob_start_len") and request.logprob_start_len >= 0:
        raise _refusal("logprob_start_len", "asks for log-probs of the prompt, which are not kept")
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=request.tokenized.input_ids),
        sampling=_sampling(params, index),
        stop=_stop(params),
        output=_output(request),
    )


def _sampling(params: wire.SamplingParams, index: int) -> pb.SamplingParams:
    given = {name: getattr(params, name) for name in _NUMBERS if params.HasField(name)}
    sampling = pb.SamplingParams(**given)
    if params.HasField("top_k"):
        sampling.top_k = max(0, params.top_k)  # -1 keeps every token, as Baton's 0
    if params.HasField("sampling_seed"):
        # Samples of one request differ; the first is that of the same request with n = 1.
        sampling.seed = (params.sampling_seed + index) % 2**64
    for token, bias in params.logit_bias.items():
        if not token.isdecimal():
            raise _refusal("sampling_params.logit_bias", f"has the key {token!r}, no token id")
        sampling.logit_bias[int(token)] = bias
    return sampling


def _stop(params: wire.SamplingParams) -> pb.StopParams:
    return pb.StopParams(
        max_tokens=params.max_new_tokens if params.HasField("max_new_tokens") else None,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
    )


def _output(request: wire.GenerateRequest) -> pb.OutputParams:
    output = pb.OutputParams()
    if request.return_logprob:
        if request.top_logprobs_num < 0:
            raise _refusal("top_logprobs_num", f"is {request.top_logprobs_num}, below 0")
        output.logprobs = request.top_logprobs_num
    kind = request.sampling_params.WhichOneof("constraint")
    if kind is not None:
        ours = "ebnf" if kind == "ebnf_grammar" else kind
        setattr(output.constraint, ours, getattr(request.sampling_params, kind))
    return output


def _refuse(message: Message, unsupported: dict[str, str], prefix: str) -> None:
    for field, _ in message.ListFields():
        if field.name in unsupported:
            raise _refusal(f"{prefix}{field.name}", f"is given: {unsupported[field.name]}")


def _refusal(field: str, message: str) -> Refusal:
    return Refusal(errors.ERROR_REASON_UNSUPPORTED_FIELD, f"{field} {message}", {"field": field})
