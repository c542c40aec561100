from baton.v1 import errors_pb2 as _errors_pb2
from baton.v1 import inference_pb2 as _inference_pb2
from baton.v1 import kv_pb2 as _kv_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ROLE_UNSPECIFIED: _ClassVar[WorkerRole]
    WORKER_ROLE_PREFILL: _ClassVar[WorkerRole]
    WORKER_ROLE_DECODE: _ClassVar[WorkerRole]
WORKER_ROLE_UNSPECIFIED: WorkerRole
WORKER_ROLE_PREFILL: WorkerRole
WORKER_ROLE_DECODE: WorkerRole

class MeetRequest(_message.Message):
    __slots__ = ("room", "reader")
    ROOM_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    room: int
    reader: str
    def __init__(self, room: _Optional[int] = ..., reader: _Optional[str] = ...) -> None: ...

class MeetResponse(_message.Message):
    __slots__ = ("prefill", "request_id")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    prefill: _kv_pb2.Peer
    request_id: str
    def __init__(self, prefill: _Optional[_Union[_kv_pb2.Peer, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "commands")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    commands: CommandBatch
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., commands: _Optional[_Union[CommandBatch, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("router", "wire_version")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    router: str
    wire_version: int
    def __init__(self, router: _Optional[str] = ..., wire_version: _Optional[int] = ...) -> None: ...

class CommandBatch(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("start", "cancel", "prefill_lost", "forget")
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    PREFILL_LOST_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    start: StartRequest
    cancel: CancelRequest
    prefill_lost: PrefillLost
    forget: ForgetPages
    def __init__(self, start: _Optional[_Union[StartRequest, _Mapping]] = ..., cancel: _Optional[_Union[CancelRequest, _Mapping]] = ..., prefill_lost: _Optional[_Union[PrefillLost, _Mapping]] = ..., forget: _Optional[_Union[ForgetPages, _Mapping]] = ...) -> None: ...

class ForgetPages(_message.Message):
    __slots__ = ("page_hashes",)
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    page_hashes: bytes
    def __init__(self, page_hashes: _Optional[bytes] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("request_id", "attempt", "token_ids", "prompt_tokens", "max_new_tokens", "sampling", "stop", "logprobs", "cache_key", "sources", "compute", "prefill_for", "await_prefill", "constraint")
    class Compute(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class PrefillFor(_message.Message):
        __slots__ = ("reader",)
        READER_FIELD_NUMBER: _ClassVar[int]
        reader: str
        def __init__(self, reader: _Optional[str] = ...) -> None: ...
    class AwaitPrefill(_message.Message):
        __slots__ = ("prefill",)
        PREFILL_FIELD_NUMBER: _ClassVar[int]
        prefill: _kv_pb2.Peer
        def __init__(self, prefill: _Optional[_Union[_kv_pb2.Peer, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FOR_FIELD_NUMBER: _ClassVar[int]
    AWAIT_PREFILL_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    max_new_tokens: int
    sampling: ResolvedSampling
    stop: ResolvedStop
    logprobs: int
    cache_key: bytes
    sources: _containers.RepeatedCompositeFieldContainer[PageSource]
    compute: StartRequest.Compute
    prefill_for: StartRequest.PrefillFor
    await_prefill: StartRequest.AwaitPrefill
    constraint: _inference_pb2.Constraint
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., sampling: _Optional[_Union[ResolvedSampling, _Mapping]] = ..., stop: _Optional[_Union[ResolvedStop, _Mapping]] = ..., logprobs: _Optional[int] = ..., cache_key: _Optional[bytes] = ..., sources: _Optional[_Iterable[_Union[PageSource, _Mapping]]] = ..., compute: _Optional[_Union[StartRequest.Compute, _Mapping]] = ..., prefill_for: _Optional[_Union[StartRequest.PrefillFor, _Mapping]] = ..., await_prefill: _Optional[_Union[StartRequest.AwaitPrefill, _Mapping]] = ..., constraint: _Optional[_Union[_inference_pb2.Constraint, _Mapping]] = ...) -> None: ...

class PageSource(_message.Message):
    __slots__ = ("holder", "pages", "only")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    ONLY_FIELD_NUMBER: _ClassVar[int]
    holder: _kv_pb2.Peer
    pages: int
    only: bytes
    def __init__(self, holder: _Optional[_Union[_kv_pb2.Peer, _Mapping]] = ..., pages: _Optional[int] = ..., only: _Optional[bytes] = ...) -> None: ...

class ResolvedSampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., seed: _Optional[int] = ...) -> None: ...

class ResolvedStop(_message.Message):
    __slots__ = ("stop", "stop_token_ids", "eos_token_ids")
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class PrefillLost(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("hello", "step")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    step: StepReport
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., step: _Optional[_Union[StepReport, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker", "role", "wire_version", "epoch", "peer", "cache", "max_context", "max_running", "pool")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    worker: str
    role: WorkerRole
    wire_version: int
    epoch: int
    peer: _kv_pb2.Peer
    cache: _kv_pb2.CacheIdentity
    max_context: int
    max_running: int
    pool: PoolState
    def __init__(self, worker: _Optional[str] = ..., role: _Optional[_Union[WorkerRole, str]] = ..., wire_version: _Optional[int] = ..., epoch: _Optional[int] = ..., peer: _Optional[_Union[_kv_pb2.Peer, _Mapping]] = ..., cache: _Optional[_Union[_kv_pb2.CacheIdentity, _Mapping]] = ..., max_context: _Optional[int] = ..., max_running: _Optional[int] = ..., pool: _Optional[_Union[PoolState, _Mapping]] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("step", "updates", "pool", "draining")
    STEP_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    step: int
    updates: _containers.RepeatedCompositeFieldContainer[RequestUpdate]
    pool: PoolState
    draining: bool
    def __init__(self, step: _Optional[int] = ..., updates: _Optional[_Iterable[_Union[RequestUpdate, _Mapping]]] = ..., pool: _Optional[_Union[PoolState, _Mapping]] = ..., draining: bool = ...) -> None: ...

class PoolState(_message.Message):
    __slots__ = ("total_pages", "free_pages", "running", "waiting", "computed_tokens")
    TOTAL_PAGES_FIELD_NUMBER: _ClassVar[int]
    FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    total_pages: int
    free_pages: int
    running: int
    waiting: int
    computed_tokens: int
    def __init__(self, total_pages: _Optional[int] = ..., free_pages: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class RequestUpdate(_message.Message):
    __slots__ = ("request_id", "attempt", "admitted", "tokens", "done", "failed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    admitted: RequestAdmitted
    tokens: RequestTokens
    done: RequestDone
    failed: RequestFailed
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., admitted: _Optional[_Union[RequestAdmitted, _Mapping]] = ..., tokens: _Optional[_Union[RequestTokens, _Mapping]] = ..., done: _Optional[_Union[RequestDone, _Mapping]] = ..., failed: _Optional[_Union[RequestFailed, _Mapping]] = ...) -> None: ...

class RequestAdmitted(_message.Message):
    __slots__ = ("reused_tokens",)
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    reused_tokens: int
    def __init__(self, reused_tokens: _Optional[int] = ...) -> None: ...

class RequestTokens(_message.Message):
    __slots__ = ("first_position", "token_ids", "logprobs", "cost")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenLogprob]
    cost: RequestCost
    def __init__(self, first_position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_inference_pb2.TokenLogprob, _Mapping]]] = ..., cost: _Optional[_Union[RequestCost, _Mapping]] = ...) -> None: ...

class RequestDone(_message.Message):
    __slots__ = ("reason", "matched_stop", "cost")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    reason: _inference_pb2.FinishReason
    matched_stop: str
    cost: RequestCost
    def __init__(self, reason: _Optional[_Union[_inference_pb2.FinishReason, str]] = ..., matched_stop: _Optional[str] = ..., cost: _Optional[_Union[RequestCost, _Mapping]] = ...) -> None: ...

class RequestFailed(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: _errors_pb2.ErrorReason
    message: str
    def __init__(self, reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class RequestCost(_message.Message):
    __slots__ = ("reused_tokens", "fetched_tokens", "computed_tokens", "pages_moved", "bytes_moved", "queue_us", "prefill_us", "handover_us", "first_token")
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAGES_MOVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    reused_tokens: int
    fetched_tokens: int
    computed_tokens: int
    pages_moved: int
    bytes_moved: int
    queue_us: int
    prefill_us: int
    handover_us: int
    first_token: _kv_pb2.FirstToken
    def __init__(self, reused_tokens: _Optional[int] = ..., fetched_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., pages_moved: _Optional[int] = ..., bytes_moved: _Optional[int] = ..., queue_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., handover_us: _Optional[int] = ..., first_token: _Optional[_Union[_kv_pb2.FirstToken, _Mapping]] = ...) -> None: ...
