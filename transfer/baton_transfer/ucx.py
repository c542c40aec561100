"""UCX settings per transport. UCX reads them from the environment when an agent is made."""

import os
from collections.abc import Mapping
from enum import StrEnum


class Transport(StrEnum):
    """How bytes travel."""

    LOCAL = "local"  # both processes on one host: the reader copies out of the holder's memory
    # Between hosts without RDMA. The holder's process sends the bytes; one that was stopped past
    # its reader's deadline finds the connection closed when it wakes, and UCX may abort it then.
    TCP = "tcp"
    RDMA = "rdma"  # InfiniBand or RoCE, GPUDirect where the driver offers it


# Everybody can receive what anybody sends: a segment larger than the receiver's
# size corrupts its memory (UCX in NIXL 1.5.1 crashed), so all transports set it.
_RECEIVE = {"UCX_TCP_RX_SEG_SIZE": "256K"}

# A peer whose host vanished is noticed in about five seconds instead of 20 or
# never. UCX_KEEPALIVE_INTERVAL must stay unset: with it the TCP settings do nothing.
_DEAD_HOST = {
    "UCX_TCP_USER_TIMEOUT": "5s",
    "UCX_TCP_KEEPIDLE": "1s",
    "UCX_TCP_KEEPINTVL": "1s",
    "UCX_TCP_KEEPCNT": "3",
}

SETTINGS: Mapping[Transport, Mapping[str, str]] = {
    # cma: one copy by process_vm_readv; tcp carries the connection set-up.
    # Shared-memory transports cannot reach memory that was not allocated by UCX.
    Transport.LOCAL: {"UCX_TLS": "tcp,cma", **_RECEIVE, **_DEAD_HOST},
    # 256 KiB segments: 1.4 GB/s instead of 0.5 over loopback.
    Transport.TCP: {
        "UCX_TLS": "tcp",
        "UCX_TCP_TX_SEG_SIZE": "256K",
        **_RECEIVE,
        **_DEAD_HOST,
    },
    # Everything UCX finds: it prefers rc over tcp and adds cuda_copy and gdr_copy itself.
    Transport.RDMA: {"UCX_TLS": "all", **_RECEIVE, **_DEAD_HOST},
}


def post_copies() -> bool:
    """Whether posting a read copies its bytes (CMA), so that there is nothing left to wait for."""
    return "cma" in os.environ.get("UCX_TLS", "").split(",")


def progress_delay_us(tls: str | None = None) -> int:
    """How long an exporting agent's progress thread sleeps between looks, in microseconds.

    `tls`: a value of UCX_TLS; None takes the environment's. Idle cost against latency: with CMA
    the holder only answers connections (measured: 0.5 % of a core at 10 ms, no slower to
    connect); without, it moves the bytes itself (2-3 % of a core at 1 ms).
    """
    chosen = os.environ.get("UCX_TLS", "") if tls is None else tls
    return 10_000 if "cma" in chosen.split(",") else 1_000


def configure_ucx(transport: Transport = Transport.LOCAL) -> dict[str, str]:
    """Puts the settings of `transport` into the environment; returns what holds now.

    Must run before the process makes its first Exporter or PageReader. A
    variable that is already set stays as it is: the operator knows better.
    """
    for name, value in SETTINGS[transport].items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    return {name: value for name, value in os.environ.items() if name.startswith("UCX_")}
