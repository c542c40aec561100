"""Incremental detokenisation against decoding everything at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baton_router.text_stream import TextStream
from baton_router.token_text import TokenTexts

from .small_files import byte_level, sentence_piece

BYTES = byte_level()
SPECIAL_MARKERS = byte_level(special_markers=True)
PIECES = sentence_piece()
IDS = st.lists(st.integers(0, 399), max_size=40)
TEXTS = st.text(max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int], **options: object) -> list[str]:
    tail = options.pop("prompt_tail", [])
    stream = TextStream(TokenTexts(tokenizer).decoder(tail), **options)  # type: ignore[arg-type]
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(IDS)
def test_random_tokens_equal_the_whole_decoding(ids: list[int]) -> None:
    """Any ids, most of them no valid UTF-8; a character that is not finished is not sent."""
    whole = BYTES.decode(ids, skip_special_tokens=True)
    text = "".join(streamed(BYTES, ids))
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}


@given(TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_real_text_comes_back_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == whole
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(TEXTS, st.integers(0, 10))
def test_the_prompt_decides_about_the_first_space(text: str, prompt_length: int) -> None:
    """A decoder that strips a text's leading space must not strip the output's."""
    prompt = PIECES.encode("some words before it", add_special_tokens=False).ids
    ids = PIECES.encode(text, add_special_tokens=False).ids
    before = PIECES.decode(prompt, skip_special_tokens=True)
    whole = PIECES.decode(prompt + ids, skip_special_tokens=True)
    assert before + "".join(streamed(PIECES, ids, prompt_tail=prompt)) == whole


@given(IDS, st.lists(st.text("abcd{}: ", min_size=1, max_size=3), max_size=3))
def test_stop_strings_cut_the_text(ids: list[int], stops: list[str]) -> None:
    stream = TextStream(TokenTexts(BYTES).decoder([]), stops=stops)
    text = ""
    for token in ids:
        text += stream.push(token)
        if stream.matched_stop is not None:
            break
    text += stream.finish()
    assert not any(stop in text for stop in stops)
    whole = "".join(streamed(BYTES, ids))
    if stream.matched_stop is not None:
        assert whole.startswith(text + stream.matched_stop)
    else:
        assert text == whole


def test_half_a_character_is_never_sent() -> None:
    ids = BYTES.encode("🙂", add_special_tokens=False).ids
    if len(ids) < 2:
        ids = [BYTES.token_to_id(symbol) for symbol in "ðŁĻĤ"]
    assert "".join(streamed(BYTES, ids)) == "🙂"
    assert "".join(streamed(BYTES, ids[:-1])) == ""


def test_special_markers_are_text_for_a_conversation() -> None:
    ids = SPECIAL_MARKERS.encode("a<tool_call>b<|done|>", add_special_tokens=False).ids
    call = SPECIAL_MARKERS.token_to_id("<tool_call>")
    assert "".join(streamed(SPECIAL_MARKERS, ids)) == "ab"
    text = "".join(streamed(SPECIAL_MARKERS, ids, markers={call: "<tool_call>"}))
    assert text == "a<tool_call>b"


@pytest.mark.parametrize(
    ("tokenizer", "symbol"), [(BYTES, "Ĥ"), (PIECES, "<0x82>")], ids=["bytes", "pieces"]
)
def test_endless_invalid_bytes_do_not_slow_it_down(tokenizer: Tokenizer, symbol: str) -> None:
    """A broken model emits continuation bytes for ever; each must cost the same."""
    stream = TextStream(TokenTexts(tokenizer).decoder([]))
    token = tokenizer.token_to_id(symbol)
    begun = time.perf_counter()
    for _ in range(8_000):
        stream.push(token)
    assert time.perf_counter() - begun < 2.0
    ids = tokenizer.encode(" fine", add_special_tokens=False).ids
    assert "".join(map(stream.push, ids)).endswith("fine")
