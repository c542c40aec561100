from baton.v1 import errors_pb2 as _errors_pb2
from baton.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_VERDICT_UNSPECIFIED: _ClassVar[LeaseVerdict]
    LEASE_VERDICT_VALID: _ClassVar[LeaseVerdict]
    LEASE_VERDICT_EXPIRED: _ClassVar[LeaseVerdict]
LEASE_VERDICT_UNSPECIFIED: LeaseVerdict
LEASE_VERDICT_VALID: LeaseVerdict
LEASE_VERDICT_EXPIRED: LeaseVerdict

class RenewSessionsRequest(_message.Message):
    __slots__ = ("turns",)
    TURNS_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedCompositeFieldContainer[SessionTurn]
    def __init__(self, turns: _Optional[_Iterable[_Union[SessionTurn, _Mapping]]] = ...) -> None: ...

class SessionTurn(_message.Message):
    __slots__ = ("session", "tenant", "page_hashes", "ttl_ms", "family")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    tenant: bytes
    page_hashes: bytes
    ttl_ms: int
    family: bytes
    def __init__(self, session: _Optional[bytes] = ..., tenant: _Optional[bytes] = ..., page_hashes: _Optional[bytes] = ..., ttl_ms: _Optional[int] = ..., family: _Optional[bytes] = ...) -> None: ...

class RenewSessionsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionsRequest(_message.Message):
    __slots__ = ("sessions", "page_hashes")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[bytes]
    page_hashes: bytes
    def __init__(self, sessions: _Optional[_Iterable[bytes]] = ..., page_hashes: _Optional[bytes] = ...) -> None: ...

class CloseSessionsResponse(_message.Message):
    __slots__ = ("page_hashes",)
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    page_hashes: bytes
    def __init__(self, page_hashes: _Optional[bytes] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("name", "address", "epoch")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    epoch: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class CacheIdentity(_message.Message):
    __slots__ = ("wire_version", "model_fingerprint", "page_size", "groups")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    model_fingerprint: str
    page_size: int
    groups: _containers.RepeatedCompositeFieldContainer[CacheGroupIdentity]
    def __init__(self, wire_version: _Optional[int] = ..., model_fingerprint: _Optional[str] = ..., page_size: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[CacheGroupIdentity, _Mapping]]] = ...) -> None: ...

class CacheGroupIdentity(_message.Message):
    __slots__ = ("name", "dtype", "layers", "page_bytes", "blocks", "snapshot_every")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_EVERY_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    layers: int
    page_bytes: int
    blocks: _containers.RepeatedCompositeFieldContainer[HeadBlock]
    snapshot_every: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., layers: _Optional[int] = ..., page_bytes: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[HeadBlock, _Mapping]]] = ..., snapshot_every: _Optional[int] = ...) -> None: ...

class HeadBlock(_message.Message):
    __slots__ = ("heads", "head_bytes")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    heads: int
    head_bytes: int
    def __init__(self, heads: _Optional[int] = ..., head_bytes: _Optional[int] = ...) -> None: ...

class HandshakeRequest(_message.Message):
    __slots__ = ("reader", "cache")
    READER_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    reader: Peer
    cache: CacheIdentity
    def __init__(self, reader: _Optional[_Union[Peer, _Mapping]] = ..., cache: _Optional[_Union[CacheIdentity, _Mapping]] = ...) -> None: ...

class HandshakeResponse(_message.Message):
    __slots__ = ("holder", "cache", "memory", "lease_port", "lease_ticket")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    LEASE_PORT_FIELD_NUMBER: _ClassVar[int]
    LEASE_TICKET_FIELD_NUMBER: _ClassVar[int]
    holder: Peer
    cache: CacheIdentity
    memory: ExportedCache
    lease_port: int
    lease_ticket: bytes
    def __init__(self, holder: _Optional[_Union[Peer, _Mapping]] = ..., cache: _Optional[_Union[CacheIdentity, _Mapping]] = ..., memory: _Optional[_Union[ExportedCache, _Mapping]] = ..., lease_port: _Optional[int] = ..., lease_ticket: _Optional[bytes] = ...) -> None: ...

