"""An attempt whose constraint is being compiled: what comes for it meanwhile waits its turn."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1 import inference_pb2 as pb
from baton.v1 import kv_pb2 as kv
from baton.v1 import worker_pb2 as wire
from baton_decode import DECODE
from baton_engine import Grammar
from baton_rpc import Refusal

from .routers import cancel, start, worker

pytestmark = pytest.mark.asyncio

GRAMMAR = cast(Grammar, object())


class Slow:
    """Compiles when the test says so; refuses what is marked bad."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()

    async def grammar(self, request: wire.StartRequest) -> Grammar:
        self.asked.append(request.constraint.regex)
        await self.go.wait()
        if request.constraint.regex == "bad":
            raise Refusal(errors.ERROR_REASON_INVALID_CONSTRAINT, "constraint.regex: is bad")
        if request.constraint.regex == "bug":
            raise KeyError("bug")
        return GRAMMAR


def constrained(request_id: str, regex: str = "a", **fields: Any) -> wire.Command:
    return start(request_id, constraint=pb.Constraint(regex=regex), **fields)


def lost(request_id: str) -> wire.Command:
    return wire.Command(prefill_lost=wire.PrefillLost(request_id=request_id))


async def test_others_do_not_wait_and_its_own_commands_do() -> None:
    slow = Slow()
    async with worker(DECODE, slow) as w:
        router = await w.router()
        prefill = wire.StartRequest.AwaitPrefill(prefill=kv.Peer(name="p", address="p:1"))
        await router.send(
            constrained("a", await_prefill=prefill), start("b"), lost("a"), constrained("c")
        )
        await router.send(cancel("c"), start("d"))
        await w.until(lambda: len(w.engine.submitted) == 2)
        assert [r.request_id for r in w.engine.submitted] == ["b", "d"]
        assert w.engine.lost == []
        slow.go.set()
        await w.until(lambda: len(w.engine.submitted) == 3 and w.engine.lost)
        assert w.engine.submitted[2].sampling.grammar is GRAMMAR
        assert w.engine.submitted[0].sampling.grammar is None
        assert w.engine.lost == [("a", 0)]
        assert slow.asked == ["a", "a"]  # c was begun, but cancelled before it was compiled
        # Its last word is said all the same: its router waits for it.
        (told,) = await router.updates(1)
        assert (told.request_id, told.failed.reason) == ("c", errors.ERROR_REASON_CANCELLED)
        await router.leave()
        await w.until(lambda: ("a", 0) in w.engine.cancelled)
        assert "c" not in [r.request_id for r in w.engine.submitted]


async def test_a_bad_constraint_is_refused_before_any_work() -> None:
    slow = Slow()
    slow.go.set()
    async with worker(DECODE, slow) as w:
        router = await w.router()
        await router.send(constrained("a", "bad"), constrained("b", "bug"), start("c"))
        told = {u.request_id: u.failed for u in await router.updates(2)}
        assert told["a"].reason == errors.ERROR_REASON_INVALID_CONSTRAINT
        assert "is bad" in told["a"].message
        assert told["b"].reason == errors.ERROR_REASON_INTERNAL
        assert [r.request_id for r in w.engine.submitted] == ["c"]
        await router.leave()


async def test_a_router_that_leaves_takes_what_is_compiled_with_it() -> None:
    slow = Slow()
    async with worker(DECODE, slow) as w:
        router = await w.router()
        await router.send(constrained("a"))
        await w.until(lambda: slow.asked)
        await router.leave()
        other = await w.router("other")
        slow.go.set()
        await other.send(start("b"))
        await w.until(lambda: w.engine.submitted)
        await asyncio.sleep(0)
        assert [r.request_id for r in w.engine.submitted] == ["b"]
        await other.leave()
