"""Watchers: numbered without gaps from their snapshot on, cut off when they fall behind."""

import asyncio

import pytest

from baton.v1 import errors_pb2 as errors
from baton.v1.kv_pb2 import HolderChange, Peer
from baton_kvstore.watchers import Watchers
from baton_rpc import Refusal


def change(name: str) -> HolderChange:
    return HolderChange(holder=Peer(name=name))


async def test_each_watcher_hears_everything_after_its_snapshot() -> None:
    watchers = Watchers(queue_limit=10)
    watchers.tell([change("before")])
    stream = watchers.watch("w", [change("snapshot")])
    first = await anext(stream)
    assert (first.sequence, first.snapshot) == (1, True)
    watchers.tell([change("x")])
    watchers.tell([])
    watchers.tell([change("y")])
    heard = [await anext(stream) for _ in range(2)]
    assert [(e.sequence, e.changes[0].holder.name) for e in heard] == [(2, "x"), (3, "y")]
    await stream.aclose()
    assert len(watchers) == 0


async def test_a_watcher_that_falls_behind_is_cut_off_without_holding_memory() -> None:
    watchers = Watchers(queue_limit=3)
    stream = watchers.watch("slow", [])
    await anext(stream)
    for i in range(100):
        watchers.tell([change(str(i))])
    with pytest.raises(Refusal) as caught:
        while True:
            await asyncio.wait_for(anext(stream), 1)
    assert caught.value.reason == errors.ERROR_REASON_STALE_EPOCH
    assert len(watchers) == 0