class ExportedCache(_message.Message):
    __slots__ = ("ranks",)
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[ExportedRank]
    def __init__(self, ranks: _Optional[_Iterable[_Union[ExportedRank, _Mapping]]] = ...) -> None: ...

class ExportedRank(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[ExportedMemory]
    def __init__(self, groups: _Optional[_Iterable[_Union[ExportedMemory, _Mapping]]] = ...) -> None: ...

class ExportedMemory(_message.Message):
    __slots__ = ("agent", "agent_metadata", "memory_type", "base", "page_bytes", "pages", "device", "seals")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    AGENT_METADATA_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TYPE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SEALS_FIELD_NUMBER: _ClassVar[int]
    agent: str
    agent_metadata: bytes
    memory_type: str
    base: int
    page_bytes: int
    pages: int
    device: int
    seals: ExportedSeals
    def __init__(self, agent: _Optional[str] = ..., agent_metadata: _Optional[bytes] = ..., memory_type: _Optional[str] = ..., base: _Optional[int] = ..., page_bytes: _Optional[int] = ..., pages: _Optional[int] = ..., device: _Optional[int] = ..., seals: _Optional[_Union[ExportedSeals, _Mapping]] = ...) -> None: ...

class ExportedSeals(_message.Message):
    __slots__ = ("pid", "file", "name", "buckets")
    PID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    file: int
    name: str
    buckets: int
    def __init__(self, pid: _Optional[int] = ..., file: _Optional[int] = ..., name: _Optional[str] = ..., buckets: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("acquire", "renew", "release")
    ACQUIRE_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    acquire: AcquireRequest
    renew: RenewRequest
    release: ReleaseRequest
    def __init__(self, acquire: _Optional[_Union[AcquireRequest, _Mapping]] = ..., renew: _Optional[_Union[RenewRequest, _Mapping]] = ..., release: _Optional[_Union[ReleaseRequest, _Mapping]] = ...) -> None: ...

class LeaseResponse(_message.Message):
    __slots__ = ("acquire", "renew", "release", "refused")
    ACQUIRE_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    acquire: AcquireResponse
    renew: RenewResponse
    release: ReleaseResponse
    refused: LeaseRefusal
    def __init__(self, acquire: _Optional[_Union[AcquireResponse, _Mapping]] = ..., renew: _Optional[_Union[RenewResponse, _Mapping]] = ..., release: _Optional[_Union[ReleaseResponse, _Mapping]] = ..., refused: _Optional[_Union[LeaseRefusal, _Mapping]] = ...) -> None: ...

class LeaseRefusal(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: _errors_pb2.ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("reader", "epoch", "page_hashes", "ttl_ms", "group")
    READER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    reader: str
    epoch: int
    page_hashes: bytes
    ttl_ms: int
    group: int
    def __init__(self, reader: _Optional[str] = ..., epoch: _Optional[int] = ..., page_hashes: _Optional[bytes] = ..., ttl_ms: _Optional[int] = ..., group: _Optional[int] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("lease_id", "pages", "checksums", "ttl_ms")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    pages: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    ttl_ms: int
    def __init__(self, lease_id: _Optional[int] = ..., pages: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("epoch", "lease_ids", "ttl_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    ttl_ms: int
    def __init__(self, epoch: _Optional[int] = ..., lease_ids: _Optional[_Iterable[int]] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("expired",)
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    expired: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, expired: _Optional[_Iterable[int]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("epoch", "lease_ids", "handed_over", "proven")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDED_OVER_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    lease_ids: _containers.RepeatedScalarFieldContainer[int]
    handed_over: _containers.RepeatedCompositeFieldContainer[HandedOver]
    proven: bool
    def __init__(self, epoch: _Optional[int] = ..., lease_ids: _Optional[_Iterable[int]] = ..., handed_over: _Optional[_Iterable[_Union[HandedOver, _Mapping]]] = ..., proven: bool = ...) -> None: ...

class HandedOver(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedScalarFieldContainer[LeaseVerdict]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[LeaseVerdict, str]]] = ...) -> None: ...

class WatchHandoversRequest(_message.Message):
    __slots__ = ("reader", "epoch")
    READER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    reader: str
    epoch: int
    def __init__(self, reader: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class WatchHandoversResponse(_message.Message):
    __slots__ = ("handovers",)
    HANDOVERS_FIELD_NUMBER: _ClassVar[int]
    handovers: _containers.RepeatedCompositeFieldContainer[Handover]
    def __init__(self, handovers: _Optional[_Iterable[_Union[Handover, _Mapping]]] = ...) -> None: ...

class Handover(_message.Message):
    __slots__ = ("request_id", "attempt", "sealed_pages", "first_token", "failed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEALED_PAGES_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    sealed_pages: int
    first_token: FirstToken
    failed: _errors_pb2.ErrorReason
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., sealed_pages: _Optional[int] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., failed: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token_id", "logprob", "cached_tokens", "queue_us", "prefill_us", "pages_moved", "bytes_moved")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    PAGES_MOVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: _inference_pb2.TokenLogprob
    cached_tokens: int
    queue_us: int
    prefill_us: int
    pages_moved: int
    bytes_moved: int
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[_Union[_inference_pb2.TokenLogprob, _Mapping]] = ..., cached_tokens: _Optional[int] = ..., queue_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., pages_moved: _Optional[int] = ..., bytes_moved: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("holder", "sequence", "added", "removed", "cache", "storage")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    holder: Peer
    sequence: int
    added: bytes
    removed: bytes
    cache: CacheIdentity
    storage: bool
    def __init__(self, holder: _Optional[_Union[Peer, _Mapping]] = ..., sequence: _Optional[int] = ..., added: _Optional[bytes] = ..., removed: _Optional[bytes] = ..., cache: _Optional[_Union[CacheIdentity, _Mapping]] = ..., storage: bool = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("resync",)
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    resync: bool
    def __init__(self, resync: bool = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("page_hashes",)
    PAGE_HASHES_FIELD_NUMBER: _ClassVar[int]
    page_hashes: bytes
    def __init__(self, page_hashes: _Optional[bytes] = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ("locations",)
    class Location(_message.Message):
        __slots__ = ("holder", "pages")
        HOLDER_FIELD_NUMBER: _ClassVar[int]
        PAGES_FIELD_NUMBER: _ClassVar[int]
        holder: Peer
        pages: int
        def __init__(self, holder: _Optional[_Union[Peer, _Mapping]] = ..., pages: _Optional[int] = ...) -> None: ...
    LOCATIONS_FIELD_NUMBER: _ClassVar[int]
    locations: _containers.RepeatedCompositeFieldContainer[LocateResponse.Location]
    def __init__(self, locations: _Optional[_Iterable[_Union[LocateResponse.Location, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("watcher",)
    WATCHER_FIELD_NUMBER: _ClassVar[int]
    watcher: str
    def __init__(self, watcher: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("sequence", "snapshot", "changes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    snapshot: bool
    changes: _containers.RepeatedCompositeFieldContainer[HolderChange]
    def __init__(self, sequence: _Optional[int] = ..., snapshot: bool = ..., changes: _Optional[_Iterable[_Union[HolderChange, _Mapping]]] = ...) -> None: ...

class HolderChange(_message.Message):
    __slots__ = ("holder", "added", "removed", "gone", "storage")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    holder: Peer
    added: bytes
    removed: bytes
    gone: bool
    storage: bool
    def __init__(self, holder: _Optional[_Union[Peer, _Mapping]] = ..., added: _Optional[bytes] = ..., removed: _Optional[bytes] = ..., gone: bool = ..., storage: bool = ...) -> None: ...
