"""Stop tokens and stop strings, token by token, against the decoded text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from baton_engine.events import FinishReason
from baton_engine.ports import StopMatch
from baton_engine.request import StopParams
from baton_engine.stops import TokenStopMatcher

SPECIAL = "<|end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the cat and the hat, the Käse, 日本語 and 🙂"] * 4, trainer)
    made.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return made


def check(matcher: TokenStopMatcher, slot: int, token: int) -> StopMatch | None:
    flags, matches = matcher.check(np.array([slot]), np.array([token], np.int32))
    assert set(matches) == set(np.flatnonzero(flags).tolist())
    return matches.get(0)


def test_eos_and_stop_tokens_of_each_row() -> None:
    matcher = TokenStopMatcher(max_slots=4)
    matcher.add(0, StopParams(eos_token_ids=(7, 8)))
    matcher.add(1, StopParams(stop_token_ids=tuple(range(20, 30))))
    matcher.add(3, StopParams(eos_token_ids=(7,), stop_token_ids=(7, 9)))
    flags, matches = matcher.check(np.array([3, 1, 0, 2]), np.array([9, 29, 8, 7], np.int32))
    assert flags.tolist() == [1, 1, 1, 0]
    assert [m.reason for m in matches.values()] == [
        FinishReason.STOP_TOKEN,
        FinishReason.STOP_TOKEN,
        FinishReason.EOS,
    ]
    assert check(matcher, 3, 7) == StopMatch(FinishReason.EOS)
    assert check(matcher, 1, 7) is None


def test_a_reused_slot_forgets(tokenizer: Tokenizer) -> None:
    matcher = TokenStopMatcher(max_slots=1, tokenizer=tokenizer)
    matcher.add(0, StopParams(eos_token_ids=(1, 2, 3, 4, 5), stop=("c",)))
    matcher.add(0, StopParams(eos_token_ids=(5,)))
    assert [check(matcher, 0, t) is None for t in (1, 4, 5)] == [True, True, False]
    assert check(matcher, 0, tokenizer.encode("c").ids[0]) is None
    matcher.drop(0)
    matcher.drop(0)
    assert check(matcher, 0, 5) is None


def test_a_stop_string_ends_with_the_token_that_completes_it(tokenizer: Tokenizer) -> None:
    matcher = TokenStopMatcher(max_slots=2, tokenizer=tokenizer)
    matcher.add(1, StopParams(stop=("at", "hat,", "語 a")))
    ids = tokenizer.encode("日本語 and").ids
    text, ended = "", None
    for n, token in enumerate(ids):
        ended = check(matcher, 1, token)
        text = tokenizer.decode(ids[: n + 1])
        if ended:
            break
    assert ended == StopMatch(FinishReason.STOP_STRING, "語 a")
    assert "語 a" in text


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="theca dn日🙂ä,", max_size=30),
    stops=st.lists(
        st.text(alphabet="theca d日🙂ä", min_size=1, max_size=5), min_size=1, max_size=4
    ),
    split=st.integers(0, 10),
)
@example(text=" 日", stops=[" "], split=0)  # its first token is a blank and two thirds of a sign
def test_stops_exactly_where_the_text_first_contains_one(
    tokenizer: Tokenizer, text: str, stops: list[str], split: int
) -> None:
    """Text is whole characters. Also when the request was moved elsewhere after `split` tokens."""
    ids = tokenizer.encode(text).ids
    first = None
    for n in range(len(ids)):
        so_far = tokenizer.decode(ids[: n + 1])
        if not so_far.endswith("\ufffd") and any(stop in so_far for stop in stops):
            first = n
            break
    split = min(split, len(ids) if first is None else first)
    matcher = TokenStopMatcher(max_slots=1, tokenizer=tokenizer)
    matcher.add(0, StopParams(stop=tuple(stops)), np.array(ids[:split], np.int32))
    for n in range(split, len(ids)):
        match = check(matcher, 0, ids[n])
        assert (match is not None) == (n == first)
        if match is not None:
            assert match.matched in stops and match.matched in text
            return
    assert first is None


def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    special = tokenizer.token_to_id(SPECIAL)
    matcher = TokenStopMatcher(max_slots=1, tokenizer=tokenizer)
    matcher.add(0, StopParams(stop=("ca", SPECIAL)))
    c, a = (tokenizer.encode(letter).ids[0] for letter in "ca")
    assert [check(matcher, 0, t) for t in (c, special, a)] == [None] * 3
    assert check(matcher, 0, c) is None
    assert check(matcher, 0, a) == StopMatch(FinishReason.STOP_STRING, "ca")


@pytest.mark.parametrize("run", [1, 50, 127, 128, 129, 2000])
def test_bytes_that_are_no_text_do_not_disturb(tokenizer: Tokenizer, run: int) -> None:
    """A random model says broken UTF-8; the match still comes when text returns."""
    matcher = TokenStopMatcher(max_slots=1, tokenizer=tokenizer)
    matcher.add(0, StopParams(stop=("the",)))
    broken = tokenizer.encode("🙂").ids[0]
    if tokenizer.decode([broken]) == "🙂":
        broken = tokenizer.token_to_id("ð")
    matches = [check(matcher, 0, broken) for _ in range(run)]
    matches += [check(matcher, 0, token) for token in tokenizer.encode(" the").ids]
    assert matches[-1] == StopMatch(FinishReason.STOP_STRING, "the")
    assert not any(matches[:-1])


def test_without_a_tokenizer_strings_are_the_routers() -> None:
    matcher = TokenStopMatcher(max_slots=1)
    matcher.add(0, StopParams(stop=("a",), eos_token_ids=(4,)))
    assert check(matcher, 0, 3) is None
    assert check(matcher, 0, 4) == StopMatch(FinishReason.EOS)


def test_a_decoder_that_fails_ends_no_request(tokenizer: Tokenizer) -> None:
    """The step must go on for everybody; the router still finds the stop string."""
    matcher = TokenStopMatcher(max_slots=1, tokenizer=tokenizer)
    matcher.add(0, StopParams(stop=("ca",)))
    text = matcher._texts[0]

    class Failing:
        def step(self, *_: object) -> str:
            raise Exception("Invalid prefix encountered")  # as tokenizers does

    text._stream = Failing()  # type: ignore[assignment]
    c, a = (tokenizer.encode(letter).ids[0] for letter in "ca")
    assert check(matcher, 0, a) is None
    assert [check(matcher, 0, t) for t in (c, a)][1] == StopMatch(FinishReason.STOP_STRING, "ca")
