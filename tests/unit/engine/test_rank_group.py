"""Rank 0 and its followers, which the test plays: what is waited for, what a death ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from baton.v1.kv_pb2 import ExportedMemory, ExportedRank
from baton_engine.batch import StepInput
from baton_engine.config import EngineConfig
from baton_engine.ranks.follower import Hello
from baton_engine.ranks.frames import (
    FrameSocket,
    Kind,
    pack_hashed,
    unpack_hash,
    unpack_step,
)
from baton_engine.ranks.group import RankGroup
from baton_engine.ranks.group_init import Rendezvous
from baton_engine.step_loop import RanksLost

PAGES = np.array([4, 2], np.int32)


class Played:
    """A follower of two ends: `frames` is rank 0's, `mine` the test's."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.frames, self.mine = FrameSocket(ours), FrameSocket(theirs)

    def exit_note(self) -> str:
        return "played"

    def end(self, grace_s: float) -> None:
        self.mine.close()

    def expect(self, kind: Kind) -> bytes:
        got, payload = self.mine.receive()
        assert got is kind
        return payload


class Players:
    host = "127.0.0.1"

    def __init__(self) -> None:
        self.followers: list[Played] = []

    def start(self, count: int) -> Sequence[Played]:
        self.followers = [Played() for _ in range(count)]
        return self.followers


@pytest.fixture
def lost() -> Future[str]:
    return Future()


@pytest.fixture
def players() -> Players:
    return Players()


@pytest.fixture
def group(players: Players, lost: Future[str], tmp_path: Path) -> Iterator[RankGroup]:
    group = RankGroup(players, 2)
    config = EngineConfig(model_path=tmp_path, tp=3)
    group.greet(config, Rendezvous("127.0.0.1", 1, 3, 0), "worker", 77, lost.set_result)
    for rank, follower in enumerate(players.followers, start=1):
        hello = Hello.unpack(follower.expect(Kind.HELLO))
        assert (hello.name, hello.epoch, hello.rendezvous.rank) == ("worker", 77, rank)
    yield group
    group.stop()


def step() -> StepInput:
    none = np.empty(0, np.int32)
    rows = np.array([[0, 1, 0, 1, 0, 0]], np.int32)
    return StepInput(rows, none[:1], none.reshape(0, 3), none, none.reshape(0, 2))


def test_ready_ranks_say_what_they_export(group: RankGroup, players: Players) -> None:
    memories = [ExportedRank(groups=[ExportedMemory(agent=f"r{rank}")]) for rank in (1, 2)]
    for follower, memory in zip(players.followers, memories, strict=True):
        follower.mine.send(Kind.READY, memory.SerializeToString())
    assert group.wait_ready(30) == memories


def test_a_step_is_over_when_it_is_over_on_every_rank(group: RankGroup, players: Players) -> None:
    group.send(step())
    over: Future[None] = Future()

    def wait() -> None:
        group.wait_stepped()
        over.set_result(None)

    threading.Thread(target=wait, daemon=True).start()
    for follower in players.followers:
        assert len(unpack_step(follower.expect(Kind.STEP)).rows) == 1
    players.followers[1].mine.send(Kind.STEPPED)
    with pytest.raises(TimeoutError):
        over.result(0.05)  # the other one has not said so, however long it takes
    players.followers[0].mine.send(Kind.STEPPED)
    over.result(30)


def test_ranks_tell_checksums_of_pages(group: RankGroup, players: Players) -> None:
    futures = group.checksums(1, PAGES, [2])
    order = unpack_hash(players.followers[1].expect(Kind.HASH))
    assert (order.group, order.pages.tolist()) == (1, PAGES.tolist())
    later = group.checksums(0, PAGES[:1], [2])
    again = unpack_hash(players.followers[1].expect(Kind.HASH))
    # Answers are told apart by their number, whatever their order.
    sums = np.array([5, 2**64 - 1], np.uint64)
    players.followers[1].mine.send(Kind.HASHED, *pack_hashed(again.hash_id, sums[:1]))
    players.followers[1].mine.send(Kind.HASHED, *pack_hashed(order.hash_id, sums))
    assert futures[0].result(30).tolist() == sums.tolist()
    assert later[0].result(30).tolist() == [5]


def test_what_is_not_read_again_is_forgotten_everywhere(group: RankGroup, players: Players) -> None:
    group.forget(b"memory of a past life")
    for follower in players.followers:
        assert follower.expect(Kind.FORGET) == b"memory of a past life"


def test_a_rank_that_dies_ends_all_that_is_waited_for(
    group: RankGroup, players: Players, lost: Future[str]
) -> None:
    hashes = group.checksums(0, PAGES, [1, 2])
    players.followers[0].mine.close()
    with pytest.raises(RanksLost, match="rank 1"):
        hashes[0].result(30)
    assert "rank 1" in lost.result(30)
    with pytest.raises(RanksLost, match="rank 1"):
        group.wait_stepped()
    with pytest.raises(RanksLost, match="rank 1"):
        group.checksums(0, PAGES, [1])[0].result(30)
