"""Cache entries in another type than the model's: float8 with a scale per token, or a plain cast.

An entry is cut into parts (MLA: latent, rotated key; GQA: keys, values), each with its own scale,
so that a part of small values keeps its precision. A float8 entry is stored as bytes: all its
elements in float8_e4m3, then one float32 scale for each part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PACKED = torch.uint8
SCALE_BYTES = 4
_PARTS = 2  # of every entry there is
_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def packed_width(elements: int) -> int:
    """Bytes of a float8 entry of so many elements."""
    return elements + _PARTS * SCALE_BYTES


def elements_of(cache: Tensor) -> int:
    """Elements of an entry in a cache [..., width]."""
    width = cache.shape[-1]
    return width - _PARTS * SCALE_BYTES if cache.dtype == PACKED else width


def pack(entries: Tensor, parts: Sequence[int]) -> Tensor:
    """entries [T, sum(parts)] -> uint8 [T, packed_width]. NaN and infinity become NaN."""
    columns = []
    scales = []
    for part in torch.split(entries.float(), list(parts), -1):
        largest = part.abs().amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
        columns.append((part / scale).to(torch.float8_e4m3fn))
        scales.append(scale)
    values = torch.cat([column.view(PACKED) for column in columns], -1)
    return torch.cat([values, torch.cat(scales, -1).view(PACKED)], -1)


def unpack(stored: Tensor, parts: Sequence[int], dtype: torch.dtype) -> Tensor:
    """stored [..., width] of a cache -> entries [..., sum(parts)] in ``dtype``."""
    if stored.dtype != PACKED:
        return stored.to(dtype)
    values, scales = torch.split(stored, [sum(parts), len(parts) * SCALE_BYTES], -1)
    wide = values.contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    apart = zip(
        torch.split(wide, list(parts), -1),
        torch.split(scales.contiguous().view(torch.float32), 1, -1),
        strict=True,
    )
    return torch.cat([part * scale for part, scale in apart], -1).to(dtype)


def halves(cache: Tensor) -> tuple[int, int]:
    """Parts of a cache of keys and values."""
    return (elements_of(cache) // 2,) * 2


def latent_and_key(cache: Tensor, rank: int) -> tuple[int, int]:
    """Parts of a cache of latents of ``rank`` and rotated keys."""
    return rank, elements_of(cache) - rank
