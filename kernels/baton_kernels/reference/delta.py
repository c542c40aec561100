"""References of Gated DeltaNet (Yang et al., 2024, arXiv 2412.06464).

Short convolution, gates and the gated delta rule.

Both recurrences read a request's state from one slot of an arena and leave it in another
(``StateRows``), so continuing from a snapshot that others share copies nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baton_kernels.states import StateRows

# Added to the squared length of queries and keys, as flash-linear-attention does.
NORM_EPS = 1e-6


def conv_prefill(x: Tensor, weight: Tensor, state: Tensor, rows: StateRows) -> Tensor:
    """``silu`` of a causal convolution of each channel on its own, over ragged chunks.

    x [T, C]; weight [C, K], its last column for the current token; state float32
    [slots, C, K - 1], the inputs before the row's first token, oldest first -> [T, C] in x's dtype.
    """
    out = torch.zeros_like(x)
    for row in range(len(rows)):
        start, stop = rows.starts[row], rows.starts[row + 1]
        if start == stop:
            continue
        seen = _read(state, rows, row)
        for token in range(start, stop):
            window = torch.cat([seen, x[token].float()[:, None]], 1)
            out[token] = F.silu((window * weight.float()).sum(1)).to(x.dtype)
            seen = window[:, 1:]
        state[int(rows.writes[row])] = seen
    return out


def conv_decode(x: Tensor, weight: Tensor, state: Tensor, rows: StateRows) -> Tensor:
    """``conv_prefill`` of one token per row: x [B, C]."""
    return conv_prefill(x, weight, state, rows)


def delta_gates(a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """(log decay, step size) of each head: ``-exp(a_log) softplus(a + dt_bias)``, ``sigmoid(b)``.

    a, b [T, heads]; a_log, dt_bias float32 [heads] -> two float32 [T, heads].
    """
    return -a_log.exp() * F.softplus(a.float() + dt_bias), b.float().sigmoid()


def delta_prefill(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, rows: StateRows
) -> Tensor:
    """The gated delta rule over ragged chunks (Yang et al., 2024, equation 10).

    Per head ``S <- exp(decay) S``, then ``S <- S + beta k (v - S^T k)^T`` and ``o = S^T q``, with
    k of unit length and q of length 1/sqrt(D). Query/key head h serves the value heads
    h * (V / H) .. (h + 1) * (V / H).

    q, k [T, H, D]; v [T, V, E]; decay (in log space), beta float32 [T, V]; state float32
    [slots, V, D, E] -> [T, V, E] in v's dtype.
    """
    out = torch.zeros_like(v)
    q, k = unit(q) / q.shape[-1] ** 0.5, unit(k)
    groups = v.shape[1] // k.shape[1]
    q, k = q.repeat_interleave(groups, 1), k.repeat_interleave(groups, 1)
    for row in range(len(rows)):
        start, stop = rows.starts[row], rows.starts[row + 1]
        if start == stop:
            continue
        s = _read(state, rows, row)
        for t in range(start, stop):
            s = s * decay[t].exp()[:, None, None]
            error = v[t].float() - torch.einsum("hde,hd->he", s, k[t])
            s = s + torch.einsum("hd,he->hde", k[t], error * beta[t][:, None])
            out[t] = torch.einsum("hde,hd->he", s, q[t]).to(out.dtype)
        state[int(rows.writes[row])] = s
    return out


def delta_decode(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, rows: StateRows
) -> Tensor:
    """``delta_prefill`` of one token per row."""
    return delta_prefill(q, k, v, decay, beta, state, rows)


def unit(x: Tensor) -> Tensor:
    """Vectors of the last dimension, scaled to length one, float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).sum(-1, keepdim=True) + NORM_EPS)


def _read(state: Tensor, rows: StateRows, row: int) -> Tensor:
    slot = int(rows.reads[row])
    return torch.zeros_like(state[0]) if slot < 0 else state[slot].clone()
