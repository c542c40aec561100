"""Dense operators: fewer passes over memory and fewer calls than the references."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from baton_kernels import operators
from baton_kernels.registry import Band, Requirements
from baton_kernels.stored import PACKED, pack


@operators.linear.register("torch", band=Band.PORTABLE)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


# Torch has no fused form for inputs and weights of different dtypes (zero-centred norms).
_FLOAT32 = Requirements(dtypes=frozenset({torch.float32}))


@operators.rms_norm.register("fused", band=Band.PORTABLE, requirements=_FLOAT32)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@operators.add_rms_norm.register("fused", band=Band.PORTABLE, requirements=_FLOAT32)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, F.rms_norm(total, weight.shape, weight, eps)


@operators.silu_mul.register("inplace", band=Band.PORTABLE)
def silu_mul(gate_up: Tensor) -> Tensor:
    width = gate_up.shape[-1] // 2
    return F.silu(gate_up[..., :width].float()).mul_(gate_up[..., width:]).to(gate_up.dtype)


@operators.rotate.register("inplace", band=Band.PORTABLE)
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved and x.dtype == torch.float32 and x.storage_offset() % 2 == 0:
        # Neighbouring pairs are complex numbers, and a rotation is one product.
        pairs = torch.view_as_complex(x.contiguous().view(*x.shape[:-1], x.shape[-1] // 2, 2))
        return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2)
    half = x.shape[-1] // 2
    parts = (
        (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    )
    first, second = (x[..., part] for part in parts)
    cos, sin = cos[:, None], sin[:, None]
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    torch.mul(first, cos, out=out[..., parts[0]]).sub_(second * sin)
    torch.mul(second, cos, out=out[..., parts[1]]).add_(first * sin)
    return out.to(x.dtype)


@operators.cache_write.register("scatter", band=Band.PORTABLE)
def cache_write(cache: Tensor, entries: Tensor, pages: Tensor, offsets: Tensor) -> None:
    cache.index_put_((pages, offsets), entries)


@operators.cache_write_as.register("scatter", band=Band.PORTABLE)
def cache_write_as(
    cache: Tensor, entries: Tensor, pages: Tensor, offsets: Tensor, parts: Sequence[int]
) -> None:
    rows = pack(entries, parts) if cache.dtype == PACKED else entries.to(cache.dtype)
    cache.index_put_((pages, offsets), rows)
