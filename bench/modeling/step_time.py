"""Time of a forward step of a compiled model, by batch and context.

    python bench/modeling/step_time.py CHECKPOINT [--dtype float32] [--threads 1]

Prints the median over the repeats and the fastest of them, in milliseconds. On a shared machine
take the fastest; compare runs made one after the other only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from baton_modeling import CompiledModel, ForwardBatch, load_model

PAGE_SIZE = 16
PAGES = 1024


def batch(rows: int, queries: int, context: int, vocab: int) -> ForwardBatch:
    """``rows`` requests that compute their last ``queries`` of ``context`` tokens."""
    pages_each = -(-context // PAGE_SIZE)
    tables = torch.randperm(PAGES)[: rows * pages_each].int().view(rows, pages_each)
    positions = torch.arange(context - queries, context).repeat(rows)
    owner = torch.arange(rows).repeat_interleave(queries)
    pages = tables[owner, positions // PAGE_SIZE].long()
    return ForwardBatch(
        token_ids=torch.randint(0, vocab, (rows * queries,)),
        positions=positions,
        write_slots=pages * PAGE_SIZE + positions % PAGE_SIZE,
        query_starts=(torch.arange(rows + 1) * queries).int(),
        context_tokens=torch.full((rows,), context, dtype=torch.int32),
        page_tables=tables,
        decode_rows=rows if queries == 1 else 0,
        logit_rows=(torch.arange(rows) + 1) * queries - 1,
    )


def milliseconds(model: CompiledModel, step: ForwardBatch, repeats: int) -> tuple[float, float]:
    """(median, fastest) time of the step."""
    taken = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        model.forward(step)
        taken.append((time.perf_counter() - start) * 1e3)
    taken = sorted(taken[3:])
    return taken[len(taken) // 2], taken[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    model = load_model(options.checkpoint, page_size=PAGE_SIZE, dtype=getattr(torch, options.dtype))
    print(f"load {(time.perf_counter() - start) * 1e3:.0f} ms")
    model.bind_cache(model.cache_layout.allocate(PAGES, PAGE_SIZE))
    shapes = [(1, 1, 100), (1, 1, 2000), (8, 1, 300), (32, 1, 300)]
    shapes += [(1, 128, 128), (1, 512, 512), (1, 512, 4096)]
    print(f"{'rows':>4} {'tokens each':>11} {'context':>7} {'median ms':>9} {'fastest':>8}")
    for rows, queries, context in shapes:
        step = batch(rows, queries, context, model.config.vocab_size)
        median, fastest = milliseconds(model, step, options.repeats)
        print(f"{rows:4} {queries:11} {context:7} {median:9.2f} {fastest:8.2f}")


if __name__ == "__main__":
    main()
