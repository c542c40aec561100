"""A world in which the lease protocol runs by a virtual clock, with everything going wrong.

Real: LeaseBook (the holder's side) and the judgement of a read (`judged`, the
reader's side). Simulated: the network (loss, duplication, any order), NIXL
(the two halves of a page move at any moments between post and fence, so that a
page can be torn), both processes' deaths, and a holder that reuses every page
it may. A page with checksums is accepted before its lease is released, or read
without one where the holder's table of seals says that it is, or was.
"""

import heapq
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from baton_transfer import LeaseBook, PullFailure, ReadFailure, ReadOutcome
from baton_transfer.outcome import judged

SLOTS = 3
TARGETS = 3
TTL = 4.0
RPC_TIMEOUT = 3.0
READ_DEADLINE = 6.0
GARBAGE = -1
TORN = -2


@dataclass(slots=True)
class Chances:
    """Of one schedule; drawn from its seed."""

    loss: float
    duplicate: float
    checksums: bool
    holder_dies: float
    reuse_every: float


class World:
    """Events in order of a virtual clock."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        draw = self.random.random
        self.chances = Chances(
            draw() * 0.3, draw() * 0.3, draw() < 0.5, draw() * 0.3, 0.2 + 2 * draw()
        )

    def later(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def send(self, deliver: Callable[[], None]) -> None:
        """A message: lost, once or twice, after any delay."""
        if self.random.random() < self.chances.loss:
            return
        self.later(self.random.expovariate(1.0), deliver)
        if self.random.random() < self.chances.duplicate:
            self.later(self.random.expovariate(0.5), deliver)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until


class Holder:
    """Slots with contents; `index` says which identity (= content) is in which slot."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.epoch = 0
        self.identities = 0
        self.memory = [GARBAGE] * SLOTS
        self.start()
        world.later(world.chances.reuse_every, self.reuse)
        if world.random.random() < world.chances.holder_dies:
            world.later(world.random.uniform(0.5, 12), self.start)

    def start(self) -> None:
        """A new life: other contents, no leases."""
        self.epoch += 1
        self.index: dict[int, int] = {}
        self.table: dict[int, tuple[int, int]] = {}  # slot and checksum; rows outlive their pages
        self.book = LeaseBook(1, lambda pages: None)
        for slot in range(SLOTS):
            self.write(slot)

    def write(self, slot: int) -> None:
        self.identities += 1
        self.memory[slot] = self.identities
        self.index[self.identities] = slot
        self.table[self.identities] = slot, self.identities

    def reuse(self) -> None:
        """Every slot that no lease protects gets another page, at once."""
        self.book.expire(self.world.now)
        for identity, slot in list(self.index.items()):
            if not self.book.is_leased(slot) and self.world.random.random() < 0.5:
                del self.index[identity]
                self.write(slot)
        self.world.later(self.world.chances.reuse_every, self.reuse)

    def acquire(self, epoch: int, wanted: list[int]) -> tuple[int, list[int], list[int]] | None:
        if epoch != self.epoch:
            return None
        slots = []
        for identity in wanted:
            if identity not in self.index:
                break
            slots.append(self.index[identity])
        if not slots:
            return 0, [], []
        lease = self.book.grant(np.array(slots, np.int32), self.world.now, TTL)
        return lease, slots, [self.memory[slot] for slot in slots]

    def renew(self, epoch: int, lease: int) -> bool:
        return epoch == self.epoch and not self.book.renew([lease], self.world.now, TTL)

    def release(self, epoch: int, lease: int) -> bool:
        return epoch == self.epoch and self.book.release([lease], self.world.now) == [True]


@dataclass(slots=True)
class Pull:
    """One pull of the reader: what it knows and what moves."""

    epoch: int
    wanted: list[int]
    targets: list[int]
    lease: int = 0  # 0: none, and none was asked for
    sums: list[int] = field(default_factory=list)
    halves: list[list[int]] = field(default_factory=list)  # of each page, what has moved
    moved: int = 0
    failure: ReadFailure | None = None
    phase: str = "acquiring"


