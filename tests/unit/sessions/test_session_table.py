"""Session leases against a model: a page is live while a lease names it, and freed once after."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_sessions import SessionTable

SESSIONS = [bytes([i]) * 16 for i in range(4)]
PAGES = [bytes([100 + i]) * 16 for i in range(5)]
# Chains: a page identity stands for all that came before it, so chains form a tree.
CHAIN = st.lists(st.sampled_from("ab"), max_size=4).map(
    lambda path: [bytes("".join(path[: i + 1]).ljust(16), "ascii") for i in range(len(path))]
)
SESSION = st.sampled_from(SESSIONS)


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = SessionTable(3)
        self.model: dict[bytes, tuple[list[bytes], float]] = {}
        self.freed: list[bytes] = []
        self.named: set[bytes] = set()
        self.family: dict[bytes, bytes] = {}
        self.shared: set[bytes] = set()

    def live(self) -> set[bytes]:
        return {page for chain, _ in self.model.values() for page in chain}

    def ended(self, freed: list[bytes]) -> None:
        """What was freed is what was named before and is not now, each once, but for the shared."""
        assert sorted(freed) == sorted(self.named - self.live() - self.shared)
        self.named = self.live()
        self.family = {session: self.family[session] for session in self.model}

    def note_shared(self) -> None:
        for page in self.live():
            named_by = {self.family[s] for s, (chain, _) in self.model.items() if page in chain}
            if len(named_by) > 1:
                self.shared.add(page)

    def expire_model(self) -> None:
        self.model = {s: lease for s, lease in self.model.items() if lease[1] > self.now}

    @rule(session=SESSION, chain=CHAIN, ttl=st.floats(0.1, 5))
    def renew(self, session: bytes, chain: list[bytes], ttl: float) -> None:
        freed = self.table.renew(session, chain, self.now, ttl)
        self.expire_model()
        self.family = {s: self.family[s] for s in self.model}
        self.family.setdefault(session, session)
        before = self.model.get(session, ([], 0.0))[0]
        self.model[session] = ([*before, *chain], self.now + ttl)
        self.note_shared()  # an old chain is let go after the new one is named
        self.named |= set(chain)
        self.model[session] = (chain, self.now + ttl)
        if len(self.model) > 3:
            del self.model[min(self.model, key=lambda s: (self.model[s][1], s))]
        self.ended(freed)

    @rule(parent=SESSION, child=SESSION)
    def fork(self, parent: bytes, child: bytes) -> None:
        if parent == child or len(self.model) == 3:
            return
        self.ended(self.table.expire(self.now)) if self.overdue() else None
        self.expire_model()
        before = self.model.get(child)
        if before is not None:
            return
        forked = self.table.fork(parent, child, self.now, 3.0)
        assert forked == (parent in self.model)
        if forked:
            self.model[child] = (list(self.model[parent][0]), self.now + 3.0)
            self.family[child] = self.family[parent]

    def overdue(self) -> bool:
        late = any(deadline <= self.now for _, deadline in self.model.values())
        self.expire_model()
        return late

    @rule(session=SESSION)
    def close(self, session: bytes) -> None:
        freed = self.table.close(session)
        self.model.pop(session, None)
        self.ended(freed)

    @rule(step=st.floats(0, 3))
    def wait(self, step: float) -> None:
        self.now += step
        freed = self.table.expire(self.now)
        self.expire_model()
        self.ended(freed)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert len(self.table) == len(self.model)
        assert self.table.pages == len(self.live())
        for session in SESSIONS:
            assert list(self.table.chain(session)) == self.model.get(session, ([], 0))[0]
        for page in self.live() | self.shared:
            assert self.table.shared(page) == (page in self.shared)
        for page in self.live():
            assert self.table.live(page) == sum(page in c for c, _ in self.model.values())


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_fork_keeps_what_its_parent_had() -> None:
    table = SessionTable(10)
    table.renew(b"p" * 16, PAGES[:3], 0.0, 10.0)
    assert table.fork(b"p" * 16, b"c" * 16, 0.0, 10.0)
    table.renew(b"c" * 16, [*PAGES[:3], PAGES[4]], 1.0, 10.0)
    assert table.close(b"p" * 16) == []
    assert table.close(b"c" * 16) == [*PAGES[:3], PAGES[4]]
    assert not table.fork(b"p" * 16, b"c" * 16, 0.0, 10.0)


def test_an_edited_history_frees_what_it_left_behind() -> None:
    table = SessionTable(10)
    table.renew(b"p" * 16, PAGES[:3], 0.0, 10.0)
    assert table.renew(b"p" * 16, [PAGES[0], PAGES[4]], 1.0, 10.0) == PAGES[1:3]


def test_a_system_prompt_outlives_its_sessions_and_a_forks_pages_do_not() -> None:
    table = SessionTable(10)
    table.renew(b"a" * 16, PAGES[:2], 0.0, 10.0)
    table.renew(b"b" * 16, [PAGES[0], PAGES[3]], 0.0, 10.0)
    table.fork(b"b" * 16, b"c" * 16, 0.0, 10.0)
    assert table.close(b"a" * 16) == [PAGES[1]]
    assert table.close(b"b" * 16) == []
    assert table.close(b"c" * 16) == [PAGES[3]]
    assert table.shared(PAGES[0])
