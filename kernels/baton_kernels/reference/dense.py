"""References of the dense operators: linear maps, norms, activations, embeddings, rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x [T, in], weight [out, in], bias [out] -> [T, out], dtype of x."""
    y = x @ weight.t()
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 (Zhang and Sennrich, 2019).

    x [T, hidden], weight [hidden] -> [T, hidden] in x's dtype, rounded once, after the product.
    """
    return _normed(x, weight, eps).to(x.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm(x) silu(gate)``: x, gate [T, heads, D], weight [D] -> x's shape, dtype of gate."""
    return (_normed(x, weight, eps) * torch.nn.functional.silu(gate.float())).to(gate.dtype)


def sigmoid_mul(x: Tensor, gate: Tensor) -> Tensor:
    """``x * sigmoid(gate)``: x [T, D], gate [T, D] or [T, 1] -> [T, D]."""
    return x * torch.sigmoid(gate)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(``x + residual``, its rms_norm): both [T, hidden]. Neither input is changed."""
    total = x + residual
    return total, rms_norm(total, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU's inner product: gate_up [T, 2 I], gate first -> ``silu(gate) * up`` [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate.float()) * up).to(gate_up.dtype)


def embedding(token_ids: Tensor, table: Tensor, first_row: int) -> Tensor:
    """Rows of a vocabulary shard: token_ids int64 [T], table [V, hidden] -> [T, hidden].

    The table holds tokens first_row .. first_row + V; any other token gives a row of zeros, so
    that the sum over the shards is the whole lookup.
    """
    local = token_ids - first_row
    mine = (local >= 0) & (local < table.shape[0])
    rows = table[local.clamp(0, table.shape[0] - 1)]
    return rows.masked_fill(~mine[:, None], 0)


def rotary_table(positions: Tensor, frequencies: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(cos, sin) of ``position * frequency`` times ``scale``.

    positions int64 [T], frequencies float32 [D/2] -> two float32 [T, D/2].
    """
    angles = positions[:, None].float() * frequencies[None, :]
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of x [T, heads, D]; cos, sin [T, D/2].

    interleaved: pairs are (x0, x1), (x2, x3), ... as DeepSeek stores them, else (x0, x[D/2]), ...
    The result keeps the layout of its input.
    """
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    cos, sin = cos[:, None], sin[:, None]
    turned = [(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)]
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
