"""The directory against a model: what watchers add up is what it holds, and locate is right."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.v1.kv_pb2 import HolderChange, Peer
from baton_kvstore.directory import Directory, split_hashes

PAGES = [bytes([i]) * 16 for i in range(6)]
SOME = st.sets(st.sampled_from(PAGES)).map(sorted)
MESSAGE = st.tuples(
    st.sampled_from("ab"), st.integers(1, 2), st.sampled_from(["next", "reset", "gap"]), SOME, SOME
)


def peer(name: str, epoch: int = 1) -> Peer:
    return Peer(name=name, address=f"{name}:1", epoch=epoch)


def apply(view: dict[str, set[bytes]], changes: list[HolderChange]) -> None:
    for change in changes:
        name = change.holder.name
        if change.gone:
            del view[name]
            continue
        held = view.setdefault(name, set())
        held -= set(split_hashes(change.removed))
        held |= set(split_hashes(change.added))


@settings(max_examples=50, deadline=None)
@given(st.lists(MESSAGE, max_size=20))
def test_watchers_and_locate_agree_with_a_model(messages: list[tuple]) -> None:
    directory = Directory(5.0)
    model: dict[str, tuple[int, int, set[bytes]]] = {}  # epoch, next sequence, pages
    view: dict[str, set[bytes]] = {}
    for name, epoch, kind, added, removed in messages:
        known = model.get(name)
        sequence = {"next": known[1] if known else 1, "reset": 0, "gap": 99}[kind]
        taken = directory.publish(peer(name, epoch), sequence, added, removed, 0.0)
        if kind == "reset":
            model[name] = (epoch, 1, set(added))
        elif known and kind == "next" and known[0] == epoch:
            model[name] = (epoch, sequence + 1, (known[2] - set(removed)) | set(added))
        else:
            assert not taken
        apply(view, directory.take_changes())
        assert view == {n: pages for n, (_, _, pages) in model.items()}
        fresh: dict[str, set[bytes]] = {}
        apply(fresh, directory.snapshot())
        assert fresh == view
        assert directory.entries == sum(len(pages) for pages in view.values())
        assert directory.pages == len(set().union(*view.values()))
        located = {p.name: n for p, n in directory.locate(PAGES)}
        expected = {
            n: sum(1 for _ in itertools.takewhile(pages.__contains__, PAGES))
            for n, pages in view.items()
        }
        assert located == {n: count for n, count in expected.items() if count}


def test_silence_is_the_end_of_a_holder_and_its_return_is_a_new_start() -> None:
    directory = Directory(5.0)
    directory.publish(peer("a"), 0, PAGES[:2], (), 0.0)
    directory.publish(peer("b"), 0, PAGES[:1], (), 4.0)
    assert [p.name for p in directory.expire(5.1)] == ["a"]
    assert [p.name for p, _ in directory.locate(PAGES)] == ["b"]
    assert not directory.publish(peer("a"), 1, PAGES[2:], (), 6.0)
    assert directory.publish(peer("a"), 0, PAGES[:2], (), 6.0)
    assert directory.locate(PAGES)[0][1] == 2


def test_the_longest_prefix_comes_first_and_workers_before_storage() -> None:
    directory = Directory(5.0)
    directory.publish(peer("store"), 0, PAGES[:3], (), 0.0, storage=True)
    directory.publish(peer("worker"), 0, PAGES[:3], (), 0.0)
    directory.publish(peer("less"), 0, PAGES[:2], (), 0.0)
    found = [(p.name, n) for p, n in directory.locate(PAGES)]
    assert found == [("worker", 3), ("store", 3), ("less", 2)]
    assert directory.locate([]) == []
