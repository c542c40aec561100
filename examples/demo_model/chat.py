"""Conversations as text and as tokens, the way the chat template says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, TemplateError
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .tasks import Message
from .tokenizer import END_OF_TURN, TEMPLATE
from .world import SYSTEM_PROMPT, TOOLS

MODEL: Final = Path(__file__).with_name("model")  # the checkpoint that ships
ANSWER_FOLLOWS: Final = "<|im_start|>assistant\n"


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _template() -> Any:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(TEMPLATE.read_text())


_TEMPLATE: Final = _template()


def render(messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The text of a conversation with the world's tools; `prompt`: an answer is to follow."""
    text: str = _TEMPLATE.render(messages=messages, tools=list(TOOLS), add_generation_prompt=prompt)
    return text


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens after the system prompt, and which of them the assistant wrote."""

    tokens: NDArray[np.int64]
    written: NDArray[np.bool_]


class Encoder:
    """Cuts conversations into tokens."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        system = render([{"role": "system", "content": SYSTEM_PROMPT}])
        self.prefix = self.encode(system)
        self._answer = self.encode(ANSWER_FOLLOWS)
        self._end = self.token(END_OF_TURN)

    def token(self, text: str) -> int:
        """The id of a token. Raises ValueError when the vocabulary does not have it."""
        found = self.tokenizer.token_to_id(text)
        if found is None:
            raise ValueError(f"the tokenizer has no token {text!r}; build it with this package")
        return int(found)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Token ids of a rendered text, special tokens included as they stand."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def conversation(self, messages: Sequence[Message]) -> Encoded:
        """Encodes a whole conversation that begins with the world's system prompt."""
        tokens = self.encode(render(messages))[len(self.prefix) :]
        width = len(self._answer)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, width)
        begins = np.flatnonzero((windows == self._answer).all(axis=1)) + width
        ends = np.flatnonzero(tokens == self._end) + 1
        closing = ends[np.searchsorted(ends, begins, side="right")]
        edges = np.zeros(len(tokens) + 1, np.int64)
        np.add.at(edges, begins, 1)
        np.add.at(edges, closing, -1)
        return Encoded(tokens, edges[:-1].cumsum() > 0)
