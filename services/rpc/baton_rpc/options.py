"""The channel arguments that all of Baton shares, with their reasons."""

from typing import Final

# A directory's resync is the largest message: 16 bytes a page, 4 million pages.
MAX_MESSAGE_BYTES: Final = 64 << 20

# A peer whose machine is gone sends nothing: no FIN, no RST. Pings every two
# seconds, unanswered for five, end its streams within seven. Shorter would
# take a machine that is merely busy for a dead one.
KEEPALIVE_INTERVAL_MS: Final = 2_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000

Option = tuple[str, int]

_BOTH: Final[tuple[Option, ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Measured with grpc 1.76: this one decides, with its default of a minute,
    # however short the keepalive's own timeout is.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    *_BOTH,
    # Two servers on one port would share its calls at random instead of failing.
    ("grpc.so_reuseport", 0),
    # Without these the server answers frequent pings with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
)

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    *_BOTH,
    # A worker that restarts is wanted back within a second, not after 20.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Each channel has its own connection: a stalled stream of one does not
    # hold up another, and a dead connection is not passed on.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy of the environment is for the internet, not for the cluster.
    ("grpc.enable_http_proxy", 0),
)
