"""Every family on a GPU beside the same program on CPU, float32: what a kernel or a copy changes.

CPU is the reference because `test_parity.py` holds it against transformers. TF32 is off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton_modeling import CompiledModel, Options, load_model

from .driver import PAGE_SIZE, Driver, Row
from .sampling_loop import ASKED, GREEDY, SamplingLoop
from .test_execution import driver_of
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


def test_graphs_give_what_eager_execution_gives(checkpoint: Path) -> None:
    """Captured on the GPU; the same runner with plain calls is tested in test_execution.py."""
    eager, graphs = (
        load_model(checkpoint, page_size=PAGE_SIZE, device="cuda", options=Options(execution=how))
        for how in ("eager", "graphs")
    )
    out = []
    for model in (eager, graphs):
        driver = driver_of(model)
        rows = [Row(tokens(50 + i, 60)) for i in range(3)]
        logits = [driver.step([(row, 10 + i)])[0] for i, row in enumerate(rows)]
        for count in (3, 1, 2, 3, 3):
            logits += driver.step([(row, 1) for row in rows[:count]])
        out.append(torch.cat([each.cpu() for each in logits]))
    assert graphs.execution_bytes > 0
    worst = (out[0] - out[1]).abs().max().item()
    assert worst <= TOLERANCE, f"logits differ by {worst:.2e}"
    prompt = tokens(7, 60)
    assert driver_of(graphs).generate(prompt, 24) == Driver(eager).generate(prompt, 24)


def test_graphs_with_the_sampler_say_what_eager_execution_says(checkpoint: Path) -> None:
    """Both tails: seeded rows beside greedy ones and rows with penalties, then greedy rows only."""
    eager, graphs = (SamplingLoop(checkpoint, how, device="cuda") for how in ("eager", "graphs"))
    for asked in (ASKED, GREEDY):
        assert graphs.run(asked) == eager.run(asked)
    assert graphs.drawn_inside > 0 == eager.drawn_inside
