"""What an assistant's text means: reasoning, content, tool calls.

    <think>...</think>                                          at the beginning only
    <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>  anywhere after it

Content streams as soon as it is certain that it is content. A tool call comes
whole, when its closing tag has arrived. What looks like a call and is not one
is content, to the letter. The result does not depend on how the text was cut.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from baton_router import strict_json

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
MARKERS: Final = (THINK, THINK_END, CALL, CALL_END)


@dataclass(frozen=True)
class ParsedCall:
    """A well-formed tool call."""

    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        """As the client gets it, and as chat templates render it back."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass
class ChatPiece:
    """What became certain. Content and reasoning are appended, calls come in order."""

    content: str = ""
    reasoning: str = ""
    calls: list[ParsedCall] = field(default_factory=list)


class ChatOutputParser:
    """One assistant turn. `feed` pieces of text, then `finish`.

    `tools`: look for calls at all. `reasoning_open`: the prompt ended inside
    `<think>`, as some templates make it. `separator` is what the template
    writes before the first call; it is syntax, not content.
    """

    def __init__(self, *, tools: bool, reasoning_open: bool = False, separator: str = "\n") -> None:
        self._tools = tools
        self._separator = separator if tools else ""
        self._text = ""  # not yet understood
        self._gap = ""  # white space after a call: syntax if another call or the end follows
        self._called = False
        self._state: Callable[[ChatPiece, bool], bool] = (
            self._reasoning if reasoning_open else self._beginning
        )

    def feed(self, text: str) -> ChatPiece:
        """Takes the next piece of text; returns what became certain."""
        return self._advance(text, last=False)

    def finish(self) -> ChatPiece:
        """The turn ends here: what was held back is what it looks like."""
        return self._advance("", last=True)

    def _advance(self, text: str, *, last: bool) -> ChatPiece:
        piece = ChatPiece()
        self._text += text
        while self._state(piece, last):
            pass
        return piece

    # Each state takes what it can from the text and says whether to go on.

    def _beginning(self, piece: ChatPiece, last: bool) -> bool:
        start = self._text.lstrip()
        if start.startswith(THINK):
            self._text = start[len(THINK) :]
            self._state = self._reasoning
            return True
        if not last and THINK.startswith(start):
            return False  # white space, or a part of the tag
        self._state = self._content
        return True

    def _reasoning(self, piece: ChatPiece, last: bool) -> bool:
        thought, tag, rest = self._text.partition(THINK_END)
        if tag:
            piece.reasoning += thought
            self._text = rest
            self._state = self._after_reasoning
            return True
        keep = 0 if last else _tail(self._text, THINK_END)
        piece.reasoning += self._text[: len(self._text) - keep]
        self._text = self._text[len(self._text) - keep :]
        return False

    def _after_reasoning(self, piece: ChatPiece, last: bool) -> bool:
        # Templates put empty lines between the thought and the answer.
        self._text = self._text.lstrip("\n")
        if not self._text:
            return False
        self._state = self._content
        return True

    def _content(self, piece: ChatPiece, last: bool) -> bool:
        if not self._tools:
            piece.content += self._text
            self._text = ""
            return False
        before, tag, rest = self._text.partition(CALL)
        if tag:
            self._say(piece, before, at_call=True)
            self._text = rest
            self._state = self._call
            return True
        keep = 0 if last else self._undecided()
        self._say(piece, self._text[: len(self._text) - keep], at_end=last)
        self._text = self._text[len(self._text) - keep :]
        return False

    def _call(self, piece: ChatPiece, last: bool) -> bool:
        body, tag, rest = self._text.partition(CALL_END)
        if not tag and not last:
            return False
        call = parse_call(body) if tag else None
        if call is None:
            # To the letter, the white space that would have been syntax included.
            piece.content += self._gap + CALL + body + tag
        else:
            piece.calls.append(call)
            self._called = True
        self._gap = ""
        self._text = rest
        self._state = self._content
        return True

    def _say(
        self, piece: ChatPiece, text: str, *, at_call: bool = False, at_end: bool = False
    ) -> None:
        """Adds content; keeps in `_gap` what the next tag decides about."""
        text = self._gap + text
        self._gap = ""
        if self._called and not text.strip():
            self._gap = "" if at_end else text
        elif at_call and self._separator and text.endswith(self._separator):
            piece.content += text[: len(text) - len(self._separator)]
            self._gap = self._separator
        else:
            piece.content += text

    def _undecided(self) -> int:
        """How much of the text's end may still be a separator and the beginning of a call."""
        longest = _tail(self._text, self._separator + CALL)
        return max(longest, _tail(self._text, CALL))


def parse_call(body: str) -> ParsedCall | None:
    """The call in the text between the tags; None when it is not exactly a name and arguments."""
    try:
        value = strict_json.parse(body)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ParsedCall(name, arguments)


def _tail(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
