"""Ports: which are free, and what an address says."""

import socket
from collections.abc import Iterable


def free_ports(count: int, preferred: Iterable[int] = ()) -> list[int]:
    """`count` different ports that are free now, preferred ones first.

    All are held until all are chosen, so none is given twice. Another process
    may still take one before its server binds it; the server then says so.
    """
    held: list[socket.socket] = []
    try:
        for port in [*preferred, *[0] * count]:
            if len(held) == count:
                break
            probe = socket.socket()
            held.append(probe)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                held.pop().close()
        return [int(probe.getsockname()[1]) for probe in held]
    finally:
        for probe in held:
            probe.close()


def is_free(address: str) -> bool:
    """Whether a server could bind host:port now."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "127.0.0.1", int(port)))
        except OSError:
            return False
    return True
