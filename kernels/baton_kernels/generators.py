"""Input generators: for each operator, random arguments that a wrong implementation gets wrong.

Paged inputs are hostile: pages come in random order from a larger pool, every slot that no row
owns holds NaN, unused page-table entries hold garbage ids, lengths are ragged and may be zero.
Arenas of states likewise hold NaN where no row reads, and write slots differ from read slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baton_kernels.paging import PagedRows
from baton_kernels.states import NO_STATE, StateRows
from baton_kernels.stored import PACKED, packed_width

Inputs = tuple[tuple[object, ...], dict[str, object]]
_GARBAGE_PAGE = 2**31 - 7


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paged_rows(
    seed: int,
    contexts: list[int],
    queries: list[int],
    *,
    page_size: int = 8,
    width: int = 24,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, PagedRows]:
    """A cache [pages, page_size, width] of one layer inside a larger arena, and its rows."""
    generator = _random(seed)
    counts = [-(-context // page_size) for context in contexts]
    total = sum(counts) + 3
    arena = torch.full((total, 3, page_size, width), float("nan"), dtype=dtype)
    cache = arena[:, 1]
    order = torch.randperm(total, generator=generator).tolist()
    columns = max(counts, default=0) + 2
    tables = torch.full((len(contexts), columns), _GARBAGE_PAGE, dtype=torch.int32)
    for row, (context, count) in enumerate(zip(contexts, counts, strict=True)):
        for index in range(count):
            page = order.pop()
            tables[row, index] = page
            used = min(page_size, context - index * page_size)
            cache[page, :used] = torch.randn(used, width, generator=generator).to(dtype)
    starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return cache, PagedRows(starts, torch.tensor(contexts, dtype=torch.int32), tables, page_size)


def state_rows(seed: int, lengths: list[int], shape: tuple[int, ...]) -> tuple[Tensor, StateRows]:
    """States [slots, *shape] of one layer inside a larger arena, and rows of them.

    Of four rows one starts from zeros and one reads and writes the same slot.
    """
    generator = _random(seed)
    batch = len(lengths)
    slots = torch.randperm(2 * batch + 2, generator=generator, dtype=torch.int32)
    reads, writes = slots[:batch].clone(), slots[batch : 2 * batch].clone()
    arena = torch.full((len(slots), 3, *shape), float("nan"))
    state = arena[:, 1]
    state[reads.long()] = torch.randn(batch, *shape, generator=generator)
    writes[1::4] = reads[1::4]
    reads[2::4] = NO_STATE
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return state, StateRows(starts, reads, writes)


def _linear(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    g = _random(seed)
    x, weight = torch.randn(tokens, 48, generator=g), torch.randn(40, 48, generator=g) / 7
    bias = torch.randn(40, generator=g) if seed % 2 else None
    return (x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)), {}


def _rms_norm(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    g = _random(seed)
    x = torch.randn(tokens, 64, generator=g) * 3
    return (x.to(dtype), torch.randn(64, generator=g).to(dtype), 1e-6), {}


def _add_rms_norm(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    (x, weight, eps), _ = _rms_norm(seed, dtype, tokens)
    residual = torch.randn(tokens, 64, generator=_random(seed + 1)).to(dtype)
    return (x, residual, weight, eps), {}


def _gated_rms_norm(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    g = _random(seed)
    x, gate = (torch.randn(tokens, 3, 16, generator=g).to(dtype) for _ in range(2))
    return (x, gate, torch.randn(16, generator=g).to(dtype), 1e-6), {}


def _sigmoid_mul(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    g = _random(seed)
    x, gate = torch.randn(tokens, 32, generator=g), torch.randn(tokens, 32, generator=g)
    return (x.to(dtype), (gate[:, :1] if seed % 2 else gate).to(dtype)), {}


def _silu_mul(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 5) -> Inputs:
    return (torch.randn(tokens, 96, generator=_random(seed)).to(dtype),), {}


def _embedding(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 9) -> Inputs:
    g = _random(seed)
    ids = torch.randint(0, 64, (tokens,), generator=g)
    return (ids, torch.randn(32, 16, generator=g).to(dtype), 32 * (seed % 2)), {}


def _rotary_table(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 6) -> Inputs:
    positions = torch.randint(0, 100_000, (tokens,), generator=_random(seed))
    return (positions, 10000.0 ** -torch.linspace(0, 1, 8), 1.25), {}


def _rotate(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 6) -> Inputs:
    g = _random(seed)
    angles = torch.randn(tokens, 8, generator=g)
    # A slice of a wider tensor: rotated parts are never contiguous in a model.
    x = torch.randn(tokens, 3, 28, generator=g).to(dtype)[..., 12:]
    return (x, angles.cos(), angles.sin(), bool(seed % 2)), {}


def _cache_write(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 6) -> Inputs:
    g = _random(seed)
    cache = torch.zeros(5, 3, 8, 24, dtype=dtype)[:, 1]
    slots = torch.randperm(40, generator=g)[:tokens]
    entries = torch.randn(tokens, 24, generator=g).to(dtype)
    return (cache, entries, slots // 8, slots % 8), {}


def _cache_write_as(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 6) -> Inputs:
    (_, plain, pages, offsets), _ = _cache_write(seed, torch.float32, tokens)
    if not isinstance(plain, Tensor):
        raise TypeError("entries are a tensor")
    entries = torch.cat([100.0 * plain[:, :16], plain[:, 16:]], 1).to(dtype)
    packed = seed % 2 == 0
    width, kind = (packed_width(24), PACKED) if packed else (24, torch.bfloat16)
    cache = torch.zeros(5, 3, 8, width, dtype=kind)[:, 1]
    return (cache, entries, pages, offsets, (16, 8)), {}


def _ragged(seed: int, rows: int) -> list[int]:
    lengths: list[int] = torch.randint(1, 70, (rows,), generator=_random(seed)).tolist()
    return lengths


def _mla_decode(
    seed: int, dtype: torch.dtype = torch.float32, contexts: list[int] | None = None
) -> Inputs:
    contexts = _ragged(seed, 5) if contexts is None else contexts
    cache, rows = paged_rows(seed, contexts, [1] * len(contexts), dtype=dtype)
    queries = torch.randn(len(contexts), 3, 24, generator=_random(seed + 1)).to(dtype)
    return (queries, cache, rows, 16, 0.3), {}


def _mla_prefill(
    seed: int,
    dtype: torch.dtype = torch.float32,
    contexts: list[int] | None = None,
    queries: list[int] | None = None,
) -> Inputs:
    g = _random(seed + 1)
    contexts = _ragged(seed, 4) if contexts is None else contexts
    if queries is None:
        queries = [int(torch.randint(0, c + 1, (1,), generator=g)) for c in contexts]
    cache, rows = paged_rows(seed, contexts, queries, dtype=dtype)
    chunk = torch.randn(sum(queries), 3, 12 + 8, generator=g).to(dtype)
    w_uk = (torch.randn(3, 12, 16, generator=g) / 4).to(dtype)
    w_uv = (torch.randn(3, 10, 16, generator=g) / 4).to(dtype)
    return (chunk, w_uk, w_uv, cache, rows, 0.25), {}


def _gqa_decode(
    seed: int, dtype: torch.dtype = torch.float32, contexts: list[int] | None = None
) -> Inputs:
    contexts = _ragged(seed, 5) if contexts is None else contexts
    cache, rows = paged_rows(seed, contexts, [1] * len(contexts), dtype=dtype)
    queries = torch.randn(len(contexts), 6, 6, generator=_random(seed + 1)).to(dtype)
    return (queries, cache, rows, 2, 0.4, *_window_and_sinks(seed)), {}


def _window_and_sinks(seed: int) -> tuple[int, Tensor | None]:
    """Every second seed has a window, every third has sinks."""
    sinks = torch.randn(6, generator=_random(seed + 2)) if seed % 3 == 0 else None
    return (0 if seed % 2 else 7, sinks)


def _gqa_prefill(
    seed: int,
    dtype: torch.dtype = torch.float32,
    contexts: list[int] | None = None,
    queries: list[int] | None = None,
) -> Inputs:
    g = _random(seed + 1)
    contexts = _ragged(seed, 4) if contexts is None else contexts
    if queries is None:
        queries = [int(torch.randint(0, c + 1, (1,), generator=g)) for c in contexts]
    cache, rows = paged_rows(seed, contexts, queries, dtype=dtype)
    chunk = torch.randn(sum(queries), 6, 6, generator=g).to(dtype)
    return (chunk, cache, rows, 2, 0.4, *_window_and_sinks(seed)), {}


def _route_sigmoid(
    seed: int, dtype: torch.dtype = torch.float32, tokens: int = 7, groups: int = 4
) -> Inputs:
    g = _random(seed)
    logits, bias = torch.randn(tokens, 16, generator=g), torch.randn(16, generator=g) * 0.2
    return (logits, bias, 3, groups, max(1, groups // 2), bool(seed % 2), 2.5), {}


def _route_softmax(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 7) -> Inputs:
    logits = torch.randn(tokens, 16, generator=_random(seed))
    return (logits, 3, bool(seed % 2), 1.5, 4 if seed % 3 else 1, 2 if seed % 3 else 1), {}


def _moe_experts(
    seed: int, dtype: torch.dtype = torch.float32, tokens: int = 7, first_expert: int = 4
) -> Inputs:
    g = _random(seed)
    x = torch.randn(tokens, 32, generator=g).to(dtype)
    experts = torch.stack([torch.randperm(12, generator=g)[:2] for _ in range(tokens)] or [])
    weights = torch.rand(tokens, 2, generator=g)
    gate_up = (torch.randn(6, 48, 32, generator=g) / 6).to(dtype)
    down = (torch.randn(6, 32, 24, generator=g) / 5).to(dtype)
    return (x, weights, experts, gate_up, down, first_expert), {}


def _moe_experts_clamped(
    seed: int, dtype: torch.dtype = torch.float32, tokens: int = 7, first_expert: int = 4
) -> Inputs:
    (x, weights, experts, gate_up, down, first), _ = _moe_experts(seed, dtype, tokens, first_expert)
    g = _random(seed + 1)
    biases = (torch.randn(6, width, generator=g).to(dtype) for width in (48, 32))
    inner_bias, outer_bias = biases
    return (x, weights, experts, gate_up, inner_bias, down, outer_bias, first, 1.7, 0.8), {}


def _conv_prefill(
    seed: int, dtype: torch.dtype = torch.float32, lengths: list[int] | None = None
) -> Inputs:
    g = _random(seed + 1)
    lengths = _ragged(seed, 5) if lengths is None else lengths
    state, rows = state_rows(seed, lengths, (12, 3))
    x = torch.randn(sum(lengths), 12, generator=g).to(dtype)
    return (x, (torch.randn(12, 4, generator=g) / 2).to(dtype), state, rows), {}


def _conv_decode(seed: int, dtype: torch.dtype = torch.float32, batch: int = 5) -> Inputs:
    return _conv_prefill(seed, dtype, [1] * batch)


def _delta_gates(seed: int, dtype: torch.dtype = torch.float32, tokens: int = 7) -> Inputs:
    g = _random(seed)
    a, b = (torch.randn(tokens, 4, generator=g).to(dtype) for _ in range(2))
    return (a, b, torch.randn(4, generator=g), torch.randn(4, generator=g)), {}


def _delta_prefill(
    seed: int, dtype: torch.dtype = torch.float32, lengths: list[int] | None = None
) -> Inputs:
    g = _random(seed + 1)
    lengths = [*_ragged(seed, 3), 0, 150] if lengths is None else lengths
    tokens = sum(lengths)
    state, rows = state_rows(seed, lengths, (4, 12, 10))
    q, k = (torch.randn(tokens, 2, 12, generator=g).to(dtype) for _ in range(2))
    v = torch.randn(tokens, 4, 10, generator=g).to(dtype)
    # From heads that keep nearly all to heads that forget within a few tokens.
    decay = -torch.rand(tokens, 4, generator=g) * torch.tensor([0.01, 0.2, 1.0, 4.0])
    return (q, k, v, decay, torch.rand(tokens, 4, generator=g), state, rows), {}


def _delta_decode(seed: int, dtype: torch.dtype = torch.float32, batch: int = 5) -> Inputs:
    return _delta_prefill(seed, dtype, [1] * batch)


GENERATORS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "gated_rms_norm": _gated_rms_norm,
    "silu_mul": _silu_mul,
    "sigmoid_mul": _sigmoid_mul,
    "embedding": _embedding,
    "rotary_table": _rotary_table,
    "rotate": _rotate,
    "cache_write": _cache_write,
    "cache_write_as": _cache_write_as,
    "gqa_decode": _gqa_decode,
    "gqa_prefill": _gqa_prefill,
    "mla_decode": _mla_decode,
    "mla_prefill": _mla_prefill,
    "route_sigmoid": _route_sigmoid,
    "route_softmax": _route_softmax,
    "moe_experts": _moe_experts,
    "moe_experts_clamped": _moe_experts_clamped,
    "conv_decode": _conv_decode,
    "conv_prefill": _conv_prefill,
    "delta_gates": _delta_gates,
    "delta_decode": _delta_decode,
    "delta_prefill": _delta_prefill,
}
