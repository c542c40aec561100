"""Tokens a second with and without speculation, one engine beside the other in the same process.

    python bench/engine/speculation.py CHECKPOINT [--tokens 1 2 3] [--layers 24]

The checkpoint is the demo model or another one that speaks its language: the prompts are first
turns of held-out tasks, answered greedily up to end-of-sequence. They are asked one after the
other, then eight at a time. Engines take turns, so that what else the machine does falls on all of
them alike; figures are those of the best of the rounds. Prints the share of guesses that held
(those behind an answer's end do not) and how many tokens a step brought to a request. Ends with 1
when an engine says something else than the one without speculation.

--layers: the same model made as deep as large ones are, by layers whose outputs are zero: it says
the same, guesses the same, and a guess costs the part of a step that it costs there. The shipped
model has four layers, beside which one layer and an output head for guessing are no small part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from baton_engine import (
    Done,
    Engine,
    EngineConfig,
    EngineRequest,
    Failed,
    SamplingParams,
    StepEvents,
    StopParams,
    TokensEmitted,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
MAX_TOKENS = 200
TOGETHER = 8


def deepened(checkpoint: Path, layers: int, out: Path) -> Path:
    """The checkpoint with copies of its last layer before the drafting one; they add nothing."""
    config = json.loads((checkpoint / "config.json").read_text())
    own = config["num_hidden_layers"]
    if layers < own:
        raise ValueError(f"--layers is {layers}, but the model has {own} already")
    shutil.copytree(checkpoint, out, dirs_exist_ok=True)
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    tensors = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if name.startswith(f"model.layers.{own}."):
            name = name.replace(f".{own}.", f".{layers}.", 1)
        tensors[name] = tensor
        if name.startswith(f"model.layers.{own - 1}."):
            silent = name.endswith(("o_proj.weight", "down_proj.weight"))
            for layer in range(own, layers):
                copy = torch.zeros_like(tensor) if silent else tensor.clone()
                tensors[name.replace(f".{own - 1}.", f".{layer}.", 1)] = copy
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def conversations(checkpoint: Path, count: int) -> tuple[list[list[int]], int]:
    """Prompts, and the token that ends an answer."""
    sys.path.append(str(EXAMPLES))
    from demo_model.agent import Attempt
    from demo_model.chat import Encoder, render
    from demo_model.names import Split
    from demo_model.tasks import make_task
    from demo_model.tokenizer import END_OF_TURN

    encoder = Encoder(checkpoint)
    tasks = [make_task(Split.HELD_OUT, seed) for seed in range(count)]
    texts = [render(Attempt.of(task).messages, prompt=True) for task in tasks]
    return [encoder.encode(text).tolist() for text in texts], encoder.token(END_OF_TURN)


@dataclass
class Run:
    """What one pass over the prompts took."""

    seconds: float
    cpu_seconds: float  # of the process: what else the machine does changes it little
    tokens: int
    row_steps: int  # how often a step brought tokens to a request


@dataclass
class Contender:
    """One engine."""

    guesses: int
    engine: Engine
    end: int
    said: dict[str, list[int]] = field(default_factory=dict)
    row_steps: int = 0
    passes: int = 0
    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def told(self, events: StepEvents) -> None:
        for event in events.events:
            if isinstance(event, TokensEmitted):
                self.said[event.request_id] += event.token_ids
                self.row_steps += 1
            elif isinstance(event, Failed):
                raise RuntimeError(event.message)
            elif isinstance(event, Done):
                self.ended.put_nowait(event.request_id)

    async def run(self, prompts: Sequence[list[int]], at_a_time: int) -> Run:
        """All prompts, `at_a_time` under way."""
        self.said, self.row_steps, self.passes = {}, 0, self.passes + 1
        start, spent = time.perf_counter(), time.process_time()
        waiting = list(enumerate(prompts))
        under_way = 0
        while waiting or under_way:
            while waiting and under_way < at_a_time:
                self.submit(*waiting.pop(0))
                under_way += 1
            await self.ended.get()
            under_way -= 1
        seconds, spent = time.perf_counter() - start, time.process_time() - spent
        return Run(seconds, spent, sum(map(len, self.said.values())), self.row_steps)

    def submit(self, index: int, prompt: list[int]) -> None:
        self.said[f"p{index}"] = []
        self.engine.submit(
            EngineRequest(
                request_id=f"p{index}",
                attempt=self.passes,
                token_ids=np.array(prompt, np.int32),
                prompt_tokens=len(prompt),
                max_new_tokens=MAX_TOKENS,
                sampling=SamplingParams(),
                stop=StopParams(eos_token_ids=(self.end,)),
                cache_key=bytes(16),
            )
        )

    def held(self) -> tuple[int, int]:
        """(guesses that held, guesses) since the start."""
        pool = self.engine.description.pool
        return pool.accepted_draft_tokens, pool.draft_tokens


async def contender(
    options: argparse.Namespace, checkpoint: Path, guesses: int, end: int
) -> Contender:
    """A loaded engine that steps."""
    config = EngineConfig(
        model_path=checkpoint,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        num_pages=1024,
        max_running=TOGETHER,
        speculative={"method": "mtp", "tokens": guesses} if guesses else None,
    )
    engine = Engine(config, role="fused", name=f"guesses-{guesses}")
    await engine.load()
    made = Contender(guesses, engine, end)
    engine.start("127.0.0.1:1", made.told)
    return made


async def compare(options: argparse.Namespace, checkpoint: Path) -> int:
    prompts, end = conversations(options.checkpoint, options.prompts)
    guesses = (0, *options.tokens)
    contenders = [await contender(options, checkpoint, k, end) for k in guesses]
    for each in contenders:
        await each.run(prompts, TOGETHER)  # prompts are in the cache from now on
    wrong = 0
    print(
        f"{'at a time':>9} {'guesses':>7} {'tokens/s':>8} {'times':>6} {'CPU ms/token':>12} "
        f"{'times':>6} {'held':>6} {'a step':>6}"
    )
    for at_a_time in (1, TOGETHER):
        best: dict[int, Run] = {}
        least: dict[int, float] = {}
        before = {each.guesses: each.held() for each in contenders}
        for _ in range(options.rounds):
            for each in contenders:
                run = await each.run(prompts, at_a_time)
                wrong += each.said != contenders[0].said
                cost = run.cpu_seconds / run.tokens
                least[each.guesses] = min(cost, least.get(each.guesses, cost))
                if each.guesses not in best or run.seconds < best[each.guesses].seconds:
                    best[each.guesses] = run
        plain = best[0].tokens / best[0].seconds
        for each in contenders:
            run = best[each.guesses]
            held, all_of = (a - b for a, b in zip(each.held(), before[each.guesses], strict=True))
            rate = run.tokens / run.seconds
            share = f"{held / all_of:6.1%}" if all_of else "      "
            print(
                f"{at_a_time:9} {each.guesses:7} {rate:8.0f} {rate / plain:6.2f} "
                f"{1e3 * least[each.guesses]:12.2f} {least[0] / least[each.guesses]:6.2f} {share} "
                f"{run.tokens / run.row_steps:6.2f}"
            )
    for each in contenders:
        await each.engine.stop()
    if wrong:
        print(f"{wrong} passes said something else than without speculation")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layers", type=int, help="make the model so deep")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 3], metavar="K")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.layers is None:
        return asyncio.run(compare(options, options.checkpoint))
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = deepened(options.checkpoint, options.layers, Path(directory))
        return asyncio.run(compare(options, checkpoint))


if __name__ == "__main__":
    raise SystemExit(main())
