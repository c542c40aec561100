"""A checkpoint's config.json as facts: what is known of a model before its weights are read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A safetensors header is JSON; no real one comes near this.
_MAX_HEADER_BYTES = 256 << 20
_SAMPLE_BYTES = 4096
_SAMPLES_PER_FILE = 16


class CheckpointError(ValueError):
    """A checkpoint directory that is incomplete, malformed, or asks for what is not supported."""


@dataclass(frozen=True)
class ModelDescription:
    """Facts of a checkpoint that need no weights.

    family: config.json's ``model_type``.
    max_context: longest context in tokens (``max_position_embeddings``).
    eos_token_ids: tokens that end a turn, generation_config.json first, else config.json.
    config: the text model's config.json, unchanged.
    fingerprint: 32 hex digits over config, tensor names, shapes and samples of the weights; equal
        for equal checkpoints whatever their directory is called.
    """

    path: Path
    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    config: Mapping[str, Any]
    fingerprint: str


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; CheckpointError if it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; a checkpoint directory needs it") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def weight_files(checkpoint: Path) -> list[Path]:
    """The safetensors files of a checkpoint in name order, from its index if there is one."""
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        files = [checkpoint / name for name in names]
    else:
        files = sorted(checkpoint.glob("*.safetensors"))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{checkpoint} lacks {', '.join(missing)} named by its index")
    if not files:
        raise CheckpointError(f"{checkpoint} has no *.safetensors files")
    return files


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        raw = stream.read(8)
        if len(raw) < 8:
            raise CheckpointError(f"{file} is too short for a safetensors file")
        (size,) = struct.unpack("<Q", raw)
        if size > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{file} claims a header of {size} bytes; it is damaged")
        return stream.read(size)


def fingerprint(checkpoint: Path) -> str:
    """Identity of a checkpoint's contents, 32 hex digits.

    Hashing hundreds of gigabytes at every start is not affordable, so the weights enter by their
    headers (names, shapes, offsets) and by 16 evenly spaced 4 KiB samples a file.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = read_json(checkpoint / "config.json")
    # Written by the saving library and without meaning for the weights.
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in weight_files(checkpoint):
        digest.update(_header(file))
        size = file.stat().st_size
        with file.open("rb") as stream:
            for i in range(_SAMPLES_PER_FILE):
                stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES_PER_FILE - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _eos_token_ids(checkpoint: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    generation = checkpoint / "generation_config.json"
    value = read_json(generation).get("eos_token_id") if generation.exists() else None
    if value is None:
        value = config.get("eos_token_id")
    if value is None:
        return ()
    return tuple(int(token) for token in (value if isinstance(value, list) else [value]))


def _whole(config: Mapping[str, Any], name: str, source: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{source}: {name} is {value!r}; it must be a positive integer")
    return value


def read_model_description(checkpoint: str | Path) -> ModelDescription:
    """Describe the checkpoint in the directory ``checkpoint`` without loading its weights.

    Raises CheckpointError when a file is missing or a field is absent or of the wrong kind.
    """
    path = Path(checkpoint)
    source = path / "config.json"
    whole = read_json(source)
    # Vision-language wrappers keep the language model's config one level down.
    text = whole.get("text_config")
    config: dict[str, Any] = {**whole, **text} if isinstance(text, dict) else whole
    if "tie_word_embeddings" in whole:  # the output head is the wrapper's
        config["tie_word_embeddings"] = whole["tie_word_embeddings"]
    # The wrapper's own type: its weights have other names than the language model's alone.
    family = whole.get("model_type")
    if not isinstance(family, str):
        raise CheckpointError(f"{source}: model_type is {family!r}; it must name the family")
    architectures = config.get("architectures") or [""]
    return ModelDescription(
        path=path,
        family=family,
        architecture=str(architectures[0]),
        vocab_size=_whole(config, "vocab_size", source),
        hidden_size=_whole(config, "hidden_size", source),
        layers=_whole(config, "num_hidden_layers", source),
        max_context=_whole(config, "max_position_embeddings", source),
        eos_token_ids=_eos_token_ids(path, config),
        config=config,
        fingerprint=fingerprint(path),
    )
