"""Training: reproducible, resumable, and it learns."""

from pathlib import Path

import pytest
import torch
from demo_model.batches import chunk
from demo_model.chat import Encoder
from demo_model.train import Journal, Recipe, Trainer


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder(checkpoint)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr("demo_model.batches.CHUNK", 8)
    monkeypatch.setattr("demo_model.batches.DRILLS", 3)
    monkeypatch.setattr("demo_model.batches._DRILL_TOKENS", 256)
    return Recipe(tokens=20_000, batch_tokens=700)


def run(trainer: Trainer, chunks: int) -> list[float]:
    losses = []
    for _ in range(chunks):
        for batch in chunk(trainer.encoder, trainer.chunk, trainer.recipe.batch_tokens):
            losses.append(float(trainer.step(batch)[0]))
        trainer.chunk += 1
    return losses


def test_batches_are_a_function_of_their_number(encoder: Encoder, tiny: Recipe) -> None:
    for number in (0, 1, 5):
        first, second = (list(chunk(encoder, number, 700)) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            assert torch.equal(a.written, b.written)
            assert a.tokens.numel() <= 700 or len(a.tokens) == 1
        if number:
            assert sum(len(batch.tokens) for batch in first) == 8
    assert not torch.equal(next(chunk(encoder, 5, 700)).tokens, next(chunk(encoder, 6, 700)).tokens)


def test_a_drill_asks_for_what_was_said_before(encoder: Encoder) -> None:
    for batch in chunk(encoder, 0, 700):
        for row, written in zip(batch.tokens.tolist(), batch.written.tolist(), strict=True):
            half = len(row) // 2
            names = dict(zip(row[:half:2], row[1:half:2], strict=True))
            assert len(names) == half // 2
            asked = [i for i, wanted in enumerate(written) if wanted]
            assert asked == list(range(half + 1, len(row), 2))
            assert all(row[i] == names[row[i - 1]] for i in asked)


@pytest.mark.timeout(300)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    encoder: Encoder, tiny: Recipe, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    whole = Trainer(tiny, encoder, cpu)
    run(whole, 3)

    first = Trainer(tiny, encoder, cpu)
    run(first, 2)
    torch.save(first.state(), tmp_path / "state.pt")
    second = Trainer(tiny, encoder, cpu)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, 1)
    assert (second.steps, second.tokens) == (whole.steps, whole.tokens)
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], msg=name)


@pytest.mark.timeout(300)
def test_it_learns(encoder: Encoder) -> None:
    trainer = Trainer(Recipe(tokens=100_000), encoder, torch.device("cpu"))
    batch = next(chunk(encoder, 1, 400))
    losses = [float(trainer.step(batch)[0]) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_state_of_another_recipe_is_refused(encoder: Encoder, tiny: Recipe) -> None:
    trainer = Trainer(tiny, encoder, torch.device("cpu"))
    state = trainer.state()
    other = Trainer(Recipe(seed=2), encoder, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"recipe .*--restart"):
        other.restore(state)


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(warm_up=0.1)
    rates = [recipe.rate_at(done) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_the_journal_forgets_what_was_not_saved(
    encoder: Encoder, tiny: Recipe, tmp_path: Path
) -> None:
    trainer = Trainer(tiny, encoder, torch.device("cpu"))
    journal = Journal(tmp_path, 0)
    for trainer.steps in (10, 20):
        journal.note(trainer, torch.tensor([1.0, 2.0]))
    Journal(tmp_path, 10)
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 1
    journal.plot(tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000
