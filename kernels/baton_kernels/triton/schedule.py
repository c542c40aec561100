"""How Triton MLA decode is cut into programs; apart from the kernel, to test without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

# A split shorter than this reads less than what starting and combining it costs.
_MIN_SPLIT_TOKENS = 128
# Programs per multiprocessor that hide each other's memory latency.
_WAVES = 2
_MAX_SPLITS = 64


@dataclass(frozen=True)
class DecodeSchedule:
    """heads and tokens per inner tile, splits of each row's context, warps, pipeline stages."""

    block_heads: int
    block_tokens: int
    splits: int
    warps: int
    stages: int


def decode_schedule(
    rows: int, heads: int, max_context: int, entry_bytes: int, processors: int
) -> DecodeSchedule:
    """The schedule for ``rows`` requests of at most ``max_context`` tokens.

    entry_bytes: size of a cache entry. processors: multiprocessors of the device. Head tiles of
    one row read the same latents, so they are kept as large as registers allow before contexts
    are split to fill the device. Splits are powers of two: each count is a kernel to compile.
    """
    block_heads = 16 if heads <= 16 else 32
    head_tiles = -(-heads // block_heads)
    wanted = -(-_WAVES * processors // max(1, rows * head_tiles))
    affordable = max(1, max_context // _MIN_SPLIT_TOKENS)
    splits = max(1, min(wanted, affordable, _MAX_SPLITS))
    splits = 1 << (splits.bit_length() - 1)
    # Two tiles of latents in flight, beside the queries, fit the shared memory of an A100.
    block_tokens = 16 if entry_bytes > 2048 else 32 if entry_bytes > 512 else 64
    return DecodeSchedule(
        block_heads, block_tokens, splits, warps=8 if block_heads > 16 else 4, stages=2
    )
