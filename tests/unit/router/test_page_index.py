"""The index against a dictionary of sets."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_router.page_index import Holder, PageIndex, split_hashes

PAGES = [bytes([i]) * 16 for i in range(6)]
NAMES = st.sampled_from(["a", "b", "c"])
SOME = st.lists(st.sampled_from(PAGES), max_size=4)


def holder(name: str, epoch: int = 1, storage: bool = False) -> Holder:
    return Holder(name, f"{name}:1", epoch, storage)


class Against(RuleBasedStateMachine):
    """Random changes; `held` must say what the model of plain sets says."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PageIndex()
        self.directory: dict[str, set[bytes]] = {}
        self.hints: dict[str, set[bytes]] = {}
        self.epochs: dict[str, int] = {}

    def live(self, name: str, epoch: int) -> Holder:
        if self.epochs.get(name, epoch) != epoch:
            self.directory.pop(name, None)
            self.hints.pop(name, None)
        self.epochs[name] = epoch
        return holder(name, epoch)

    @rule(name=NAMES, epoch=st.integers(1, 2), pages=SOME)
    def add(self, name: str, epoch: int, pages: list[bytes]) -> None:
        self.index.add(self.live(name, epoch), pages)
        self.directory.setdefault(name, set()).update(pages)

    @rule(name=NAMES, pages=SOME)
    def hint(self, name: str, pages: list[bytes]) -> None:
        self.index.hint(self.live(name, self.epochs.get(name, 1)), pages)
        self.hints.setdefault(name, set()).update(pages)

    @rule(name=NAMES, pages=SOME)
    def remove(self, name: str, pages: list[bytes]) -> None:
        self.index.remove(self.live(name, self.epochs.get(name, 1)), pages)
        for known in (self.directory, self.hints):
            known.get(name, set()).difference_update(pages)

    @rule(name=NAMES, epoch=st.sampled_from([None, 1, 2]))
    def forget(self, name: str, epoch: int | None) -> None:
        self.index.forget(name, epoch)
        if name in self.epochs and epoch in (None, self.epochs[name]):
            del self.epochs[name]
            self.directory.pop(name, None)
            self.hints.pop(name, None)

    @rule()
    def snapshot(self) -> None:
        self.index.forget_directory()
        self.directory.clear()

    @invariant()
    def same_answers(self) -> None:
        for chain in (PAGES, PAGES[:3], list(reversed(PAGES))):
            expected = {}
            for name in self.epochs:
                has = self.directory.get(name, set()) | self.hints.get(name, set())
                lead = next((i for i, page in enumerate(chain) if page not in has), len(chain))
                if lead:
                    expected[name] = lead
            held = self.index.held(b"".join(chain))
            assert {h.holder.name: h.pages for h in held} == expected
            assert [h.pages for h in held] == sorted((h.pages for h in held), reverse=True)
            assert all(h.holder.epoch == self.epochs[h.holder.name] for h in held)


TestAgainst = Against.TestCase


@given(st.binary(max_size=70))
def test_torn_hashes_are_left_out(raw: bytes) -> None:
    parts = list(split_hashes(raw))
    assert len(parts) == len(raw) // 16 and all(len(part) == 16 for part in parts)


def test_hints_are_bounded() -> None:
    index = PageIndex(hinted_pages=2)
    index.hint(holder("a"), PAGES)
    assert index.held(b"".join(PAGES)) == []
    assert [h.pages for h in index.held(b"".join(PAGES[-2:]))] == [2]


def test_storage_goes_with_the_kvstore() -> None:
    index = PageIndex()
    index.add(holder("w"), PAGES[:1])
    index.add(holder("kv", storage=True), PAGES)
    index.forget_storage()
    assert [(h.holder.name, h.pages) for h in index.held(b"".join(PAGES))] == [("w", 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from(["kv0", "kv1", "w"]))), st.integers(0, 12))
def test_kvstores_are_sources_of_what_they_have_between_them(
    having: list[set[str]], asked: int
) -> None:
    index = PageIndex()
    pages = [bytes([i]) * 16 for i in range(asked)]
    having = (having + [set()] * asked)[:asked]
    for name in ("kv0", "kv1", "w"):
        theirs = [page for page, names in zip(pages, having, strict=True) if name in names]
        index.add(holder(name, storage=name != "w"), theirs)
    found = index.held(b"".join(pages))
    together = next((i for i, names in enumerate(having) if not names - {"w"}), asked)
    best = max((held.pages for held in found if held.holder.storage), default=0)
    assert best == together
    assert [held.pages for held in found] == sorted((h.pages for h in found), reverse=True)
    for held in found:
        name = held.holder.name
        assert (name == "w") <= (not held.only)
        for i in range(held.pages):
            bit = not held.only or bool(held.only[i // 8] >> i % 8 & 1)
            assert bit == (name in having[i])


@given(
    st.dictionaries(NAMES, st.tuples(st.integers(0, 6), st.sets(st.integers(0, 5)))),
    st.integers(1, 3),
    st.integers(0, 6),
)
def test_a_prefix_is_of_use_as_far_as_there_is_a_state(
    holders: dict[str, tuple[int, set[int]]], stride: int, reusable: int
) -> None:
    states = [bytes([100 + i]) * 16 for i in range(6)]
    index = PageIndex()
    expected = {}
    for name, (pages, after) in holders.items():
        index.add(holder(name), PAGES[:pages])
        index.hint(holder(name), [states[i] for i in after])
        boundaries = range(stride, min(pages, reusable) + 1, stride)
        best = max((b for b in boundaries if b - 1 in after), default=0)
        if best:
            expected[name] = best
    usable = index.usable(index.held(b"".join(PAGES)), states[:reusable], stride)
    assert {held.holder.name: held.pages for held in usable} == expected
    assert [held.pages for held in usable] == sorted(expected.values(), reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from(["kv0", "kv1"])), max_size=8),
    st.lists(st.sets(st.sampled_from(["kv0", "kv1"])), min_size=8, max_size=8),
    st.integers(1, 3),
    st.integers(0, 8),
)
def test_kvstores_have_a_state_where_one_has_it_and_the_page_before_it(
    having: list[set[str]], after: list[set[str]], stride: int, reusable: int
) -> None:
    index = PageIndex()
    pages = [bytes([i]) * 16 for i in range(8)]
    states = [bytes([100 + i]) * 16 for i in range(8)]
    for name in ("kv0", "kv1"):
        index.add(holder(name, storage=True), [pages[i] for i, n in enumerate(having) if name in n])
        index.add(holder(name, storage=True), [states[i] for i, n in enumerate(after) if name in n])
    found = index.held(b"".join(pages))
    usable = index.usable(found, states[:reusable], stride)
    parts = [held for held in usable if held.only]
    striped = [held for held in found if held.only]
    together = max((held.pages for held in striped), default=0)
    boundaries = range(stride, min(together, reusable) + 1, stride)
    best = max((b for b in boundaries if having[b - 1] & after[b - 1]), default=0)
    assert {held.pages for held in parts} == ({best} if best else set())
    assert len(parts) == (len(striped) if best else 0)
