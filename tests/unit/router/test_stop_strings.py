"""Stop strings: whatever the cut of the text, the same result as searching it whole."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from baton_router.stop_strings import StopMatcher

ALPHABET = st.text("ab<é", max_size=24)
STOPS = st.lists(st.text("ab<é", min_size=1, max_size=5), min_size=0, max_size=4)


def cut(text: str, cuts: list[int]) -> list[str]:
    """`text` in pieces, cut at `cuts` (taken modulo its length)."""
    places = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character, with no cleverness."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(ALPHABET, STOPS, st.lists(st.integers(0, 100)))
def test_any_cut_gives_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    out = "".join(matcher.feed(piece) for piece in cut(text, cuts)) + matcher.finish()
    assert (out, matcher.matched) == expected(text, stops)


@given(ALPHABET, STOPS)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out = matcher.feed(text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_after_a_match_nothing_comes() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("abcEN") == "abc"
    assert matcher.feed("D and more") == ""
    assert (matcher.feed("even more"), matcher.finish()) == ("", "")
    assert matcher.matched == "END"


def test_what_was_held_back_comes_when_it_is_no_stop() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.feed("x E"), matcher.feed("N"), matcher.feed("C")] == ["x ", "", "ENC"]
    assert (matcher.feed("EN"), matcher.finish()) == ("", "EN")
