"""Conversations to prompts, through the checkpoint's own Jinja template.

The environment is the one Hugging Face templates are written for: sandboxed,
block tags trimmed, `tojson` that does not escape HTML, `raise_exception`,
`strftime_now`, and `{% generation %}` blocks, which render their body.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton_router.checkpoint import CheckpointError


class TemplateRefused(ValueError):
    """The template could not render this conversation; the message is the template's own."""


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant wrote, for training. Here: just its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # local time, as the templates' authors expect


class ChatTemplate:
    """A compiled chat template. Raises CheckpointError when `source` is not one."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(
                f"the chat template does not compile: line {error.lineno}: {error.message}"
            ) from error
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation in Hugging Face's form. Raises TemplateRefused."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            # Templates assume shapes (content is a string, roles alternate); what breaks
            # inside one is the conversation's fault, and its words are the best explanation.
            raise TemplateRefused(str(error)) from error

    def call_separator(self, opening: str) -> str:
        """What the template writes between an assistant's content and its first tool call.

        A model trained on the template writes it too, so it is syntax, not
        content; a conversation sent back then renders to the same tokens.
        """
        marker = "\N{OBJECT REPLACEMENT CHARACTER}content"
        call = {"id": "0", "type": "function", "function": {"name": "f", "arguments": {}}}
        try:
            text = self.render(
                [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": marker, "tool_calls": [call]},
                ],
                None,
                add_generation_prompt=False,
            )
        except TemplateRefused:
            return "\n"
        begin = text.rfind(marker) + len(marker)
        end = text.find(opening, begin)
        between = text[begin:end]
        return between if begin >= len(marker) and end >= 0 and between.isspace() else ""
