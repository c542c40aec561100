"""Time of a forward step of a compiled model, by batch and context.

    python bench/modeling/step_time.py CHECKPOINT [--dtype float32] [--threads 1] [--compiled 16]

--compiled: then eager beside compiled execution, for up to so many decoding rows, taking turns.
Prints the median over the repeats and the fastest of them, in milliseconds. On a shared machine
take the fastest; compare runs made one after the other only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from baton_modeling import CompiledModel, ForwardBatch, Options, load_model
from baton_modeling.compiler.regions import buckets

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
    for _ in range(repeats):
        start = time.perf_counter()
        model.forward(step)
        taken.append((time.perf_counter() - start) * 1e3)
    taken.sort()
    return taken[len(taken) // 2], taken[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--compiled", type=int, default=0, metavar="ROWS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    start = time.perf_counter()
    model = loaded(options.checkpoint, dtype, Options())
    print(f"load {(time.perf_counter() - start) * 1e3:.0f} ms")
    shapes = [(1, 1, 100), (1, 1, 2000), (8, 1, 300), (32, 1, 300)]
    shapes += [(1, 128, 128), (1, 512, 512), (1, 512, 4096)]
    print(f"{'rows':>4} {'tokens each':>11} {'context':>7} {'median ms':>9} {'fastest':>8}")
    for rows, queries, context in shapes:
        step = batch(rows, queries, context, model.config.vocab_size)
        milliseconds(model, step, 3)
        median, fastest = milliseconds(model, step, options.repeats)
        print(f"{rows:4} {queries:11} {context:7} {median:9.2f} {fastest:8.2f}")
    if options.compiled:
        other = loaded(options.checkpoint, dtype, Options(execution="compiled"))
        compare(model, other, options.compiled, options.repeats)


def loaded(checkpoint: Path, dtype: torch.dtype, options: Options) -> CompiledModel:
    model = load_model(checkpoint, page_size=PAGE_SIZE, dtype=dtype, options=options)
    model.bind_cache(model.cache_layout.allocate(PAGES, PAGE_SIZE))
    return model


def compare(eager: CompiledModel, compiled: CompiledModel, most: int, repeats: int) -> None:
    """Fastest decoding step of each by rows: every bucket, and sizes that are padded to one."""
    vocab = eager.config.vocab_size
    start = time.perf_counter()
    compiled.forward(batch(1, 1, 300, vocab))
    compiled.prepare(most, pages=1)
    print(f"compiled in {time.perf_counter() - start:.1f} s")
    print(f"{'rows':>4} {'eager ms':>8} {'compiled ms':>11} {'eager : compiled':>16}")
    for rows in sorted({*buckets(most), 3, max(1, most - 1)}):
        step, best = batch(rows, 1, 300, vocab), [float("inf")] * 2
        for _ in range(repeats):
            for index, model in enumerate((eager, compiled)):
                best[index] = min(best[index], milliseconds(model, step, 1)[1])
        print(f"{rows:4} {best[0]:8.2f} {best[1]:11.2f} {best[0] / best[1]:16.2f}")


if __name__ == "__main__":
    main()
