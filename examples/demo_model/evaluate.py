"""Runs held-out tasks as an agent and reports how they went.

    python -m demo_model.evaluate --transformers
    python -m demo_model.evaluate --target 127.0.0.1:7000      (a running cluster)

Reports task success, tool-call validity and tokens per turn; with
`--transformers` also how often the multi-token prediction layer agrees with
the main model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .agent import Attempt, Model, attempt
from .chat import MODEL
from .names import Split
from .tasks import Task, make_task


def held_out(count: int, first: int = 0) -> list[Task]:
    """The held-out tasks, by number."""
    return [make_task(Split.HELD_OUT, seed) for seed in range(first, first + count)]


def report(attempts: Sequence[Attempt], seconds: float) -> dict[str, Any]:
    """The figures of finished attempts."""
    turns = [turn for a in attempts for turn in a.turns]
    calls = sum(a.calls for a in attempts)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for a in attempts:
        for request, right in a.right():
            by_kind[request.kind].append(right)
    return {
        "tasks": len(attempts),
        "solved": sum(a.solved for a in attempts),
        "task_success": sum(a.solved for a in attempts) / len(attempts),
        "requests": sum(map(len, by_kind.values())),
        "request_success": {k: sum(v) / len(v) for k, v in sorted(by_kind.items())},
        "tool_calls": calls,
        "tool_call_validity": 1 - sum(a.bad_calls for a in attempts) / max(calls, 1),
        "turns": len(turns),
        "tokens_per_turn": sum(turn.tokens for turn in turns) / len(turns),
        "seconds": round(seconds, 1),
    }


def mtp_agreement(directory: Path, tasks: Sequence[Task], device: str) -> dict[str, float]:
    """How often the MTP layer's first choice is the main model's, on the assistant's tokens."""
    import torch

    from .batches import collate
    from .chat import Encoder
    from .checkpoint import load_checkpoint

    encoder = Encoder(directory)
    model = load_checkpoint(directory, torch.device(device))
    agreed = tokens = right = 0
    for begin in range(0, len(tasks), 16):
        some = [encoder.conversation(t.reference()) for t in tasks[begin : begin + 16]]
        batch = collate(encoder, some).to(torch.device(device))
        with torch.inference_mode():
            hidden = model(batch.prefix, batch.tokens)
            main = model.lm_head(hidden.following).argmax(-1)
            second = model.lm_head(hidden.second).argmax(-1)
        written = batch.written[:, 2:]
        agreed += int((second[:, :-2] == main[:, 1:-1])[written].sum())
        right += int((main[:, 1:-1] == batch.tokens[:, 2:])[written].sum())
        tokens += int(written.sum())
    return {
        "assistant_tokens": tokens,
        "mtp_agreement": agreed / tokens,
        "next_token_accuracy": right / tokens,
    }


def show(figures: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = []
    for key, value in figures.items():
        if isinstance(value, dict):
            lines += [f"  {name:22} {share:8.2%}" for name, share in value.items()]
        elif isinstance(value, float) and key != "seconds" and value <= 1:
            lines.append(f"{key:24} {value:8.2%}")
        else:
            lines.append(
                f"{key:24} {value:8,.1f}" if isinstance(value, float) else f"{key:24} {value:8,}"
            )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--target", metavar="HOST:PORT", help="a cluster's router")
    where.add_argument("--transformers", action="store_true", help="in this process")
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint (--transformers)")
    parser.add_argument("--device", default="cpu", help="for --transformers")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first task")
    parser.add_argument("--concurrency", type=int, default=8, help="conversations (--target)")
    parser.add_argument("--batch", type=int, default=64, help="conversations (--transformers)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--failures", type=int, default=3, help="failed tasks to show")
    options = parser.parse_args()
    tasks = held_out(options.tasks, options.first)

    begin = time.monotonic()
    attempts = attempt(_model(options), tasks)
    figures = report(attempts, time.monotonic() - begin)
    if options.transformers:
        figures |= mtp_agreement(options.model, tasks, options.device)
    for failed in [a for a in attempts if not a.solved][: options.failures]:
        print(f"task {failed.task.seed} failed:")
        for message in failed.messages[1:]:
            print("  ", json.dumps(message, ensure_ascii=False))
        wrong = [r.answer for r, right in failed.right() if not right]
        print("   expected:", wrong or f"notes {dict(failed.task.notes_after)}")
    print(show(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _model(options: argparse.Namespace) -> Model:
    if options.target:
        from .remote import ClusterModel

        return ClusterModel(options.target, options.concurrency)
    from .local import TransformersModel

    return TransformersModel(options.model, options.device, options.batch)


if __name__ == "__main__":
    main()
