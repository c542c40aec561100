"""Implementations in plain torch, for any device, of operators whose reference is slow."""

from baton_kernels.portable import dense, gqa, mla, moe

__all__ = ["dense", "gqa", "mla", "moe"]
