"""Implementations in plain torch, for any device, of operators whose reference is slow."""

from baton_kernels.portable import delta, dense, gqa, mla, moe, static

__all__ = ["delta", "dense", "gqa", "mla", "moe", "static"]
