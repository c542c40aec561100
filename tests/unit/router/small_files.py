"""Small tokenizers and a checkpoint's small files, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "def f(x): return {'name': x, 'value': [1, 2, 3]}\n",
    "Ünïcödé 日本語 text, émojis 🙂🚀 and plain English words in the middle of it.\n",
    '<tool_call>{"name": "list_dir", "arguments": {"path": "/"}}</tool_call>\n',
] * 4
SPECIAL = ["<|end|>", "<|turn|>", "<|done|>"]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
TEMPLATE = """\
{%- if tools %}{{- '<|turn|>tools\\n' }}
{%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}{{- '<|done|>' }}{%- endif %}
{%- for message in messages %}
{{- '<|turn|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}</tool_call>' }}
{%- endfor %}
{{- '<|done|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}
"""


def byte_level(*, special_markers: bool = False) -> Tokenizer:
    """The family of GPT-2, Qwen and DeepSeek: any bytes, so that tokens cut characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, special=True) for text in SPECIAL]
    added += [AddedToken(text, special=special_markers) for text in MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """The family of Llama 2: word boundaries as ▁, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=pieces)
    tokenizer.train_from_iterator([line.replace("日本語", "") for line in CORPUS], trainer)
    return tokenizer


def write_small_checkpoint(directory: Path) -> None:
    """A checkpoint without weights: what the router reads, and nothing more."""
    byte_level().save(str(directory / "tokenizer.json"))
    files = {
        "config.json": {
            "model_type": "toy",
            "vocab_size": 400,
            "max_position_embeddings": 4096,
            "eos_token_id": 0,
        },
        "generation_config.json": {"eos_token_id": [2, 0], "do_sample": True, "temperature": 0.5},
        "tokenizer_config.json": {"chat_template": TEMPLATE, "eos_token": "<|done|>"},
    }
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value))