class Reader:
    """Pulls again and again; `memory` are its target pages, `busy` those in quarantine."""

    def __init__(self, world: World, holder: Holder) -> None:
        self.world = world
        self.holder = holder
        self.memory = [GARBAGE] * TARGETS
        self.busy: set[int] = set()
        self.accepted = 0
        self.rejected = 0
        self.outlived = 0  # reads that were judged by their checksums, their lease being over
        self.unleased = 0  # pages accepted that way
        world.later(0.1, self.pull)

    def pull(self) -> None:
        world, holder = self.world, self.holder
        free = [target for target in range(TARGETS) if target not in self.busy]
        if world.now < 15:
            world.later(world.random.uniform(0.2, 2), self.pull)
        if not free:
            return
        wanted = world.random.sample(sorted(holder.index), min(len(free), len(holder.index)))
        pull = Pull(holder.epoch, wanted, free[: len(wanted)])
        assert not self.busy & set(pull.targets)
        self.busy |= set(pull.targets)

        if self.goes_unleased(pull):
            return

        def asked() -> None:
            answer = holder.acquire(pull.epoch, wanted)
            world.send(lambda: self.leased(pull, answer))

        world.send(asked)
        world.later(RPC_TIMEOUT, lambda: self.unheard(pull, "acquiring"))

    def goes_unleased(self, pull: Pull) -> bool:
        """Whether this pull goes by the table; then some of what it wants may be gone already."""
        if not self.world.chances.checksums or self.world.random.random() < 0.5:
            return False
        listed = sorted(self.holder.table)[-2 * SLOTS :]
        count = min(len(pull.targets), len(listed))
        pull.wanted = self.world.random.sample(listed, count)
        rows = [self.holder.table[identity] for identity in pull.wanted]
        pull.sums = [checksum for _, checksum in rows]
        self.read(pull, [slot for slot, _ in rows])
        return True

    def leased(self, pull: Pull, answer: tuple[int, list[int], list[int]] | None) -> None:
        if pull.phase != "acquiring":
            return  # a duplicate, or later than our patience: that lease will expire
        if answer is None or not answer[0]:
            self.free(pull)
            return
        pull.lease, slots, pull.sums = answer
        self.read(pull, slots)
        self.world.later(TTL / 4, lambda: self.beat(pull))

    def read(self, pull: Pull, slots: list[int]) -> None:
        pull.phase = "reading"
        life = self.holder.epoch
        pull.halves = [[GARBAGE, GARBAGE] for _ in slots]
        for page, slot in enumerate(slots):
            for half in (0, 1):
                delay = self.world.random.expovariate(1.0)
                self.world.later(
                    delay, lambda p=page, s=slot, h=half: self.move(pull, life, p, s, h)
                )
        self.world.later(READ_DEADLINE, lambda: self.fence(pull, ReadFailure.DEADLINE))

    def move(self, pull: Pull, life: int, page: int, slot: int, half: int) -> None:
        """NIXL copies half a page, unless the fence fell or the holder's process is another."""
        if pull.phase != "reading":
            return
        if self.holder.epoch != life:
            self.fence(pull, ReadFailure.DISCONNECTED)
            return
        assert pull.targets[page] in self.busy
        halves = pull.halves[page]
        halves[half] = self.holder.memory[slot]
        self.memory[pull.targets[page]] = halves[0] if halves[0] == halves[1] else TORN
        pull.moved += 1
        if pull.moved == 2 * len(pull.sums):
            self.ended(pull, None)

    def beat(self, pull: Pull) -> None:
        if pull.phase != "reading":
            return

        def heard() -> None:
            alive = self.holder.renew(pull.epoch, pull.lease)
            self.world.send(lambda: alive or self.fence(pull, ReadFailure.STOPPED))

        self.world.send(heard)
        self.world.later(TTL / 4, lambda: self.beat(pull))

    def fence(self, pull: Pull, failure: ReadFailure) -> None:
        if pull.phase == "reading":
            self.ended(pull, failure)

    def ended(self, pull: Pull, failure: ReadFailure | None) -> None:
        """The read is terminal. Pages that arrived one by one count as a prefix only."""
        pull.phase = "releasing"
        pull.failure = failure
        proven = self.world.chances.checksums
        if not pull.lease:
            self.verdict(pull, None)
            return

        def heard() -> None:
            valid = self.holder.release(pull.epoch, pull.lease)
            if proven:
                self.outlived += not valid
            else:
                self.world.send(lambda: self.verdict(pull, valid))

        self.world.send(heard)
        if proven:  # nobody waits for the answer
            self.verdict(pull, None)
        else:
            self.world.later(RPC_TIMEOUT, lambda: self.unheard(pull, "releasing"))

    def unheard(self, pull: Pull, phase: str) -> None:
        if pull.phase != phase:
            return
        if phase == "acquiring":
            self.free(pull)
        else:
            self.verdict(pull, None)

    def verdict(self, pull: Pull, valid: bool | None) -> None:
        if pull.phase != "releasing":
            return
        arrived, failure = self.verified(pull)
        outcome = ReadOutcome(arrived, 0, 0.0, failure, "", self.world.chances.checksums)
        pulled = judged(outcome, valid, len(pull.wanted), "holder")
        for target, identity in zip(pull.targets[: pulled.arrived], pull.wanted, strict=False):
            assert self.memory[target] == identity, (pulled, self.world.now)
        self.accepted += pulled.arrived
        self.unleased += 0 if pull.lease else pulled.arrived
        self.rejected += pulled.failure is PullFailure.EXPIRED
        self.free(pull)

    def verified(self, pull: Pull) -> tuple[int, ReadFailure | None]:
        if pull.failure is not None and not self.world.chances.checksums:
            # Without checksums only completed reads count here: which pages moved is not known.
            return 0, pull.failure
        if not self.world.chances.checksums:
            return len(pull.sums), None
        for page, checksum in enumerate(pull.sums):
            if self.memory[pull.targets[page]] != checksum:
                return page, pull.failure or ReadFailure.CHECKSUM
        return len(pull.sums), pull.failure

    def free(self, pull: Pull) -> None:
        pull.phase = "over"
        self.busy -= set(pull.targets)
        for target in pull.targets:
            self.memory[target] = GARBAGE


def run_schedule(seed: int) -> tuple[int, int, int, int]:
    """One schedule, checked; (accepted pages, pulls rejected as expired, reads that outlived
    their lease and were judged by checksums, pages accepted without a lease)."""
    world = World(seed)
    holder = Holder(world)
    reader = Reader(world, holder)
    world.run(40.0)
    holder.book.expire(world.now)
    assert len(holder.book) == 0, "a lease never ended"
    assert holder.book.leased_pages == 0
    assert not reader.busy, "a target page never came out of quarantine"
    return reader.accepted, reader.rejected, reader.outlived, reader.unleased


def explore(first: int, count: int) -> tuple[int, ...]:
    """Schedules first ... first + count - 1; the sums of run_schedule."""
    sums = np.zeros(4, np.int64)
    for seed in range(first, first + count):
        try:
            sums += run_schedule(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    return tuple(sums.tolist())


if __name__ == "__main__":
    print(*explore(int(sys.argv[1]), int(sys.argv[2])))
