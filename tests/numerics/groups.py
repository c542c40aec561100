"""Steps of data-parallel groups: uneven batches, and steps that leave a group without tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from baton_modeling import CompiledModel, load_model
from baton_modeling.compiler.costs import COLLECTIVES, CollectiveCost, CostTable

from .driver import PAGE_SIZE, Driver, Row

# Prompts of each group, and per step and group what is computed: (prompt, tokens).
PROMPTS = [
    [[(17 * i + 301 * seed) % 2000 + 16 for i in range(count)] for seed, count in group]
    for group in (((1, 40), (2, 23)), ((3, 31), (4, 12)))
]
STEPS: list[list[list[tuple[int, int]]]] = [
    [[(0, 25)], [(0, 30), (1, 7)]],
    [[(0, 14), (1, 20)], []],
    [[(0, 1), (1, 1)], [(0, 1)]],
    [[], [(1, 4)]],
    [[(1, 2)], [(1, 1)]],
]
ALWAYS_GATHER = CostTable(
    {name: CollectiveCost(1e9 if name == "all_to_all" else 1.0, 1.0) for name in COLLECTIVES}
)
ALWAYS_DISPATCH = CostTable(
    {name: CollectiveCost(1.0 if name == "all_to_all" else 1e3, 1.0) for name in COLLECTIVES}
)


def run_group(model: CompiledModel, group: int) -> list[Tensor]:
    """Every step's logits, as one rank of the group sees them."""
    driver = Driver(model, seed=group)
    rows = [Row(list(prompt)) for prompt in PROMPTS[group]]
    logits = []
    for step in STEPS:
        counts = tuple(sum(count for _, count in work) for work in step)
        work = sorted(((rows[i], n) for i, n in step[group]), key=lambda item: item[1] != 1)
        batch = dataclasses.replace(
            driver.batch(work), group_tokens=counts, group_logit_rows=counts
        )
        logits.append(model.forward(batch))
        for row, count in work:
            row.computed += count
    return logits


def expected_logits(checkpoint: Path) -> list[Tensor]:
    """The same steps, every prompt alone on one rank."""
    model = load_model(checkpoint, page_size=PAGE_SIZE)
    whole = [
        [Driver(model).prefill(Row(list(prompt)), [len(prompt)]) for prompt in prompts]
        for prompts in PROMPTS
    ]
    at = [[0, 0], [0, 0]]
    steps = []
    for step in STEPS:
        parts = []
        for group, work in enumerate(step):
            for prompt, count in sorted(work, key=lambda item: item[1] != 1):
                first = at[group][prompt]
                parts.append(whole[group][prompt][first : first + count])
                at[group][prompt] += count
        steps.append(torch.cat(parts))
    return steps


def step_sizes(group: int) -> list[tuple[int, int, tuple[int, int]]]:
    """Tokens and logit rows of each step, and those of one group."""
    sizes = []
    for step in STEPS:
        counts = [sum(count for _, count in work) for work in step]
        sizes.append((sum(counts), sum(counts), (counts[group], counts[group])))
    return sizes
