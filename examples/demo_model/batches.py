"""Training batches, each a function of its number alone: first drills, then conversations.

A drill is a list of names or numbers, and the same in another order: given the
first word or the first two digits, say the rest. It teaches in two minutes what
conversations alone teach in hours, namely to look up what followed a word
before (an induction head). The order changes because otherwise a fixed distance
would do. Then come conversations of one request, where there is little to copy
from, then longer ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .chat import Encoded, Encoder
from .names import ADJECTIVES, NOUNS, Split
from .tasks import make_task

CHUNK = 2048  # conversations that are sorted by length together
SHORT_CHUNKS = 2  # the chunks after the drills have conversations of one request
DRILLS = 300  # batches; they are chunk 0
_DRILL_TOKENS = 2048
_FIRST_SIZES = (3, 4, 6)  # names in a drill, in the first two thirds
_MORE_SIZES = (4, 8, 16)


@dataclass(frozen=True)
class Batch:
    """Rows that continue one prefix, padded to the longest.

    prefix: int64 [P]; tokens: int64 [B, T]; written: bool [B, T], the tokens
    to be learned, which are the assistant's in a conversation.
    """

    prefix: Tensor
    tokens: Tensor
    written: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))


def collate(encoder: Encoder, conversations: list[Encoded]) -> Batch:
    """Pads conversations to one length."""
    width = max(len(c.tokens) for c in conversations)
    tokens = np.zeros((len(conversations), width), np.int64)
    written = np.zeros(tokens.shape, np.bool_)
    for row, c in enumerate(conversations):
        tokens[row, : len(c.tokens)] = c.tokens
        written[row, : len(c.tokens)] = c.written
    prefix = torch.from_numpy(encoder.prefix)
    return Batch(prefix, torch.from_numpy(tokens), torch.from_numpy(written))


def chunk(encoder: Encoder, number: int, tokens: int) -> Iterator[Batch]:
    """The batches of a chunk; those of conversations have at most `tokens` tokens."""
    if number == 0:
        return _drills(encoder)
    seeds = range(number * CHUNK, (number + 1) * CHUNK)
    requests = 1 if number <= SHORT_CHUNKS else None
    tasks = (make_task(Split.TRAIN, seed, requests) for seed in seeds)
    encoded = [encoder.conversation(task.reference()) for task in tasks]
    encoded.sort(key=lambda c: len(c.tokens))
    groups: list[list[Encoded]] = [[]]
    for c in encoded:
        if (len(groups[-1]) + 1) * len(c.tokens) > tokens and groups[-1]:
            groups.append([])
        groups[-1].append(c)
    random.Random(number).shuffle(groups)
    return (collate(encoder, group) for group in groups)


def _drills(encoder: Encoder) -> Iterator[Batch]:
    names = (ADJECTIVES, [f"-{noun}" for noun in NOUNS])
    numbers = ([f"{n:02}" for n in range(10, 100)], [f"{n:02}" for n in range(100)])
    kinds = [[np.array([*map(encoder.token, part)]) for part in kind] for kind in (names, numbers)]
    rng = np.random.default_rng(0)
    for number in range(DRILLS):
        sizes = _FIRST_SIZES if number < DRILLS * 2 // 3 else _MORE_SIZES
        size = sizes[number % len(sizes)]
        begins, ends = kinds[number // len(sizes) % len(kinds)]
        rows = _DRILL_TOKENS // (4 * size)
        first = rng.permuted(np.tile(begins, (rows, 1)), axis=1)[:, :size]
        second = ends[rng.integers(len(ends), size=first.shape)]
        once = np.stack([first, second], axis=2)
        order = rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)
        again = np.take_along_axis(once, order[:, :, None], axis=1)
        tokens = np.concatenate([once, again], axis=1).reshape(rows, -1)
        written = np.zeros(tokens.shape, np.bool_)
        written[:, 2 * size + 1 :: 2] = True
        none = torch.zeros(0, dtype=torch.int64)
        yield Batch(none, torch.from_numpy(tokens), torch.from_numpy(written))
