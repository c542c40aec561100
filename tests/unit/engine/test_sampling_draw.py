"""Random tokens: the generator's known answers, exact distributions, transformers' filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baton_engine.sampling.draw import draw, draw_blind
from baton_engine.sampling.philox import philox4x32, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]
) -> None:
    got = philox4x32(np.array(counter, np.uint32)[:, None], np.array(key, np.uint32)[:, None])
    assert got[:, 0].tolist() == list(block)


def test_uniforms_are_uniform_and_independent_of_neighbouring_seeds_and_positions() -> None:
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200, dtype=np.int64))
    numbers = uniforms(seeds.ravel(), positions.ravel())
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert _chi_square(counts, np.full(100, 0.01)) < 1
    square = numbers.reshape(200, 200)
    for neighbour in (np.roll(square, 1, 0), np.roll(square, 1, 1)):
        assert abs(np.corrcoef(square.ravel(), neighbour.ravel())[0, 1]) < 0.02
    assert len(np.unique(numbers)) == numbers.size


def _chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic over its 99.99 % point (Wilson and Hilferty's approximation)."""
    expected = counts.sum() * probabilities
    statistic = float(((counts - expected) ** 2 / expected).sum())
    df = len(counts) - 1
    limit = df * (1 - 2 / (9 * df) + 3.719 * np.sqrt(2 / (9 * df))) ** 3
    return statistic / limit


def _reference(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """Probabilities by transformers' processors, float64 [V]."""
    ids = torch.zeros((1, 1), dtype=torch.int64)
    scores = TemperatureLogitsWarper(temperature)(ids, logits.double()[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    return scores.softmax(-1)[0]


def _draw_many(
    logits: torch.Tensor, count: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    return draw(
        logits.expand(count, -1),
        np.full(count, temperature, np.float32),
        np.full(count, top_k, np.int64),
        np.full(count, top_p, np.float32),
        np.full(count, min_p, np.float32),
        uniforms(np.full(count, 7, np.uint64), np.arange(count)),
    )


FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.0, 1000, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 0.01, 0.0),
    (1.0, 0, 1.0, 0.2),
    (1.0, 0, 1.0, 1.0),
    (0.9, 12, 0.9, 0.05),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), FILTERS)
def test_draws_follow_transformers_distribution(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(3))
    wanted = _reference(logits, temperature, top_k, top_p, min_p).numpy()
    drawn = _draw_many(logits, 40_000, temperature, top_k, top_p, min_p)
    counts = np.bincount(drawn.numpy(), minlength=40)
    assert counts[wanted == 0].sum() == 0
    frequent = wanted > 1e-3
    counts = np.append(counts[frequent], counts[~frequent].sum())
    wanted = np.append(wanted[frequent], wanted[~frequent].sum())
    if counts[-1] == 0:
        counts, wanted = counts[:-1], wanted[:-1] / wanted[:-1].sum()
    assert len(counts) == 1 or _chi_square(counts, wanted) < 1


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.sampled_from([1, 2, 17, 300, 3000]),
    temperature=st.floats(0.05, 3),
    top_k=st.sampled_from([0, 2, 3, 50, 5000]),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
)
def test_drawn_tokens_are_those_transformers_keeps(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = 3 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    wanted = _reference(logits, temperature, top_k, top_p, min_p)
    drawn = _draw_many(logits, 300, temperature, top_k, top_p, min_p)
    # Rounding may move the very edge of a nucleus: allow tokens whose own share is tiny.
    kept = wanted > 0
    outside = drawn[~kept[drawn]]
    edge = logits[kept].min() - 1e-4 * temperature
    assert bool((logits[outside] >= edge).all()), (outside, edge)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_row_does_not_depend_on_the_others(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 9))
    vocab = data.draw(st.sampled_from([50, 1500, 4000]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    # Few distinct values, so that ties fall on every edge.
    logits = torch.from_numpy(
        np.round(generator.normal(0, data.draw(st.sampled_from([0.05, 3])), (rows, vocab)), 1)
    ).float()
    columns = (
        generator.uniform(0.1, 2, rows).astype(np.float32),
        generator.choice([0, 2, 7, 1200, vocab], rows),
        generator.choice([1.0, 0.3, 0.95], rows).astype(np.float32),
        generator.choice([0.0, 0.1], rows).astype(np.float32),
        generator.uniform(0, 1, rows),
    )
    together = draw(logits, *columns)
    order = generator.permutation(rows)
    shuffled = draw(logits[torch.from_numpy(order)], *(column[order] for column in columns))
    assert torch.equal(together[torch.from_numpy(order)], shuffled)
    for row in range(rows):
        alone = draw(logits[row : row + 1], *(column[row : row + 1] for column in columns))
        assert int(alone[0]) == int(together[row])


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_ends_of_the_distribution(u: float) -> None:
    """Tokens without probability are never drawn, not even by the extreme numbers."""
    logits = torch.tensor([[-torch.inf, 1.0, -1e9, 2.0, -torch.inf]])
    ones = np.ones(1, np.float32)
    token = draw(logits, ones, np.zeros(1, np.int64), ones, 0 * ones, np.array([u]))
    assert int(token[0]) == (1 if u == 0 else 3)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = torch.tensor([[3e38, -3e38, 2.9e38]])
    tiny = np.full(1, np.finfo(np.float32).tiny)
    ones = np.ones(1, np.float32)
    token = draw(logits, tiny, np.zeros(1, np.int64), ones, 0 * ones, np.array([0.999]))
    assert int(token[0]) == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), vocab=st.sampled_from([7, 1500, 3000]), rows=st.integers(1, 6))
def test_without_looking_the_same_tokens_are_drawn(seed: int, vocab: int, rows: int) -> None:
    """Ties, forbidden tokens, and nuclei of more tokens than `draw` looks at first."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 3, (rows, vocab)) * random.choice([0.01, 1.0], (rows, 1))
    values[random.random((rows, vocab)) < 0.1] = -np.inf
    values[:, 0] = 0.0
    logits = torch.from_numpy(np.where(random.random((rows, 1)) < 0.5, values, values.round(1)))
    arguments = (
        random.choice([np.finfo(np.float32).tiny, 0.7, 1.0, 4.0], rows).astype(np.float32),
        random.choice([0, 2, 5, vocab - 1, vocab, 2 * vocab], rows),
        random.choice([0.05, 0.9, 0.999, 1.0], rows).astype(np.float32),
        random.choice([0.0, 0.0, 0.1, 1.0], rows).astype(np.float32),
        random.random(rows),
    )
    expected = draw(logits.float(), *arguments)
    blind = draw_blind(logits.float(), *(torch.from_numpy(each) for each in arguments))
    assert blind.tolist() == expected.tolist()
