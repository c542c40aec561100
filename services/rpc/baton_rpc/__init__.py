"""How Baton speaks gRPC: server assembly, the error table, channels, an orderly end."""

from baton_rpc.address import Address, Addresses, host_of
from baton_rpc.channels import channel
from baton_rpc.credentials import TlsFiles, bearer
from baton_rpc.described import adder
from baton_rpc.refusal import CODES, DOMAIN, Refusal, refusal_of, status_of
from baton_rpc.server import Mount, Server, wait_until_healthy
from baton_rpc.signals import stop_signal

__all__ = [
    "CODES",
    "Address",
    "Addresses",
    "DOMAIN",
    "Mount",
    "Refusal",
    "Server",
    "TlsFiles",
    "adder",
    "bearer",
    "channel",
    "host_of",
    "refusal_of",
    "status_of",
    "stop_signal",
    "wait_until_healthy",
]
