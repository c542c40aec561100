"""What the router reads from a checkpoint's small files. No weights, no torch.

The fields' meaning is Hugging Face's: config.json (a multimodal wrapper keeps
its language model under `text_config`), generation_config.json,
tokenizer_config.json, chat_template.jinja.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.v1 import inference_pb2 as pb


class CheckpointError(ValueError):
    """A checkpoint directory lacks something or says something impossible."""


@dataclass(frozen=True)
class ModelCard:
    """The facts about the served model that requests are checked against."""

    name: str
    architecture: str  # model_type
    vocab_size: int  # ids are below it
    max_context: int  # prompt and output tokens together
    eos_token_ids: tuple[int, ...]
    defaults: pb.SamplingParams  # every field but the seed is set
    chat_template: str | None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token and the like


def read_card(path: Path, name: str) -> ModelCard:
    """Reads the card of the checkpoint in `path`. Raises CheckpointError naming file and field."""
    config = _required(path / "config.json")
    text = config.get("text_config", config)
    generation = _optional(path / "generation_config.json")
    tokenizer = _optional(path / "tokenizer_config.json")
    where = path / "config.json"
    return ModelCard(
        name=name,
        architecture=str(config.get("model_type", "")),
        vocab_size=_positive(text, "vocab_size", where),
        max_context=_positive(text, "max_position_embeddings", where),
        eos_token_ids=_eos(generation, text),
        defaults=_defaults(generation),
        chat_template=_template(path, tokenizer),
        special_tokens=_special_tokens(tokenizer, _optional(path / "special_tokens_map.json")),
    )


def _required(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; model.path must be a checkpoint directory")
    return _optional(file)


def _optional(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__}, not an object")
    return value


def _positive(config: Mapping[str, Any], key: str, where: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r}; it must be a positive integer")
    return value


def _eos(generation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    # generation_config.json wins: config.json often lacks the end-of-turn token.
    for source in (generation, config):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            return tuple(dict.fromkeys(value))
    return ()


def _defaults(generation: Mapping[str, Any]) -> pb.SamplingParams:
    """The model's defaults as transformers reads them: greedy unless `do_sample` is true."""

    def number(key: str, otherwise: float) -> float:
        value = generation.get(key)
        return otherwise if value is None else float(value)

    sampled = bool(generation.get("do_sample", False))
    return pb.SamplingParams(
        temperature=number("temperature", 1.0) if sampled else 0.0,
        top_p=number("top_p", 1.0) if sampled else 1.0,
        top_k=int(number("top_k", 0)) if sampled else 0,
        min_p=number("min_p", 0.0) if sampled else 0.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        repetition_penalty=number("repetition_penalty", 1.0),
    )


def _template(path: Path, tokenizer: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{path / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}; "
            "a string, or a list with one named default, is supported"
        )
    return template


_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in sources:
        for key in _SPECIAL:
            value = source.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found.setdefault(key, text)
    return found
