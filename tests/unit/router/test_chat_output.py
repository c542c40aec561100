"""Reasoning, content and tool calls: any split of the stream gives the same result."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_router.chat_output import ChatOutputParser, ChatPiece

FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool", "</", "<", "\n", "\n\n", " ",
    "hello", "é", '{"name": "f", "arguments": {}}', '{"name": "f"}',
    '\n{"name": "g", "arguments": {"a": [1, "</tool"]}}\n', "{", "}",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
WELL_FORMED = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def parse(pieces: list[str], **options: object) -> ChatPiece:
    parser = ChatOutputParser(**{"tools": True, **options})  # type: ignore[arg-type]
    total = ChatPiece()
    for part in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        total.content += part.content
        total.reasoning += part.reasoning
        total.calls += part.calls
    return total


@given(
    TEXTS,
    st.lists(st.integers(0, 200)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "\n", "\n\n", " \n"]),
)
def test_any_split_gives_the_same(
    text: str, cuts: list[int], tools: bool, reasoning_open: bool, separator: str
) -> None:
    places = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    options = {"tools": tools, "reasoning_open": reasoning_open, "separator": separator}
    whole = parse([text], **options)
    assert parse(pieces, **options) == whole
    assert parse(list(text), **options) == whole


@given(TEXTS)
def test_without_calls_nothing_is_lost(text: str) -> None:
    """Malformed calls included: content is the text, to the letter."""
    result = parse([text])
    if not result.calls and not text.lstrip().startswith("<think>"):
        assert result.content == text


@given(TEXTS)
def test_without_tools_everything_after_the_thought_is_content(text: str) -> None:
    result = parse([text], tools=False)
    assert not result.calls
    if not text.lstrip().startswith("<think>"):
        assert result.content == text


def test_content_before_a_call_streams_at_once() -> None:
    parser = ChatOutputParser(tools=True)
    assert parser.feed("I will look").content == "I will look"
    assert parser.feed(" it up.\n<tool").content == " it up."
    assert parser.feed('_call>{"name": "f", "argum') == ChatPiece()
    (call,) = parser.feed('ents": {"q": "é"}}</tool_call>').calls
    assert (call.name, call.arguments_json) == ("f", '{"q": "é"}')
    assert parser.feed("\n") == ChatPiece()
    assert parser.finish() == ChatPiece()


def test_several_calls() -> None:
    result = parse([f"x\n{WELL_FORMED}\n{WELL_FORMED}\n"])
    assert result.content == "x"
    assert [json.loads(call.arguments_json) for call in result.calls] == [{"a": 1}] * 2


def test_text_after_a_call_is_content_with_its_white_space() -> None:
    assert parse([f"{WELL_FORMED}\n and then"]).content == "\n and then"


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        '{"name": "f"}',
        '{"name": "f", "arguments": "x"}',
        '{"name": "", "arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"name": "f", "arguments": {}, "extra": 1}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        '{"name": "f", "arguments": ' + '{"a":' * 70 + "1" + "}" * 71,
        "[" * 100_000,
        "[]",
        "",
    ],
)
def test_malformed_calls_are_content(body: str) -> None:
    text = f"before\n<tool_call>{body}</tool_call> after"
    result = parse([text])
    assert not result.calls
    assert result.content == text


def test_an_unfinished_call_is_content() -> None:
    text = 'a\n<tool_call>\n{"name": "f", "argu'
    assert parse([text]).content == text


def test_reasoning() -> None:
    result = parse(["<thi", "nk>hm\n</th", "ink>\n\nanswer ", WELL_FORMED])
    assert (result.reasoning, result.content, len(result.calls)) == ("hm\n", "answer ", 1)
    assert parse(["hm</think>yes"], reasoning_open=True).reasoning == "hm"
    assert parse(["<think>never closed"]).reasoning == "never closed"
    assert parse(["later <think>x</think>"]).content == "later <think>x</think>"
