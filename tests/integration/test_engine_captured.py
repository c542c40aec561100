"""An engine whose decoding steps are captured, sampling included: every request says what it says.

Plain calls stand in for replays; looking at a value on the host raises in them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from baton_engine import Engine, runner
from baton_engine.sampling import TokenSampler

from .engine_worker import EngineWorker, config, running
from .speculating import MODEL, Asked, Said, all_said, of_every_kind


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    return of_every_kind()


@pytest.fixture(scope="module")
def eager(asked: dict[str, Asked]) -> dict[str, Said]:
    async def answers() -> dict[str, Said]:
        async with running(MODEL) as worker:
            return await all_said(worker, asked)

    return asyncio.run(answers())


@pytest.mark.parametrize("guesses", [0, 2])
async def test_requests_of_every_kind(
    asked: dict[str, Asked],
    eager: dict[str, Said],
    guesses: int,
    blind: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With guesses too: their rows are drawn inside as any other's."""
    monkeypatch.setattr(runner, "free_bytes", lambda device: 1 << 40)
    inside: list[int] = []
    asking: list[bool] = []
    sample, wishes = TokenSampler.sample, TokenSampler.wishes

    def wishing(self: TokenSampler, slots: Any, positions: Any) -> Any:
        wanted = wishes(self, slots, positions)
        asking.append(wanted is not None)
        return wanted

    def noting(self: TokenSampler, logits: Any, slots: Any, positions: Any, drawn: Any) -> Any:
        if drawn is not None:
            inside.append(len(drawn))
        return sample(self, logits, slots, positions, drawn)

    monkeypatch.setattr(TokenSampler, "sample", noting)
    monkeypatch.setattr(TokenSampler, "wishes", wishing)
    drafting = {"speculative": {"method": "mtp", "tokens": guesses}} if guesses else {}
    usual = config(MODEL, max_running=8, max_context=512, **drafting)
    graphs = usual.model_copy(update={"execution": "graphs"})
    worker = EngineWorker(Engine(graphs, role="decode", name="captured"))
    try:
        await worker.start()
        recorded = len(blind)
        assert await all_said(worker, asked) == eager
        if guesses:
            assert worker.pool.accepted_draft_tokens > 0
    finally:
        await worker.stop()
    # The longest answers decode while no prompt is left.
    assert len(blind) > recorded and len(inside) >= 20
    assert sum(asking) >= 20
