"""Gated DeltaNet's operators: as transformers computes them, and whatever way a prompt is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next as peer

from baton_kernels import NO_STATE, StateRows, ops

TOLERANCE = {"atol": 3e-6, "rtol": 3e-5}
DELTA = ops.delta_prefill.implementations
CONV = ops.conv_prefill.implementations
LENGTHS = [[1], [64], [65, 1, 0, 130], [3, 200, 64, 7], [0, 5]]


def _rows(lengths: list[int], reads: list[int], writes: list[int]) -> StateRows:
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return StateRows(
        starts, torch.tensor(reads, dtype=torch.int32), torch.tensor(writes, dtype=torch.int32)
    )


@pytest.mark.parametrize("name", DELTA)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_delta_rule_is_that_of_transformers(name: str, lengths: list[int]) -> None:
    args, _ = ops.delta_prefill.inputs(7, lengths=lengths)
    q, k, v, decay, beta, state, rows = args
    assert isinstance(state, Tensor) and isinstance(rows, StateRows)
    before = state.clone()
    out: Any = DELTA[name].function(*args)
    for row, (start, stop) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
        if start == stop:
            continue
        read = int(rows.reads[row])
        inputs = [x[None, start:stop] for x in (q, k, v, decay, beta)]  # type: ignore[index]
        expected, last = peer.torch_recurrent_gated_delta_rule(
            *inputs,
            initial_state=None if read == NO_STATE else before[read][None],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        torch.testing.assert_close(out[start:stop], expected[0], **TOLERANCE)
        torch.testing.assert_close(state[int(rows.writes[row])], last[0], **TOLERANCE)


@pytest.mark.parametrize("name", CONV)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_convolution_is_that_of_transformers(name: str, lengths: list[int]) -> None:
    args, _ = ops.conv_prefill.inputs(7, lengths=lengths)
    x, weight, state, rows = args
    assert isinstance(x, Tensor) and isinstance(weight, Tensor)
    assert isinstance(state, Tensor) and isinstance(rows, StateRows)
    before = state.clone()
    out: Any = CONV[name].function(*args)
    for row, (start, stop) in enumerate(zip(rows.starts, rows.starts[1:], strict=False)):
        if start == stop:
            continue
        read = int(rows.reads[row])
        last = torch.zeros(1, 12, 3) if read == NO_STATE else before[read][None].clone()
        expected = peer.causal_conv1d_update(
            x[None, start:stop].transpose(1, 2), last, weight, None, "silu"
        )
        torch.testing.assert_close(out[start:stop], expected[0].t(), **TOLERANCE)
        torch.testing.assert_close(state[int(rows.writes[row])], last[0], **TOLERANCE)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", DELTA)
def test_a_prompt_may_be_cut_anywhere(name: str, seed: int) -> None:
    """Any chunks, then single tokens, through slots that change, give one state and one output."""
    generator = random.Random(seed)
    total = generator.randrange(2, 180)
    (q, k, v, decay, beta, _, _), _ = ops.delta_prefill.inputs(seed, lengths=[total])
    (x, weight, _, _), _ = ops.conv_prefill.inputs(seed, lengths=[total])
    decoding = {"reference": "reference"}.get(name, "batched")

    def run(cuts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states, pasts = torch.full((9, 4, 12, 10), torch.nan), torch.full((9, 12, 3), torch.nan)
        outs, convolved, slot = [], [], NO_STATE
        for start, stop in zip([0, *cuts], [*cuts, total], strict=True):
            target = generator.choice([s for s in range(9) if s != slot])
            rows = _rows([stop - start], [slot], [target])
            delta, conv = ops.delta_prefill, ops.conv_prefill
            if stop - start == 1:
                delta, conv = ops.delta_decode, ops.conv_decode
            chosen = name if stop - start > 1 else decoding
            parts = [each[start:stop] for each in (q, k, v, decay, beta)]  # type: ignore[index]
            outs.append(delta.implementations[chosen].function(*parts, states, rows))
            chosen = "reference" if name == "reference" else next(reversed(conv.implementations))
            convolve = conv.implementations[chosen].function
            convolved.append(convolve(x[start:stop], weight, pasts, rows))  # type: ignore[index]
            slot = target
        return torch.cat(outs), states[slot], torch.cat(convolved), pasts[slot]

    count = generator.randrange(1, min(total, 7))
    cuts = sorted(generator.sample(range(1, total), count))
    tail = list(range(max(cuts[-1] + 1, total - 3), total))
    for whole, pieces in zip(run([]), run([*cuts, *tail]), strict=True):
        torch.testing.assert_close(pieces, whole, **TOLERANCE)


@pytest.mark.parametrize("name", DELTA)
def test_a_snapshot_may_have_many_readers(name: str) -> None:
    """Rows that fork from one snapshot leave it as it was and each go their own way."""
    (q, k, v, decay, beta, _, _), _ = ops.delta_prefill.inputs(3, lengths=[90])
    states = torch.full((5, 4, 12, 10), torch.nan)
    states[2] = torch.randn(4, 12, 10, generator=torch.Generator().manual_seed(1))
    before = states[2].clone()
    function = DELTA[name].function
    together = function(q, k, v, decay, beta, states, _rows([30, 60], [2, 2], [0, 4]))
    torch.testing.assert_close(states[2], before, atol=0, rtol=0)
    alone = states.clone()
    parts = [each[30:] for each in (q, k, v, decay, beta)]  # type: ignore[index]
    torch.testing.assert_close(
        together[30:], function(*parts, alone, _rows([60], [2], [1])), **TOLERANCE
    )
    torch.testing.assert_close(alone[1], states[4], **TOLERANCE)


@pytest.mark.parametrize("name", DELTA)
def test_a_poisoned_state_stays_alone(name: str) -> None:
    args, _ = ops.delta_prefill.inputs(4, lengths=[70, 9, 80])
    clean, _ = ops.delta_prefill.inputs(4, lengths=[70, 9, 80])
    state, rows = args[5], args[6]
    assert isinstance(state, Tensor) and isinstance(rows, StateRows)
    state[int(rows.reads[0])] = torch.nan
    out: Any = DELTA[name].function(*args)
    expected: Any = DELTA[name].function(*clean)
    assert out[:70].isnan().all()
    torch.testing.assert_close(out[70:], expected[70:], **TOLERANCE)
