"""The kvstore process: assembles the server, runs until it is told to stop."""

import logging

from baton.v1 import kv_pb2 as pb
from baton.v1.kv_pb2_grpc import (
    add_KvDirectoryServiceServicer_to_server,
    add_KvPeerServiceServicer_to_server,
    add_KvSessionServiceServicer_to_server,
)
from baton_kvstore.config import KvstoreConfig
from baton_kvstore.directory_service import DirectoryServicer
from baton_kvstore.session_service import SessionServicer
from baton_kvstore.store import Store
from baton_rpc import Server, host_of, stop_signal
from baton_telemetry import KvstoreMetrics, serve_metrics
from baton_transfer import configure_ucx, new_epoch

log = logging.getLogger("baton.kvstore")


async def serve(config: KvstoreConfig) -> None:
    """Runs until SIGTERM or SIGINT, then drains. Raises OSError when an address is taken."""
    stop = stop_signal()
    configure_ucx(config.transport)
    metrics = KvstoreMetrics()
    me = pb.Peer(name=config.name, epoch=new_epoch())
    store = Store(config, me, metrics)
    server = Server(
        config.listen,
        [
            (DirectoryServicer(store), add_KvDirectoryServiceServicer_to_server),
            (SessionServicer(store), add_KvSessionServiceServicer_to_server),
            (store.peers, add_KvPeerServiceServicer_to_server),
        ],
    )
    exposition = serve_metrics(config.metrics, metrics) if config.metrics else None
    try:
        await store.peers.open_leases(host_of(config.listen))
        await server.start()
        me.address = config.advertise or server.address
        log.info("kvstore %s serves on %s", me.name, server.address)
        await stop.wait()
        # Watchers' streams never end by themselves: no point in waiting for them.
        await server.stop()
    finally:
        await store.peers.close_leases()
        await store.close()
        if exposition is not None:
            exposition.close()
