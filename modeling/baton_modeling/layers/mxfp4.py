"""MXFP4 (OCP Microscaling Formats, 1.0): blocks of 32 four-bit floats with a power of two each."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT_BIAS = 127


def unpacked(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """blocks uint8 [..., G, 16], scales uint8 [..., G] -> [..., 32 G] in ``dtype``.

    The low half of a byte is the first of its two values.
    """
    table = torch.tensor([*_VALUES, *(-value for value in _VALUES)], device=blocks.device)
    pairs = torch.stack([blocks & 0xF, blocks >> 4], -1).flatten(-2)
    values = torch.ldexp(table[pairs.int()], scales.int()[..., None] - _EXPONENT_BIAS)
    return values.flatten(-2).to(dtype)
