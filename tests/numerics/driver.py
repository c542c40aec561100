"""A small stand-in for the engine: pages, tables and batches for tests of compiled models."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from baton_kernels import NO_STATE
from baton_modeling import CompiledModel, ForwardBatch, GroupKind, StateSlots

PAGE_SIZE = 8
GARBAGE_PAGE = 2**31 - 5


def on_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """The same batch with its tensors on ``device``."""
    moved: dict[str, Any] = {
        field.name: value.to(device)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    if batch.states is not None:
        moved["states"] = StateSlots(batch.states.reads.to(device), batch.states.writes.to(device))
    return replace(batch, **moved)


@dataclass
class Row:
    """A request: its tokens so far, how many are computed, its pages, and its latest snapshot.

    kept: snapshots that other rows may read; they are not written again.
    """

    tokens: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    state: int = NO_STATE
    kept: set[int] = field(default_factory=set)


class Driver:
    """Drives one model (one rank) over a pool of pages that starts full of NaN.

    Half of the steps write a row's state to another slot than they read it from; the slot left
    behind is filled with NaN after the step, unless it is kept.
    """

    def __init__(self, model: CompiledModel, pages: int = 160, seed: int = 0) -> None:
        self.model = model
        self.random = random.Random(seed)
        self.free = list(range(pages))
        self.random.shuffle(self.free)
        self.arenas = model.cache_layout.allocate(pages, model.page_size, device=model.device)
        for arena in self.arenas.values():
            arena.fill_(0x7F if arena.dtype == torch.uint8 else float("nan"))  # NaN in float8
        model.bind_cache(self.arenas)
        self.stateful = [
            group.name for group in model.cache_layout.groups if group.kind is GroupKind.STATE
        ]
        self.free_states = list(range(pages))
        self.random.shuffle(self.free_states)

    def batch(self, work: Sequence[tuple[Row, int]], every_logit: bool = True) -> ForwardBatch:
        """The next ``count`` tokens of each row; decode rows (count 1, not the prompt) go first."""
        size = self.model.page_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, contexts = [0], []
        for row, count in work:
            last = row.computed + count
            while len(row.pages) * size < last:
                row.pages.append(self.free.pop())
            tokens += row.tokens[row.computed : last]
            positions += range(row.computed, last)
            slots += [row.pages[p // size] * size + p % size for p in range(row.computed, last)]
            starts.append(len(tokens))
            contexts.append(last)
        width = max((len(row.pages) for row, _ in work), default=0) + 3
        tables = torch.full((len(work), width), GARBAGE_PAGE, dtype=torch.int32)
        for index, (row, _) in enumerate(work):
            tables[index, : len(row.pages)] = torch.tensor(row.pages, dtype=torch.int32)
        states = self.states([row for row, _ in work])
        decode = 0
        while decode < len(work) and work[decode][1] == 1:
            decode += 1
        logit_rows = range(len(tokens)) if every_logit else [s - 1 for s in starts[1:]]
        return ForwardBatch(
            torch.tensor(tokens, dtype=torch.int64),
            torch.tensor(positions, dtype=torch.int64),
            torch.tensor(slots, dtype=torch.int64),
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(contexts, dtype=torch.int32),
            tables,
            decode,
            torch.tensor(list(logit_rows), dtype=torch.int64),
            states,
        )

    def states(self, rows: Sequence[Row]) -> StateSlots | None:
        """Where the rows continue from and where they go; their ``state`` is the latter then."""
        if not self.stateful:
            return None
        reads = [row.state for row in rows]
        for row in rows:
            if row.state == NO_STATE or row.state in row.kept or self.random.random() < 0.5:
                row.state = self.free_states.pop(0)
        return StateSlots(
            torch.tensor(reads, dtype=torch.int32),
            torch.tensor([row.state for row in rows], dtype=torch.int32),
        )

    def forget_states(self, states: StateSlots, kept: set[int]) -> None:
        """Poison and free what was read and is left behind."""
        writes = set(states.writes.tolist())
        for slot in set(states.reads.tolist()) - writes - kept - {NO_STATE}:
            for name in self.stateful:
                self.arenas[name][slot] = float("nan")
            self.free_states.append(slot)

    def step(self, work: Sequence[tuple[Row, int]], every_logit: bool = True) -> list[Tensor]:
        """Run a step; the logits of each row in turn."""
        batch = self.batch(work, every_logit)
        logits = self.model.forward(on_device(batch, self.model.device)).cpu()
        if batch.states is not None:
            self.forget_states(batch.states, set().union(*(row.kept for row, _ in work)))
        counts = [count if every_logit else 1 for _, count in work]
        for row, count in work:
            row.computed += count
        return list(logits.split(counts))

    def prefill(self, row: Row, chunks: Sequence[int]) -> Tensor:
        """Compute a row's tokens in chunks of the given sizes; all their logits."""
        return torch.cat([self.step([(row, chunk)])[0] for chunk in chunks])

    def generate(self, prompt: Sequence[int], count: int, chunk: int = 10**9) -> list[int]:
        """Greedy continuation of one prompt."""
        row = Row(list(prompt))
        while row.computed < len(prompt):
            (logits,) = self.step([(row, min(chunk, len(prompt) - row.computed))], False)
        for _ in range(count):
            row.tokens.append(int(logits[-1].argmax()))
            if len(row.tokens) < len(prompt) + count:
                (logits,) = self.step([(row, 1)], False)
        return row.tokens[len(prompt) :]
