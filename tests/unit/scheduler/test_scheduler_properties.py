"""Random events through the Python face, against an executor that keeps page contents.

The C++ tests drive the core much harder; this one also proves the arrays: views, columns, dtypes,
and that what they say is enough to run a paged cache correctly.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from baton_scheduler import (
    Admission,
    Config,
    Goal,
    Reply,
    Role,
    Scheduler,
    Step,
    Verdict,
    page_hashes,
)

KEY = bytes(range(16))
PAGE = 3
PAGES = 12
SLOTS = 3
Ints = NDArray[np.int32]


def tag(tokens: list[int]) -> int:
    """What KV at the last position of `tokens` must hold: a function of all of them."""
    return hash(tuple(tokens)) or 1


class Cluster(RuleBasedStateMachine):
    """One scheduler, its executor, its peers."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            Config(
                role=Role.FUSED,
                page_size=PAGE,
                num_pages=PAGES,
                max_running=SLOTS,
                max_step_tokens=8,
                max_chunk_tokens=4,
                max_context=30,
                max_waiting=6,
                hold_us=50,
            )
        )
        self.now = 0
        self.tokens: dict[int, list[int]] = {}
        self.goals: dict[int, Goal] = {}
        self.prompts: dict[int, int] = {}
        self.limits: dict[int, int] = {}
        self.alive: set[int] = set()
        self.table = np.full((SLOTS, 30), -1, np.int64)
        self.content = np.zeros((PAGES, PAGE), np.int64)
        self.fetches: dict[int, list[tuple[int, int]]] = {}
        self.leases: dict[int, tuple[Ints, NDArray[np.int64], int]] = {}
        self.step: Step | None = None

    # ---- requests

    @rule(
        family=st.integers(0, 1),
        length=st.integers(1, 12),
        new=st.integers(1, 8),
        goal=st.sampled_from(list(Goal)),
        fetch=st.integers(0, 3),
        park=st.sampled_from([0, 0, 60]),
        data=st.data(),
    )
    def submit(
        self,
        family: int,
        length: int,
        new: int,
        goal: Goal,
        fetch: int,
        park: int,
        data: st.DataObject,
    ) -> None:
        request = len(self.tokens) + 1
        prompt = [family if i < 7 else i for i in range(length)]
        parked = [r for r in self.tokens if self.scheduler.state(r) == "Parked"]
        resumes = data.draw(st.sampled_from(parked)) if parked else None
        forked = data.draw(st.sampled_from([None, *self.tokens])) if resumes is None else None
        parent = resumes or forked
        if parent is not None:
            shared = data.draw(st.integers(0, len(self.tokens[parent])))
            prompt = (self.tokens[parent][:shared] + prompt)[: 30 - new]
            length = len(prompt)
        admission = self.scheduler.submit(
            request,
            np.array(prompt, np.int32),
            max_new_tokens=new,
            key=KEY,
            goal=goal,
            fetch_pages=fetch,
            park_us=0 if goal is Goal.HAND_OVER else park,
            resumes=resumes,
            fork_of=forked,
            now_us=self.now,
        )
        self.tokens[request] = prompt
        self.goals[request], self.prompts[request], self.limits[request] = goal, length, new
        assert admission in (Admission.ACCEPTED, Admission.QUEUE_FULL)
        if admission is Admission.ACCEPTED:
            self.alive.add(request)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.alive)))
        assert self.scheduler.cancel(request) in (Reply.ACCEPTED, Reply.IGNORED)
        self.alive.discard(request)

    # ---- steps

    @precondition(lambda self: self.step is None)
    @rule()
    def plan(self) -> None:
        self.now += 1
        step = self.scheduler.plan(self.now)
        for slot in step.slot_resets:
            self.table[slot] = -1
        for slot, index, page in step.page_deltas:
            self.table[slot, index] = page
        for source, target in step.copies:
            self.content[target] = self.content[source]
        for request, (index, page) in zip(
            step.fetch_requests.tolist(), step.fetch_pages.tolist(), strict=True
        ):
            self.fetches.setdefault(request, []).append((index, page))
            self.content[page] = 0
        for request in step.admitted_requests.tolist():
            if self.scheduler.state(request) == "Fetching":
                self.fetches.setdefault(request, [])
        self.alive -= {*step.finished_requests.tolist(), *step.expired_requests.tolist()}
        for request, row in zip(step.requests.tolist(), step.rows.tolist(), strict=True):
            slot, query, context, samples, offset, _ = row
            fed = step.token_ids[offset : offset + query].tolist()
            assert fed == self.tokens[request][context : context + query]
            assert samples == (context + query == len(self.tokens[request]))
            for position in range(context):
                page = self.table[slot, position // PAGE]
                expected = tag(self.tokens[request][: position + 1])
                assert self.content[page, position % PAGE] == expected
        if len(step.rows):
            self.step = step

    @precondition(lambda self: self.step is not None)
    @rule(flag=st.sampled_from([0, 0, 0, 0, 1, 2]))
    def complete(self, flag: int) -> None:
        assert self.step is not None
        sampling: list[int] = []
        for request, row in zip(self.step.requests.tolist(), self.step.rows.tolist(), strict=True):
            slot, query, context, samples, _, _ = row
            for position in range(context, context + query):
                page = self.table[slot, position // PAGE]
                self.content[page, position % PAGE] = tag(self.tokens[request][: position + 1])
            if samples:
                sampling.append(request)
        tokens = np.array([len(self.tokens[r]) % 2 for r in sampling], np.int32)
        flags = np.zeros(len(sampling), np.uint8)
        flags[:1] = flag
        done = self.scheduler.complete(self.step, tokens, flags, self.now)
        self.step = None
        for request, token, row_flag in zip(sampling, tokens.tolist(), flags.tolist(), strict=True):
            if row_flag != 2:
                self.tokens[request].append(token)
        for request, reason in zip(
            done.finished_requests.tolist(), done.finished_reasons.tolist(), strict=True
        ):
            assert request in self.alive
            self.alive.discard(request)
            generated = len(self.tokens[request]) - self.prompts[request]
            assert reason != 0 or generated == self.limits[request]
        for request in done.prefilled_requests.tolist():
            assert self.goals[request] is Goal.HAND_OVER
        for digest, request, index in zip(
            done.sealed_hashes, done.sealed_requests.tolist(), done.sealed_indices, strict=True
        ):
            known = np.array(self.tokens[request], np.int32)
            full = page_hashes(known, PAGE, KEY)
            prompt = page_hashes(known[: self.prompts[request]], PAGE, KEY, tail=True)
            assert any(
                index < len(hashes) and bytes(hashes[index]) == bytes(digest)
                for hashes in (full, prompt)
            )

    @precondition(lambda self: self.step is not None)
    @rule()
    def abandon(self) -> None:
        assert self.step is not None
        self.scheduler.abandon(self.step)
        self.step = None

    # ---- hand-over

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), lost=st.booleans(), some=st.integers(0, 5))
    def fetch(self, data: st.DataObject, lost: bool, some: int) -> None:
        request = data.draw(st.sampled_from(sorted(self.fetches)))
        pages = self.fetches.pop(request)
        arrived = pages[: some if lost else len(pages)]
        prompt = self.tokens[request][: self.prompts[request]]
        for index, page in arrived:
            for i, _ in enumerate(prompt[index * PAGE : (index + 1) * PAGE]):
                self.content[page, i] = tag(prompt[: index * PAGE + i + 1])
        fetching = self.scheduler.state(request) == "Fetching"
        if arrived:
            reply = self.scheduler.pages_arrived(request, arrived[0][0], len(arrived))
            assert (reply is Reply.ACCEPTED) == fetching
        first = 1 if self.goals[request] is Goal.AWAIT and not lost else None
        assert self.scheduler.fetch_ended(request, first, self.now) is Reply.ACCEPTED
        assert self.scheduler.fetch_ended(request, first, self.now) is not Reply.ACCEPTED
        if first is not None and fetching:
            self.tokens[request].append(first)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.alive)))
        prompt = np.array(self.tokens[request][: self.prompts[request]], np.int32)
        hashes = page_hashes(prompt, PAGE, KEY, tail=True)
        lease = self.scheduler.grant(hashes, self.now, 20)
        assert (lease.id == 0) == (len(lease.pages) == 0)
        if lease.id:
            self.leases[lease.id] = (lease.pages, self.content[lease.pages], self.now + 20)

    @precondition(lambda self: self.leases)
    @rule()
    def release(self) -> None:
        lease, (pages, content, deadline) = self.leases.popitem()
        verdict = self.scheduler.release(lease, self.now)
        assert (verdict is Verdict.VALID) == (self.now <= deadline)
        if verdict is Verdict.VALID:
            assert np.array_equal(self.content[pages], content)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.alive)))
        prefilled = self.scheduler.state(request) == "Prefilled"
        reply = self.scheduler.handed_over(request)
        assert (reply is Reply.ACCEPTED) == prefilled
        if prefilled:
            self.alive.discard(request)

    @rule()
    def wait(self) -> None:
        self.now += 100

    @invariant()
    def holds(self) -> None:
        assert self.scheduler.check_invariants() == ""
        stats = self.scheduler.stats()
        held = stats.cached_pages + stats.owned_pages + stats.referenced_pages
        assert stats.free_pages + held == stats.total_pages == PAGES

    def teardown(self) -> None:
        """Everything ends and every page comes back."""
        for request in list(self.fetches):
            self.fetches.pop(request)
            self.scheduler.fetch_ended(request, None, self.now)
        for request in list(self.tokens):
            self.scheduler.cancel(request)
        if self.step is not None:
            self.scheduler.abandon(self.step)
        self.now += 1000
        self.scheduler.plan(self.now)
        stats = self.scheduler.stats()
        assert stats.free_pages + stats.cached_pages == PAGES
        assert self.scheduler.check_invariants() == ""


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
