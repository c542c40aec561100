"""Caches in float8 with scales, and in bfloat16: what is kept, and that attention reads it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_kernels import PagedRows, ops
from baton_kernels.generators import paged_rows
from baton_kernels.stored import PACKED, elements_of, pack, packed_width, unpack


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 30), st.floats(-30, 30))
def test_each_part_keeps_three_bits_of_its_own_magnitude(
    seed: int, first: float, second: float
) -> None:
    """float8_e4m3 rounds to 3 bits; below 2^-6 of a scale of 448 its steps are 2^-9 wide."""
    noise = torch.randn(5, 24, generator=torch.Generator().manual_seed(seed))
    entries = torch.cat([noise[:, :16] * 2.0**first, noise[:, 16:] * 2.0**second], 1)
    stored = pack(entries, (16, 8))
    assert stored.shape == (5, packed_width(24)) and stored.dtype == PACKED
    back = unpack(stored, (16, 8), torch.float32)
    for part in (slice(0, 16), slice(16, 24)):
        step = entries[:, part].abs().amax(-1, keepdim=True) / 448 * 2.0**-10
        allowed = torch.maximum(entries[:, part].abs() * 2.0**-4, step) * 1.001
        assert ((back - entries)[:, part].abs() <= allowed).all()


def test_zeros_and_what_is_not_a_number() -> None:
    entries = torch.zeros(3, 6)
    entries[1, 2], entries[2, 4] = float("nan"), float("inf")
    back = unpack(pack(entries, (4, 2)), (4, 2), torch.float32)
    assert torch.equal(back[0], torch.zeros(6))
    assert back[1, 2].isnan() and back[2, 4].isnan()


@pytest.mark.parametrize("dtype", [PACKED, torch.bfloat16])
@pytest.mark.parametrize("operator", [ops.gqa_decode, ops.gqa_prefill, ops.mla_decode])
def test_attention_reads_what_was_kept(operator: object, dtype: torch.dtype) -> None:
    """The same as attention over a float32 cache of the kept values, in every implementation."""
    contexts, queries = [13, 8, 30], [1, 1, 1]
    latent = operator is ops.mla_decode
    parts = (16, 8) if latent else (12, 12)
    plain, rows = paged_rows(3, contexts, queries)
    pages, offsets = (
        index.flatten()
        for index in torch.meshgrid(
            torch.arange(len(plain)), torch.arange(plain.shape[1]), indexing="ij"
        )
    )
    width = packed_width(24) if dtype == PACKED else 24
    cache = torch.zeros(*plain.shape[:2], width, dtype=dtype)
    ops.cache_write_as.reference(cache, plain[pages, offsets], pages, offsets, parts)
    assert elements_of(cache) == 24
    kept = unpack(cache, parts, torch.float32)
    q = torch.randn(3, 3 if latent else 6, 24 if latent else 6)
    rest = (16, 0.3) if latent else (2, 0.4)
    for implementation in operator.implementations.values():  # type: ignore[attr-defined]
        if not implementation.requirements.devices:
            expected = implementation.function(q, kept, copy(rows), *rest)
            actual = implementation.function(q, cache, copy(rows), *rest)
            torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-6)


def copy(rows: PagedRows) -> PagedRows:
    return PagedRows(rows.query_starts, rows.context_tokens, rows.page_tables, rows.page_size)
