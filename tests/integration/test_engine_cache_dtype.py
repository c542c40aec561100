"""Pages of a packed cache between two engines: they move as they are, and only to their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton_engine import Await, Done, HandOver

from .engine_worker import prompts, running

PACKED: dict[str, Any] = {"kv_cache_dtype": "fp8"}
NEW = 8


async def test_packed_pages_are_handed_over(deepseek_checkpoint: Path) -> None:
    asked = prompts(2048, [17, 100, 250], seed=5)
    async with running(deepseek_checkpoint, "decode", **PACKED) as alone:
        attempts = [alone.submit(f"a{i}", p, NEW) for i, p in enumerate(asked)]
        for attempt in attempts:
            assert isinstance(await attempt.ended(), Done)
        expected = [attempt.tokens for attempt in attempts]
        identity = alone.engine.description.identity
    async with (
        running(deepseek_checkpoint, "prefill", **PACKED) as prefill,
        running(deepseek_checkpoint, "decode", **PACKED) as decode,
    ):
        assert prefill.engine.description.identity == decode.engine.description.identity
        for index, prompt in enumerate(asked):
            awaiting = decode.submit(f"h{index}", prompt, NEW, goal=Await(prefill.peer))
            prefill.submit(f"h{index}", prompt, NEW, goal=HandOver(decode.peer.name))
            end = await awaiting.ended()
            assert isinstance(end, Done)
            assert end.cost.computed_tokens == 0
            assert awaiting.tokens == expected[index]
    async with running(deepseek_checkpoint, "decode") as plain:
        assert plain.engine.description.identity != identity


@pytest.mark.parametrize("dtype", ["int8", "fp4"])
def test_other_types_are_refused(deepseek_checkpoint: Path, dtype: str) -> None:
    from .engine_worker import config

    with pytest.raises(ValueError, match="kv_cache_dtype"):
        config(deepseek_checkpoint, kv_cache_dtype=dtype)
