"""Rendering equals transformers' apply_chat_template, character for character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton_router.chat_template import ChatTemplate, TemplateRefused
from baton_router.checkpoint import CheckpointError, read_card

from .small_files import TEMPLATE

CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"q": "<é>&'", "n": 1.5}}}  # fmt: skip # noqa: E501
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "hello <b>&\"'</b> 日本"}],
    "system": [{"role": "system", "content": "be brief"}, {"role": "user", "content": ""}],
    "tools": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "[]", "tool_call_id": "1"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "more"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "<é> & co",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
        },
    }
]
TEMPLATES = {
    "tools": TEMPLATE,
    "specials": "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}",
    "generation": "{% for m in messages %}\n  {% generation %}\n{{ m.content }}"
    "{% endgeneration %}\n{% if loop.last %}{% break %}{% endif %}\n{% endfor %}",
    "json": "{{ tools | tojson(indent=2) }}{{ messages | tojson(sort_keys=True) }}"
    "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}{{ tools is none }}",
    "prompt": "{% if add_generation_prompt %}go{% endif %}{{ strftime_now('%Y') }}",
}


@pytest.fixture(scope="module")
def transformers_tokenizer(small_checkpoint: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(small_checkpoint / "tokenizer.json"),
        bos_token="<|turn|>",
        eos_token="<|done|>",
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_equals_transformers(
    transformers_tokenizer: Any, template: str, conversation: str, tools: Any
) -> None:
    source, messages = TEMPLATES[template], CONVERSATIONS[conversation]
    expected = transformers_tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate(source, {"bos_token": "<|turn|>", "eos_token": "<|done|>"})
    assert ours.render(messages, tools) == expected


def test_the_templates_own_words_explain_a_refusal() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        template.render([{"role": "user", "content": ""}], None)
    with pytest.raises(TemplateRefused):
        ChatTemplate("{{ messages[3].content + 1 }}", {}).render([], None)


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"],
)
def test_templates_are_confined(attack: str) -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate(attack, {}).render([{"role": "user", "content": ""}], None)


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("ok\n{% if %}", {})


def test_what_stands_before_a_call_is_learned_from_the_template() -> None:
    assert ChatTemplate(TEMPLATE, {}).call_separator("<tool_call>") == "\n"
    no_newline = TEMPLATE.replace("'\\n<tool_call>", "'<tool_call>")
    assert ChatTemplate(no_newline, {}).call_separator("<tool_call>") == ""
    assert ChatTemplate("{{ raise_exception('no') }}", {}).call_separator("<tool_call>") == "\n"


def test_the_card(small_checkpoint: Path, tmp_path: Path) -> None:
    card = read_card(small_checkpoint, "toy")
    assert (card.vocab_size, card.max_context, card.eos_token_ids) == (400, 4096, (2, 0))
    assert card.special_tokens == {"eos_token": "<|done|>"}
    with pytest.raises(CheckpointError, match="must be a checkpoint directory"):
        read_card(tmp_path, "x")
    (tmp_path / "config.json").write_text('{"vocab_size": -1}')
    with pytest.raises(CheckpointError, match="vocab_size is -1"):
        read_card(tmp_path, "x")
