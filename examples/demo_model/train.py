"""Trains the demo model. `make demo-model` runs it with the recipe that ships.

Progress goes to the terminal and to `losses.jsonl`, the loss plot to
`losses.png`; an interrupted run continues from `state.pt` when started again.
Run as `python -m demo_model.train --help`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch, chunk
from .chat import MODEL, Encoder
from .checkpoint import save_checkpoint
from .model import DemoModel, Gate, Shape
from .optimizer import make_optimizers
from .tokenizer import build_tokenizer, save_tokenizer

BALANCE_STEP: Final = 0.001
SAVE_EVERY_S: Final = 120.0


@dataclass(frozen=True)
class Recipe:
    """Everything the result depends on, besides the code."""

    seed: int = 1
    tokens: int = 8_000_000
    batch_tokens: int = 4096
    matrix_rate: float = 0.02
    rate: float = 0.003
    decay: float = 0.01
    mtp_weight: float = 0.3
    warm_up: float = 0.01  # share of the run

    def rate_at(self, done: float) -> float:
        """Learning rate, relative to its peak, after a share of the run."""
        return min(done / self.warm_up, (1 - done) / (1 - self.warm_up))


def losses(model: DemoModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """(of the next token, of the second next token), means over the written tokens."""
    hidden = model(batch.prefix, batch.tokens)

    def loss(states: Tensor, ahead: int) -> Tensor:
        here = batch.written[:, ahead:]
        logits = model.lm_head(states[:, :-ahead][here]).float()
        return F.cross_entropy(logits, batch.tokens[:, ahead:][here])

    return loss(hidden.following, 1), loss(hidden.second, 2)


class Trainer:
    """A training run: its model, its optimizers, and how far it is."""

    def __init__(self, recipe: Recipe, encoder: Encoder, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.encoder = encoder
        self.device = device
        self.model = DemoModel(Shape(vocabulary=encoder.tokenizer.get_vocab_size())).to(device)
        self.gates = [m for m in self.model.modules() if isinstance(m, Gate)]
        self.optimizers = make_optimizers(
            self.model, matrix_rate=recipe.matrix_rate, rate=recipe.rate, decay=recipe.decay
        )
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.chunk = 0
        self.tokens = 0
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """All that a continued run needs, at the border of two chunks."""
        return {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.chunk, self.tokens, self.steps),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken. Raises ValueError for another recipe's state."""
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"the saved run has the recipe {state['recipe']}, this one {asdict(self.recipe)}; "
                "use the same recipe, or --restart"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.chunk, self.tokens, self.steps = state["counters"]

    def step(self, batch: Batch) -> Tensor:
        """One update. Returns the two losses, [2], on the device."""
        batch = batch.to(self.device)
        self.tokens += batch.tokens.numel() + batch.prefix.numel()
        factor = self.recipe.rate_at(min(self.tokens / self.recipe.tokens, 1.0))
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        first, second = losses(self.model, batch)
        (first + self.recipe.mtp_weight * second).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for gate in self.gates:
            gate.balance(BALANCE_STEP)
        self.steps += 1
        return torch.stack([first, second]).detach()


class Journal:
    """The losses of a run: on the terminal, in a file, as a plot."""

    def __init__(self, directory: Path, steps_before: int) -> None:
        self._path = directory / "losses.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._rows = [row for line in lines if (row := json.loads(line))["step"] <= steps_before]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        self._begin = time.monotonic()
        self._tokens = 0

    def note(self, trainer: Trainer, losses: Tensor) -> None:
        """Writes one line."""
        first, second = losses.tolist()
        tokens, self._tokens = trainer.tokens - self._tokens, trainer.tokens
        seconds, self._begin = time.monotonic() - self._begin, time.monotonic()
        row = {
            "step": trainer.steps,
            "tokens": trainer.tokens,
            "next": round(first, 5),
            "second": round(second, 5),
        }
        self._rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        share = min(trainer.tokens / trainer.recipe.tokens, 1.0)
        print(
            f"{share:6.1%}  step {trainer.steps:5}  {trainer.tokens / 1e6:6.2f} M tokens  "
            f"loss {first:.4f} (MTP layer {second:.4f})  "
            f"{tokens / seconds:,.0f} tokens/s",
            flush=True,
        )

    def plot(self, path: Path) -> None:
        """Draws the losses over the tokens."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 4.5))
        millions = [row["tokens"] / 1e6 for row in self._rows]
        for key, label in (
            ("next", "next token"),
            ("second", "second next token (MTP layer)"),
        ):
            axes.plot(millions, [row[key] for row in self._rows], label=label, linewidth=1)
        axes.set(
            xlabel="million tokens",
            ylabel="cross entropy on the assistant's tokens, nats",
            yscale="log",
        )
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def train(recipe: Recipe, out: Path, work: Path, device: torch.device, every: int) -> Trainer:
    """Runs the recipe to its end; the checkpoint goes to `out`, everything else to `work`."""
    work.mkdir(parents=True, exist_ok=True)
    save_tokenizer(build_tokenizer(), out)
    trainer = Trainer(recipe, Encoder(out), device)
    saved = work / "state.pt"
    if saved.exists():
        trainer.restore(torch.load(saved, map_location=device, weights_only=True))
        print(f"continuing after {trainer.steps} steps ({saved})")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters on {device}, {torch.get_num_threads()} threads")
    journal = Journal(work, trainer.steps)
    saved_at = time.monotonic()
    sums, count = torch.zeros(2, device=device), 0
    while trainer.tokens < recipe.tokens:
        for batch in chunk(trainer.encoder, trainer.chunk, recipe.batch_tokens):
            sums += trainer.step(batch)
            count += 1
            if trainer.steps % every == 0:
                journal.note(trainer, sums / count)
                sums, count = torch.zeros(2, device=device), 0
            if trainer.tokens >= recipe.tokens:
                break
        trainer.chunk += 1
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            torch.save(trainer.state(), saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
            saved_at = time.monotonic()
    torch.save(trainer.state(), saved)
    journal.plot(out / "losses.png")
    save_checkpoint(trainer.model, out)
    return trainer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, default=MODEL, help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"), help="run's state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--restart", action="store_true", help="forget a saved state")
    parser.add_argument("--every", type=int, default=20, help="steps between progress lines")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help="recipe"
        )
    options = parser.parse_args()
    if options.restart:
        for name in ("state.pt", "losses.jsonl"):
            (options.work / name).unlink(missing_ok=True)
    recipe = Recipe(**{name: getattr(options, name) for name in asdict(Recipe())})
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    begin = time.monotonic()
    trainer = train(recipe, options.out, options.work, device, options.every)
    print(f"{trainer.tokens / 1e6:.2f} M tokens in {(time.monotonic() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
