"""Every family after a hand-over: the logits, not only the tokens, are transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from baton_engine import Await, Done, HandOver, SamplingParams, Source, TokensEmitted

from .engine_worker import Attempt, prompts, running
from .oracle import Reference

PAGE = 16
NEW = 24  # enough to pass a snapshot
TOP = 3
FAMILIES = [
    "deepseek_v3",
    "deepseek_v2",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "minimax_m2",
    "gpt_oss",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
]
STATEFUL = {"qwen3_next", "qwen3_5", "qwen3_5_moe"}


@torch.inference_mode()
def check(reference: Reference, prompt: list[int], attempt: Attempt) -> None:
    """Tokens are the reference's greedy ones; their log-probabilities and those of the best
    alternatives agree to 1e-4, computed by the reference in one go."""
    tokens = attempt.tokens
    assert tokens == reference.greedy(prompt, len(tokens))
    logits = reference.model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    expected = torch.log_softmax(logits.float(), dim=-1).numpy()
    said = [p for e in attempt.of(TokensEmitted) for p in e.logprobs]
    assert len(said) == len(tokens)
    for row, logprob in zip(expected, said, strict=True):
        assert logprob.token_id == int(row.argmax())
        assert abs(logprob.logprob - row[logprob.token_id]) <= 1e-4
        ids, values = zip(*logprob.top, strict=True)
        np.testing.assert_allclose(values, np.sort(row)[::-1][:TOP], atol=1e-4, rtol=0)
        np.testing.assert_allclose(row[list(ids)], values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
async def test_parity_after_a_hand_over_there_and_back(
    make_checkpoint: Callable[..., Path], family: str
) -> None:
    """A prompt in chunks is handed over; the next turn's prefill worker gets generated pages (and
    the last snapshot) back, and hands over what is missing."""
    checkpoint = make_checkpoint(family)
    reference = Reference(checkpoint)
    settings = {"snapshot_every": 2 * PAGE} if family in STATEFUL else {}
    sampling = SamplingParams(logprobs=TOP)
    # One that ends inside a page, one on a page's end that is a snapshot's, too.
    asked = prompts(reference.vocab_size, [75, 64], seed=31)
    more = prompts(reference.vocab_size, [30, 20], seed=32)
    async with (
        running(checkpoint, "prefill", max_chunk_tokens=32, page_size=PAGE, **settings) as prefill,
        running(checkpoint, "decode", page_size=PAGE, **settings) as decode,
    ):
        for turn in range(2):
            attempts = []
            for i, prompt in enumerate(asked):
                name = f"{turn}.{i}"
                held = (len(prompt) - len(more[i]) - 1) // PAGE if turn else 0
                attempts.append(
                    decode.submit(name, prompt, NEW, goal=Await(prefill.peer), sampling=sampling)
                )
                prefill.submit(
                    name,
                    prompt,
                    NEW,
                    goal=HandOver(decode.peer.name),
                    sources=(Source(decode.peer, held),) if held else (),
                    sampling=sampling,
                )
            for i, attempt in enumerate(attempts):
                end = await attempt.ended(60)
                assert isinstance(end, Done), end
                assert end.cost.computed_tokens == 0
                check(reference, asked[i], attempt)
                asked[i] = asked[i] + attempt.tokens + more[i]
        assert prefill.pool.pages_moved > 0, "nothing was returned"
        await prefill.settled()
        await decode.settled()
