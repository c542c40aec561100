"""How Baton dials."""

import grpc

from baton_rpc.credentials import TlsFiles
from baton_rpc.options import CHANNEL_OPTIONS


def channel(address: str, *, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """A channel to `address` (host:port) that notices a dead peer within seven seconds.

    Must be created and used on one running event loop. Pass deadlines on with
    `timeout=context.time_remaining()`; gRPC does not by itself. A server that
    wants a token gets it with `metadata=bearer(token)` on each call.
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, tls.for_channel(), options=CHANNEL_OPTIONS)
