"""Triton implementations, registered here; triton itself is imported when one is first called.

So a machine without triton can still say why it is not using them, and a CPU worker does not pay
for the import.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton_kernels import operators
from baton_kernels.paging import PagedRows
from baton_kernels.registry import Band, Requirements, ShapeRule

_AMPERE = Requirements(
    devices=frozenset({"cuda"}),
    dtypes=frozenset({torch.bfloat16, torch.float16, torch.float32}),
    min_capability=(8, 0),
    packages=("triton",),
    shapes=(ShapeRule("converts", "0 (a cache of the model's type)", lambda n: n == 0, default=0),),
)


@operators.mla_decode.register("triton_split", band=Band.TUNED, requirements=_AMPERE)
def mla_decode(queries: Tensor, cache: Tensor, rows: PagedRows, rank: int, scale: float) -> Tensor:
    from baton_kernels.triton.mla import split_decode

    return split_decode(queries, cache, rows, rank, scale)
