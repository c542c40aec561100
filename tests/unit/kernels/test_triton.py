"""The Triton kernels under Triton's interpreter, and the schedules they are launched with.

The interpreter runs on CPU: `TRITON_INTERPRET=1`, set here before triton is first imported, in a
process of its own because an interpreted kernel cannot be compiled later.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from baton_kernels.triton.schedule import decode_schedule

CHECK = """
import torch
from baton_kernels import ops

def check(name, *args, **kw):
    a, _ = ops.mla_decode.inputs(*args, **kw)
    actual = ops.mla_decode.implementations[name].function(*a)
    torch.testing.assert_close(actual, ops.mla_decode.reference(*a), atol=3e-6, rtol=3e-6)

for seed in range(3):
    check("triton_split", seed)
for contexts in ([0, 1, 8, 0, 9], [1], [], [300, 3, 63, 64, 65]):
    check("triton_split", 3, contexts=contexts)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_interpreted_kernels_agree_with_their_references() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr


def test_small_batches_are_split_to_fill_the_device() -> None:
    one = decode_schedule(rows=1, heads=16, max_context=65536, entry_bytes=1152, processors=132)
    many = decode_schedule(rows=256, heads=128, max_context=65536, entry_bytes=1152, processors=132)
    assert one.splits == 64
    assert many.splits == 1


@pytest.mark.parametrize("context", [1, 100, 128, 1000, 10**6])
def test_a_split_is_worth_its_launch(context: int) -> None:
    plan = decode_schedule(rows=1, heads=128, max_context=context, entry_bytes=1152, processors=132)
    assert plan.splits == 1 or context // plan.splits >= 128
    assert plan.block_heads >= 16
    assert plan.splits & (plan.splits - 1) == 0
