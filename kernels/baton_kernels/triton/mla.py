"""Absorbed MLA decode over the paged cache (after FlashDecoding: Dao et al., 2023).

Each program attends one tile of heads of one row to one split of its context with an online
softmax; a second kernel joins the splits by their log-sum-exp. All heads share the latents, which
serve as keys and values at once: a tile is read from memory once and multiplied twice.
"""

# Triton kernels are written in a subset of Python that type checkers do not know.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from baton_kernels.paging import PagedRows
from baton_kernels.triton.schedule import decode_schedule


@triton.jit
def _attend_split(
    q_ptr, cache_ptr, table_ptr, context_ptr, part_ptr, lse_ptr,
    scale, heads, page_stride, table_stride,
    RANK: tl.constexpr, ROPE: tl.constexpr,
    RANK_PAD: tl.constexpr, ROPE_PAD: tl.constexpr,
    PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_ptr + row)
    # Splits are whole tiles, so that only the last one of a row is masked.
    share = tl.cdiv(tl.cdiv(context, SPLITS), BLOCK_N) * BLOCK_N
    first = split * share
    last = tl.minimum(first + share, context)

    h = tile * BLOCK_H + tl.arange(0, BLOCK_H)
    r = tl.arange(0, RANK_PAD)
    d = tl.arange(0, ROPE_PAD)
    q_row = (row * heads + h)[:, None] * (RANK + ROPE)
    real = h[:, None] < heads
    q_latent = tl.load(q_ptr + q_row + r[None, :], mask=real & (r[None, :] < RANK), other=0.0)
    q_rope = tl.load(q_ptr + q_row + RANK + d[None, :], mask=real & (d[None, :] < ROPE), other=0.0)

    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([BLOCK_H, RANK_PAD], tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        live = n < last
        page = tl.load(table_ptr + row * table_stride + n // PAGE, mask=live, other=0)
        entry = page.to(tl.int64) * page_stride + (n % PAGE) * (RANK + ROPE)
        # What no row owns may be NaN: it is masked when read, never after.
        latent = tl.load(
            cache_ptr + entry[:, None] + r[None, :],
            mask=live[:, None] & (r[None, :] < RANK), other=0.0,
        )  # fmt: skip
        rope = tl.load(
            cache_ptr + entry[:, None] + RANK + d[None, :],
            mask=live[:, None] & (d[None, :] < ROPE), other=0.0,
        )  # fmt: skip
        scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        scores += tl.dot(q_rope, tl.trans(rope), input_precision="ieee")
        scores = tl.where(live[None, :], scores * scale, float("-inf"))
        peak = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - peak[:, None])
        fade = tl.exp(top - peak)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        acc += tl.dot(weights.to(latent.dtype), latent, input_precision="ieee")
        top = peak

    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    part = ((row * heads + h) * SPLITS + split)[:, None] * RANK + r[None, :]
    tl.store(part_ptr + part, acc / safe[:, None], mask=real & (r[None, :] < RANK))
    lse = tl.where(some, top + tl.log(safe), float("-inf"))
    tl.store(lse_ptr + (row * heads + h) * SPLITS + split, lse, mask=h < heads)


@triton.jit
def _join_splits(
    part_ptr, lse_ptr, out_ptr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0)
    s = tl.arange(0, SPLITS_PAD)
    r = tl.arange(0, RANK_PAD)
    lse = tl.load(lse_ptr + unit * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    top = tl.max(lse, 0)
    # An empty context has no split with tokens: its result is zero, not NaN.
    weights = tl.exp(lse - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights, 0)
    weights = weights / tl.where(total > 0.0, total, 1.0)
    parts = tl.load(
        part_ptr + (unit * SPLITS + s)[:, None] * RANK + r[None, :],
        mask=(s[:, None] < SPLITS) & (r[None, :] < RANK), other=0.0,
    )  # fmt: skip
    out = tl.sum(parts * weights[:, None], 0)
    tl.store(out_ptr + unit * RANK + r, out.to(out_ptr.dtype.element_ty), mask=r < RANK)


def split_decode(
    queries: Tensor, cache: Tensor, rows: PagedRows, rank: int, scale: float
) -> Tensor:
    """``mla_decode`` for queries and a cache of one dtype; entries of a page are contiguous."""
    batch, heads, width = queries.shape
    out = torch.zeros(batch, heads, rank, dtype=queries.dtype, device=queries.device)
    if not batch:
        return out
    queries = queries.contiguous()
    # The table's width bounds every context without asking the device.
    longest = rows.page_tables.shape[1] * rows.page_size
    entry_bytes = width * cache.element_size()
    plan = decode_schedule(batch, heads, longest, entry_bytes, _processors(queries.device))
    parts = torch.empty(batch, heads, plan.splits, rank, dtype=torch.float32, device=out.device)
    lse = torch.empty(batch, heads, plan.splits, dtype=torch.float32, device=out.device)
    grid = (batch, triton.cdiv(heads, plan.block_heads), plan.splits)
    _attend_split[grid](
        queries, cache, rows.page_tables, rows.context_tokens, parts, lse,
        scale, heads, cache.stride(0), rows.page_tables.stride(0),
        RANK=rank, ROPE=width - rank,
        RANK_PAD=_padded(rank), ROPE_PAD=_padded(width - rank),
        PAGE=rows.page_size, SPLITS=plan.splits,
        BLOCK_H=plan.block_heads, BLOCK_N=plan.block_tokens,
        num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    _join_splits[(batch * heads,)](
        parts, lse, out,
        RANK=rank, RANK_PAD=_padded(rank),
        SPLITS=plan.splits, SPLITS_PAD=triton.next_power_of_2(plan.splits),
    )  # fmt: skip
    return out


def _padded(size: int) -> int:
    """Tiles are powers of two, and a product needs sixteen of each."""
    return max(16, int(triton.next_power_of_2(size)))


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
