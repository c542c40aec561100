"""Rank 0's view of its followers: sends steps, fans out pulls, notices deaths."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from baton.v1.kv_pb2 import ExportedRank
from baton_engine.batch import StepInput, StepOutput
from baton_engine.config import EngineConfig
from baton_engine.guessing import DraftOrder
from baton_engine.ranks.follower import Hello
from baton_engine.ranks.frames import (
    HashOrder,
    Kind,
    PeerGone,
    PullOrder,
    pack_hash,
    pack_pull,
    pack_step,
    unpack_hashed,
    unpack_pulled,
)
from baton_engine.ranks.group_init import Rendezvous
from baton_engine.ranks.launch import FollowerHandle, FollowerLauncher, ProcessFollower
from baton_engine.runner import ModelRunner
from baton_engine.step_loop import RanksLost
from baton_transfer import ReadFailure, ReadOutcome

Checksums = NDArray[np.uint64]
T = TypeVar("T")

log = logging.getLogger(__name__)

_STOP_GRACE_S = 5.0
_DEATH_SEEN_S = 2.0


@dataclass(slots=True)
class _Member:
    rank: int
    handle: FollowerHandle
    ready: Future[ExportedRank] = field(default_factory=Future)
    stepped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    pulls: dict[int, Future[ReadOutcome]] = field(default_factory=dict)
    hashes: dict[int, Future[Checksums]] = field(default_factory=dict)


class RankGroup:
    """The followers of one worker. `on_lost` is called once, from a thread of the group's."""

    def __init__(self, launcher: FollowerLauncher, count: int) -> None:
        """Starts the followers. See ProcessLauncher.start for who may call it."""
        self._members = [
            _Member(rank, handle) for rank, handle in enumerate(launcher.start(count), start=1)
        ]
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._stopping = False
        self._lost: str | None = None
        self._lost_known = threading.Event()
        self._on_lost: Callable[[str], None] | None = None

    def greet(
        self,
        config: EngineConfig,
        rendezvous: Rendezvous,
        name: str,
        epoch: int,
        on_lost: Callable[[str], None],
    ) -> None:
        """Tell every follower who it is, and begin to listen to it. name, epoch: the worker's."""
        self._on_lost = on_lost
        for member in self._members:
            hello = Hello(config, rendezvous.at(member.rank), name, epoch)
            member.handle.frames.send(Kind.HELLO, hello.pack())
            threading.Thread(
                target=self._listen, args=(member,), name=f"baton-rank-{member.rank}", daemon=True
            ).start()

    def wait_ready(self, timeout_s: float) -> list[ExportedRank]:
        """When every follower has loaded: their memory. RanksLost when one ended, TimeoutError."""
        return [member.ready.result(timeout_s) for member in self._members]

    def send(self, work: StepInput | DraftOrder) -> None:
        """Give every follower a step, or what to draft after it. RanksLost when one is gone."""
        if isinstance(work, StepInput):
            kind, parts = Kind.STEP, pack_step(work)
        else:
            kind, parts = Kind.DRAFT, [work.rows.tobytes()]
        try:
            for member in self._members:
                member.handle.frames.send(kind, *parts)
        except PeerGone as gone:
            own = f"rank {member.rank} of this worker is gone"
            raise RanksLost(self.why_lost(_DEATH_SEEN_S) or own) from gone

    def wait_stepped(self) -> None:
        """Return when every follower has done the step it was sent last, once for each step: what
        it wrote can be leased. RanksLost when one is gone."""
        for member in self._members:
            member.stepped.acquire()
            if self._lost is not None:
                raise RanksLost(self._lost)

    def checksums(
        self, group: int, pages: NDArray[np.int32], ranks: Sequence[int]
    ) -> list[Future[Checksums]]:
        """xxh3-64 of sealed pages on these followers. A future fails with RanksLost."""
        order = HashOrder(next(self._ids), group, pages)
        futures = []
        for member in (self._members[rank - 1] for rank in ranks):
            future: Future[Checksums] = Future()
            with self._lock:
                member.hashes[order.hash_id] = future
            futures.append(future)
            try:
                member.handle.frames.send(Kind.HASH, *pack_hash(order))
            except PeerGone as gone:
                self._no_hash(member, order.hash_id, str(gone))
        return futures

    def forget(self, memory: bytes) -> None:
        """No follower reads this peer again."""
        for member in self._members:
            try:
                member.handle.frames.send(Kind.FORGET, memory)
            except PeerGone:
                log.info("rank %d has ended; it forgets by itself", member.rank)

    def pull(self, order: PullOrder) -> list[Future[ReadOutcome]]:
        """Every follower reads the same pages. Each future ends terminally, also when a rank dies:
        its memory is gone with it."""
        order = replace(order, pull_id=next(self._ids))
        futures = []
        for member in self._members:
            future: Future[ReadOutcome] = Future()
            with self._lock:
                member.pulls[order.pull_id] = future
            futures.append(future)
            try:
                member.handle.frames.send(Kind.PULL, *pack_pull(order))
            except PeerGone as gone:
                self._end_pull(member, order.pull_id, _gone(member.rank, str(gone)))
        return futures

    def stop(self) -> None:
        """End every follower; returns when their processes have exited."""
        self._stopping = True
        for member in self._members:
            try:
                member.handle.frames.send(Kind.STOP)
            except PeerGone:
                log.info("rank %d had ended before", member.rank)
        for member in self._members:
            member.handle.end(_STOP_GRACE_S)

    @property
    def pids(self) -> list[int]:
        """Process ids of the followers on this machine."""
        handles = [member.handle for member in self._members]
        return [handle.pid for handle in handles if isinstance(handle, ProcessFollower)]

    def why_lost(self, wait_s: float) -> str | None:
        """Why the group cannot go on; waits a little, since a collective breaks before the death
        that broke it is seen."""
        self._lost_known.wait(wait_s)
        return self._lost

    def _listen(self, member: _Member) -> None:
        note = ""
        while True:
            try:
                kind, payload = member.handle.frames.receive()
            except (PeerGone, ValueError) as error:
                note = note or str(error)
                break
            if kind is Kind.READY:
                member.ready.set_result(ExportedRank.FromString(payload))
            elif kind is Kind.STEPPED:
                member.stepped.release()
            elif kind is Kind.HASHED:
                hash_id, sums = unpack_hashed(payload)
                with self._lock:
                    member.hashes.pop(hash_id).set_result(sums)
            elif kind is Kind.PULLED:
                self._end_pull(member, *unpack_pulled(payload))
            elif kind is Kind.FAILED:
                note = payload.decode(errors="replace")
        self._member_gone(member, note)

    def _member_gone(self, member: _Member, note: str) -> None:
        if not self._stopping:
            reason = f"rank {member.rank} of this worker is gone: {note}"
            exit_note = member.handle.exit_note()
            reason = f"{reason} ({exit_note})" if exit_note else reason
            with self._lock:
                first = self._lost is None
                self._lost = self._lost or reason
            self._lost_known.set()
            if not member.ready.done():
                member.ready.set_exception(RanksLost(reason))
            if first and self._on_lost is not None:
                self._on_lost(reason)
        member.stepped.release()  # whoever waits for it looks whether it is lost
        with self._lock:
            open_pulls, open_hashes = list(member.pulls), list(member.hashes)
        for pull_id in open_pulls:
            self._end_pull(member, pull_id, _gone(member.rank, note))
        for hash_id in open_hashes:
            self._no_hash(member, hash_id, note)

    def _end_pull(self, member: _Member, pull_id: int, outcome: ReadOutcome) -> None:
        with self._lock:
            future = member.pulls.pop(pull_id, None)
        if future is not None:
            future.set_result(outcome)

    def _no_hash(self, member: _Member, hash_id: int, note: str) -> None:
        with self._lock:
            future = member.hashes.pop(hash_id, None)
        if future is not None:
            future.set_exception(RanksLost(f"rank {member.rank} is gone: {note}"))


