"""Every family on a GPU beside the same program on CPU, float32: what a kernel or a copy changes.

CPU is the reference because `test_parity.py` holds it against transformers. TF32 is off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton_modeling import CompiledModel, load_model

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import VARIANTS, tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(request.param)


def logits(model: CompiledModel) -> list[Tensor]:
    """A prompt in chunks, beside it a short one that decodes."""
    driver = Driver(model)
    long, short = Row(tokens(1, 150)), Row(tokens(2, 40))
    out = [driver.prefill(short, [30])]
    for chunk in (1, 9, 90, 50):
        out += driver.step([(short, 1), (long, chunk)])
    return out


def test_logits_and_greedy_tokens_are_those_of_the_cpu(checkpoint: Path) -> None:
    cpu, cuda = (
        load_model(checkpoint, page_size=PAGE_SIZE, device=device) for device in ("cpu", "cuda")
    )
    for expected, actual in zip(logits(cpu), logits(cuda), strict=True):
        worst = (expected - actual).abs().max().item()
        assert worst <= TOLERANCE, f"logits differ by {worst:.2e}"
    prompt = tokens(7, 60)
    assert Driver(cuda).generate(prompt, 24, chunk=17) == Driver(cpu).generate(prompt, 24)
