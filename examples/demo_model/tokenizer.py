"""The demo model's tokenizer: byte-level BPE, trained on the training tasks only.

It also sees the project's license, for the sake of ordinary English words.

The text is cut so that what the model has to copy looks the same wherever it
stands: digits go in pairs (a context has most digits, but few of the pairs), a
name's second word carries its hyphen, a word joins a space before it but no
other character. A line break is a token of its own, so
no token crosses the border between a prompt and the answer to it, and a turn is
a token prefix of the next. The frame of a tool call's JSON is three tokens.

Run as `python -m demo_model.tokenizer DIRECTORY` to build it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .names import ADJECTIVES, NOUNS, Split
from .tasks import make_task
from .world import TOOLS

SPECIAL: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
    "</tool_call>",
)  # fmt: skip
PAD: Final = "<|endoftext|>"
END_OF_TURN: Final = "<|im_end|>"
CONTROL: Final = 3  # the first so many are control tokens, the others visible markup
VOCABULARY: Final = 2048
MAX_CONTEXT: Final = 4096
TEMPLATE: Final = Path(__file__).with_name("chat_template.jinja")
CUTS: Final = "|".join(
    (
        r'\{"name": "',
        r'", "arguments": \{"',
        r'": "',
        r"\n",
        r" ?[\p{L}_]+",
        r"[-.]\p{L}+",
        r"\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}]+",
        r"[^\S\n]+",
    )
)

# Every word of the names and every pair of digits is to be one token, also where the sample
# has few of it.
_WORD_REPETITIONS = 200
_LICENSE: Final = Path(__file__).parents[2] / "LICENSE"
_ROLES = "system user assistant tool"


def build_tokenizer(conversations: int = 4000) -> Tokenizer:
    """Trains the tokenizer on the first conversations of the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=[
            AddedToken(token, special=i < CONTROL, normalized=False)
            for i, token in enumerate(SPECIAL)
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(conversations), trainer)
    return tokenizer


def _corpus(conversations: int) -> Iterator[str]:
    for _ in range(_WORD_REPETITIONS):
        yield "\n".join(ADJECTIVES)
        yield "\n".join(f"-{noun}" for noun in NOUNS)
        yield "\n".join(_ROLES.split())
        yield "\n".join(f"{pair:02}" for pair in range(100))
    yield "\n".join(json.dumps(tool["function"]) for tool in TOOLS)
    yield _LICENSE.read_text()
    for seed in range(conversations):
        for message in make_task(Split.TRAIN, seed).reference():
            yield message["content"]
            for call in message.get("tool_calls", ()):
                yield json.dumps(call["function"])


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json, its two companions and the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"eos_token": END_OF_TURN, "pad_token": PAD}
    _write_json(directory / "special_tokens_map.json", special)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_CONTEXT,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": i < CONTROL,
                }
                for i, token in enumerate(SPECIAL)
            },
            **special,
        },
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE.read_text())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the demo model's tokenizer.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    tokenizer = build_tokenizer()
    save_tokenizer(tokenizer, directory)
    print(f"{tokenizer.get_vocab_size()} tokens in {directory}")


if __name__ == "__main__":
    main()
