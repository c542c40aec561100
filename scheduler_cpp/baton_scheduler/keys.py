"""The key of page identities: pages are shared by those who have the same one."""

import hashlib


def cache_key(model_fingerprint: str, tenant: str, *more: bytes) -> bytes:
    """16 bytes. Tenants and models never share pages; `more` sets further apart."""
    parts = [model_fingerprint.encode(), tenant.encode(), *more]
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.blake2b(framed, digest_size=16).digest()
