"""Gated DeltaNet: one step for all decoding rows at once; prompt chunks in blocks of tokens.

Decoding looks at nothing on the host where its rows are known to have one token each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from baton_kernels import operators
from baton_kernels.reference.delta import unit
from baton_kernels.registry import Band
from baton_kernels.states import StateRows

# Tokens that are joined into matrix products; more would cost more than it saves.
_BLOCK = 64


@operators.conv_decode.register("batched", band=Band.PORTABLE)
def conv_decode(x: Tensor, weight: Tensor, state: Tensor, rows: StateRows) -> Tensor:
    window = torch.cat([rows.gather(state), x.float()[..., None]], 2)
    rows.scatter(state, window[..., 1:])
    return F.silu((window * weight.float()).sum(2)).to(x.dtype)


@operators.conv_prefill.register("shifted", band=Band.PORTABLE, reads_host=True)
def conv_prefill(x: Tensor, weight: Tensor, state: Tensor, rows: StateRows) -> Tensor:
    # A sum of shifted copies is faster than conv1d here, and needs no transposed copy.
    taps = weight.float().t().contiguous()
    behind = len(taps) - 1
    pasts = rows.gather(state).transpose(1, 2)
    wide, out = x.float(), torch.empty_like(x)
    for past, row, length in zip(pasts, rows.live, rows.lengths, strict=True):
        start = rows.starts[row]
        window = torch.cat([past, wide[start : start + length]])
        total = window[:length] * taps[0]
        for shift in range(1, behind + 1):
            total.addcmul_(window[shift : shift + length], taps[shift])
        out[start : start + length] = F.silu(total)
        past.copy_(window[length:])
    rows.scatter(state, pasts.transpose(1, 2))
    return out


@operators.delta_decode.register("batched", band=Band.PORTABLE)
def delta_decode(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, rows: StateRows
) -> Tensor:
    batch, heads, size = v.shape
    groups = heads // k.shape[1]
    keys = unit(k).repeat_interleave(groups, 1).flatten(0, 1)
    queries = (unit(q) / q.shape[-1] ** 0.5).repeat_interleave(groups, 1).flatten(0, 1)
    s = rows.gather(state).flatten(0, 1)
    s *= decay.exp().view(-1, 1, 1)
    error = v.float().flatten(0, 1)[:, None] - torch.bmm(keys[:, None], s)
    s.baddbmm_(keys[:, :, None], error * beta.view(-1, 1, 1))
    rows.scatter(state, s.view(batch, heads, -1, size))
    return torch.bmm(queries[:, None], s).view(v.shape).to(v.dtype)


@operators.delta_prefill.register("chunked", band=Band.PORTABLE, reads_host=True)
def delta_prefill(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, state: Tensor, rows: StateRows
) -> Tensor:
    """The chunkwise form (Yang et al., 2024, section 3.3): products in blocks, a scan over them.

    Within a block the delta rule is a triangular system; solving it gives every token's correction
    as if the block began with an empty state, and how it depends on the state it does begin with.
    """
    out = torch.zeros_like(v)
    if not rows.live:
        return out
    groups = v.shape[1] // k.shape[1]
    tokens, firsts, counts = _blocks(rows, v.device)

    def cut(x: Tensor) -> Tensor:  # [T, heads, ...] -> [blocks, heads, tokens, ...]; gaps are zero
        padded = torch.cat([x.float(), x.new_zeros(1, *x.shape[1:], dtype=torch.float32)])
        return padded[tokens].transpose(1, 2)

    queries = cut(unit(q) / q.shape[-1] ** 0.5).repeat_interleave(groups, 1)
    keys = cut(unit(k)).repeat_interleave(groups, 1)
    steps, elapsed = cut(beta)[..., None], cut(decay).cumsum(2)
    ahead = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=v.device).triu(1)
    between = (elapsed[..., :, None] - elapsed[..., None, :]).masked_fill_(ahead, float("-inf"))
    between.exp_()

    weighted = keys * steps
    grown = elapsed.exp()[..., None]
    system = (weighted @ keys.transpose(2, 3)) * between
    right = torch.cat([cut(v) * steps, weighted * grown], 3)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    own, depends = solved.split([v.shape[2], k.shape[2]], 3)
    within = (queries @ keys.transpose(2, 3)) * between
    queries = queries * grown
    faded = keys * (elapsed[..., -1:] - elapsed).exp()[..., None]
    kept = grown[:, :, -1:]

    s = rows.gather(state)
    result = torch.empty_like(own)
    for index in range(max(counts)):
        going = [row for row, count in enumerate(counts) if count > index]
        block = torch.tensor([firsts[row] + index for row in going], device=v.device)
        before = s if len(going) == len(s) else s[going]
        new = own[block] - depends[block] @ before
        result[block] = queries[block] @ before + within[block] @ new
        after = before * kept[block] + faded[block].transpose(2, 3) @ new
        if after.shape[0] == s.shape[0]:
            s = after
        else:
            s[going] = after
    rows.scatter(state, s)
    real = tokens < len(v)
    out[tokens[real]] = result.transpose(1, 2)[real].to(v.dtype)
    return out


def _blocks(rows: StateRows, device: torch.device) -> tuple[Tensor, list[int], list[int]]:
    """The live rows' tokens in blocks, int64 [blocks, tokens]; a gap holds the number of tokens.

    Also each row's first block and its number of blocks.
    """
    size = min(_BLOCK, max(rows.lengths))
    gap = rows.starts[-1]
    counts = [-(-length // size) for length in rows.lengths]
    firsts = [sum(counts[:row]) for row in range(len(counts))]
    tokens = torch.full((sum(counts), size), gap, dtype=torch.int64, device=device)
    for row, first, length in zip(rows.live, firsts, rows.lengths, strict=True):
        start = rows.starts[row]
        run = torch.arange(start, start + length, device=device)
        tokens[first:].view(-1)[:length] = run
    return tokens, firsts, counts
