"""Template and tokenizer: what a turn's pages rest on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_model.agent import call_message
from demo_model.chat import Encoder, render
from demo_model.local import parse_turn
from demo_model.names import ADJECTIVES, NOUNS, Split
from demo_model.tasks import make_task
from demo_model.tokenizer import END_OF_TURN, SPECIAL
from demo_model.world import TOOLS

from baton_router.chat_output import ChatOutputParser
from baton_router.chat_template import ChatTemplate

SEEDS = range(40)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder(checkpoint)


def conversations() -> list[list[dict[str, Any]]]:
    return [make_task(Split.HELD_OUT, seed).reference() for seed in SEEDS]


def test_the_template_ships_with_the_checkpoint(checkpoint: Path) -> None:
    package = checkpoint.parent
    assert (checkpoint / "chat_template.jinja").read_text() == (
        package / "chat_template.jinja"
    ).read_text()


def test_the_router_and_transformers_render_the_same(checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    template = ChatTemplate((checkpoint / "chat_template.jinja").read_text(), {})
    for messages in conversations()[:10]:
        text = render(messages)
        assert template.render(messages, list(TOOLS), add_generation_prompt=False) == text
        rendered = tokenizer.apply_chat_template(messages, tools=list(TOOLS), tokenize=False)
        assert rendered == text
        ids = Encoder(checkpoint).encode(text).tolist()
        assert tokenizer(text, add_special_tokens=False).input_ids == ids


def test_a_turn_is_a_token_prefix_of_the_next(encoder: Encoder) -> None:
    """Prompt and output of a turn begin the next turn's prompt, so its pages are reused."""
    for messages in conversations():
        before = encoder.encode(render(messages[:2], prompt=True))
        for end in range(3, len(messages) + 1):
            said = messages[end - 1]
            if said["role"] != "assistant":
                continue
            prompt = encoder.encode(render(messages[: end - 1], prompt=True))
            assert (prompt[: len(before)] == before).all()
            whole = render(messages[:end])
            output = whole.removeprefix(render(messages[: end - 1], prompt=True))
            assert output.endswith(END_OF_TURN + "\n")
            # What the model generates is tokenised by itself, token by token.
            before = np.concatenate([prompt, encoder.encode(output.removesuffix("\n"))])
            after = encoder.encode(whole)
            assert (after[: len(before)] == before).all()


def test_a_turn_survives_the_routers_parser(encoder: Encoder) -> None:
    """Output parsed into a message and rendered again is the same text."""
    for messages in conversations():
        for end, said in enumerate(messages, 1):
            if said["role"] != "assistant":
                continue
            before = render(messages[: end - 1], prompt=True)
            output = render(messages[:end]).removeprefix(before).removesuffix(END_OF_TURN + "\n")
            parser = ChatOutputParser(tools=True)
            pieces = [parser.feed(output), parser.finish()]
            content = "".join(piece.content for piece in pieces)
            calls = [(c.name, c.arguments) for piece in pieces for c in piece.calls]
            assert parse_turn(output, 1).calls == tuple(calls)
            assert parse_turn(output, 1).content == content
            again = {**call_message(calls), "content": content} if calls else said
            assert render([*messages[: end - 1], again]) == render(messages[:end])


def test_content_before_a_call_and_arguments_as_a_text_render() -> None:
    call = {"id": "1", "function": {"name": "calc", "arguments": '{"expression": "1 + 1"}'}}
    text = render(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        ]
    )
    one = '<tool_call>\n{"name": "calc", "arguments": {"expression": "1 + 1"}}\n</tool_call>'
    assert text.endswith(f"<|im_start|>assistant\nLet me see.\n{one}\n{one}<|im_end|>\n")


def test_thinking_renders_where_it_was() -> None:
    said = {"role": "assistant", "content": "4.", "reasoning_content": "2 + 2"}
    text = render([{"role": "user", "content": "q"}, said])
    assert text.endswith("<|im_start|>assistant\n<think>\n2 + 2\n</think>\n4.<|im_end|>\n")


def test_the_vocabulary_suits_the_world(encoder: Encoder) -> None:
    assert 2000 <= encoder.tokenizer.get_vocab_size() <= 4096
    pairs = [f"{n:02}" for n in range(100)]
    for text in (*SPECIAL, *ADJECTIVES, *(f"-{noun}" for noun in NOUNS), *pairs, "\n"):
        assert len(encoder.encode(text)) == 1, text


def test_any_text_survives_the_tokenizer(encoder: Encoder) -> None:
    for text in ("", "Grüße, 世界 🙂\n\n\tx  y", "a\x00b", "<|im_end|><tool_call>", "1234 --"):
        ids = encoder.encode(text).tolist()
        assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_assistants_tokens_are_marked(encoder: Encoder) -> None:
    for messages in conversations():
        encoded = encoder.conversation(messages)
        text = encoder.tokenizer.decode(
            encoded.tokens[encoded.written].tolist(), skip_special_tokens=False
        )
        outputs = [
            render(messages[: i + 1]).removeprefix(render(messages[:i], prompt=True)).strip()
            for i, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        assert text == "".join(outputs)