def _gone(rank: int, note: str) -> ReadOutcome:
    return ReadOutcome(0, 0, 0.0, ReadFailure.CLOSED, f"rank {rank} is gone: {note}")


class RankedRunner:
    """A step on all ranks: told to the followers, then run here."""

    def __init__(self, local: ModelRunner, group: RankGroup) -> None:
        self._local = local
        self._group = group

    def run(self, step: StepInput, wishes: NDArray[np.float64] | None = None) -> StepOutput | None:
        """As ModelRunner.run. Whatever fails here leaves the ranks at different places, so every
        failure is RanksLost."""
        return self._everywhere(step, lambda: self._local.run(step, wishes))

    def draft(self, order: DraftOrder) -> NDArray[np.int32]:
        """As ModelRunner.draft; failures are as those of a step."""
        return self._everywhere(order, lambda: self._local.draft(order))

    def _everywhere(self, work: StepInput | DraftOrder, here: Callable[[], T]) -> T:
        self._group.send(work)
        try:
            result = here()
            self._group.wait_stepped()
            return result
        except Exception as error:
            raise self._lost(error) from error

    def finish(self) -> None:
        """As ModelRunner.finish; the others said of each step that it is in their memory."""
        try:
            self._local.finish()
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> RanksLost:
        own = f"a step failed on rank 0: {type(error).__name__}: {error}"
        return RanksLost(self._group.why_lost(_DEATH_SEEN_S) or own)
