"""TLS from files, and the bearer token: both optional, both off by default."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. `ca` alone: verify the other end. All three: also prove ourselves.

    A server needs `certificate` and `key`; with `ca` it demands that clients
    prove themselves too (mTLS).
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError(
                f"TLS: certificate ({self.certificate}) and key ({self.key}) come together"
            )

    def for_server(self) -> grpc.ServerCredentials:
        """Credentials of a listening port. Raises ValueError without a certificate."""
        if self.certificate is None or self.key is None:
            raise ValueError("TLS: a server needs a certificate and a key")
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.ca.read_bytes() if self.ca else None,
            require_client_auth=self.ca is not None,
        )

    def for_channel(self) -> grpc.ChannelCredentials:
        """Credentials of a client."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata by which a client shows its token."""
    return (("authorization", f"Bearer {token}"),)


def carries(token: str, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether the call's metadata hold `token` as a bearer token."""
    wanted = f"Bearer {token}".encode()
    for key, value in metadata:
        if key == "authorization":
            given = value if isinstance(value, bytes) else value.encode()
            return hmac.compare_digest(given, wanted)
    return False
