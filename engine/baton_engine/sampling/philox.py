"""Random numbers that are a function of (seed, position) and of nothing else.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
A counter-based generator has no state to carry: another worker that continues a request at the
same position draws the same number, whatever else is in its batch. Computed on the host, because
seeds and positions are known there and a row needs one block only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """One block per column. counter: uint32 [4, N]; key: uint32 [2, N]; returns uint32 [4, N]."""
    c0, c1, c2, c3 = counter.astype(np.uint64)
    k0, k1 = key.astype(np.uint64)
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ k0,
            product_1 & _LOW,
            (product_0 >> _HALF) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per row, with 53 random bits.

    seeds: uint64 [L], the key. positions: int64 [L], the counter's low half; its high half is
    zero and left to other uses of the same seed.
    """
    places = positions.astype(np.uint64)
    nothing = np.zeros_like(places)
    counter = np.stack([places & _LOW, places >> _HALF, nothing, nothing]).astype(np.uint32)
    key = np.stack([seeds & _LOW, seeds >> _HALF]).astype(np.uint32)
    high, low = philox4x32(counter, key)[:2].astype(np.float64)
    bits: NDArray[np.float64] = np.floor(high / 32) * 2.0**26 + np.floor(low / 64)
    return bits * 2.0**-53
