"""Build a small random checkpoint with a tokenizer, in the Hugging Face format.

    python tests/checkpoints/make_checkpoint.py --out DIR [--variant NAME] [--size tiny|demo]

The model classes are transformers' own, so config.json, weight names and shapes are those of a
real checkpoint of the family. Weights are bf16 and drawn per parameter from a generator seeded by
the parameter's name, scaled so that every layer matters and greedy output is not constant: a bug
in any one module changes tokens. The tokenizer is a byte-level BPE trained on Python's standard
library, with a chat template that knows tools.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = [
    "<|end|>",
    "<|turn|>",
    "<|done|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
END_OF_TEXT, END_OF_TURN = 0, 2
VOCABULARY = {"tiny": 2048, "demo": 4096}
CORPUS_BYTES = {"tiny": 1 << 20, "demo": 3 << 20}

CHAT_TEMPLATE = """\
{%- set system = namespace(text='') %}
{%- if messages and messages[0].role == 'system' %}
{%- set system.text = messages[0].content %}
{%- endif %}
{%- if tools %}
{{- '<|turn|>system\\n' }}
{%- if system.text %}{{- system.text + '\\n\\n' }}{%- endif %}
{{- 'You can call these functions:\\n' }}
{%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{%- endfor %}
{{- 'Write a call as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|done|>\\n' }}
{%- elif system.text %}
{{- '<|turn|>system\\n' + system.text + '<|done|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{%- elif message.role == 'tool' %}
{{- '<|turn|>tool\\n<tool_response>' + message.content + '</tool_response><|done|>\\n' }}
{%- else %}
{{- '<|turn|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in (message.tool_calls or []) %}
{%- set function = call.function if call.function else call %}
{{- '<tool_call>{"name": "' + function.name + '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|done|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn|>assistant\\n' }}{%- endif %}
"""

# Fields of every variant's config. A base gives what is common and what goes with each size; a
# variant adds its own to one base.
_FIELDS = json.loads((Path(__file__).parent / "variants.json").read_text())
VARIANTS: dict[str, dict[str, Any]] = _FIELDS["variants"]


def config_fields(variant: str, size: str) -> dict[str, Any]:
    """Fields of config.json of ``variant`` in ``size``, the vocabulary excepted."""
    base = _FIELDS["bases"][VARIANTS[variant]["base"]]
    return {**base["common"], **base[size], **VARIANTS[variant]["fields"]}


def _corpus(limit: int) -> Iterator[str]:
    total = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")[: limit - total]
        yield text
        total += len(text)
        if total >= limit:
            return


def build_tokenizer(size: str) -> Any:
    """A byte-level BPE with special tokens 0..8 and the chat template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    words = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    # Only the first three are hidden when text is decoded; the others mark tool calls and
    # thoughts, which a client's parser has to see.
    tokens = [AddedToken(text, special=i < 3) for i, text in enumerate(SPECIAL_TOKENS)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[size],
        show_progress=False,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(_corpus(CORPUS_BYTES[size]), trainer)
    if core.get_vocab_size() != VOCABULARY[size]:
        raise RuntimeError(
            f"the corpus gave {core.get_vocab_size()} tokens, {VOCABULARY[size]} are needed"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=SPECIAL_TOKENS[END_OF_TURN],
        pad_token=SPECIAL_TOKENS[END_OF_TEXT],
        model_max_length=163840,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _draw(key: str, tensor: Any, seed: str, tied: bool) -> Any:
    """Random values for one parameter, scaled by what it feeds; see the module docstring."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
    noise = torch.randn(tensor.shape, generator=generator)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "e_score_correction_bias":
        return noise * 0.1
    if "embed_tokens" in key:
        return noise
    if tied and key == "model.norm.weight":
        # With the embedding as output matrix every token would be its own successor, but for the
        # signs. A small embedding would do too, and leave a residual stream that rounding shakes.
        signed = noise.sign() * (1 + 0.1 * noise) * 4.0 / math.sqrt(tensor.shape[-1])
        return signed + (tensor.detach().float() - 1)
    if "lm_head" in key:
        return noise * 4.0 / math.sqrt(tensor.shape[-1])
    if tensor.dim() >= 2:
        # Decisive routers and sharp attention: a token read from the wrong page shows.
        sharp = any(part in key for part in (".gate.weight", ".q_b_proj.", ".q_proj."))
        return noise * (1.4 if sharp else 1.0) / math.sqrt(tensor.shape[-1])
    if leaf == "bias":
        return noise * 0.2
    uniform = torch.rand(tensor.shape, generator=generator)
    if leaf == "A_log":
        return torch.log(0.1 + 0.9 * uniform)
    if leaf == "dt_bias":
        # Steps of 0.001 to 0.1 through an inverse softplus: states that last for many tokens.
        # A head that forgets at once gives nearly nothing now and then, which its norm blows up.
        step = torch.exp(math.log(1e-3) + uniform * math.log(100.0))
        return step + torch.log(-torch.expm1(-step))
    # Norms: noise around where transformers starts them, at one or, when zero-centred, at zero.
    return tensor.detach().float() + noise * 0.1


def _initialise(model: Any, seed: str) -> None:
    import torch

    stored = set(model.state_dict())
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key not in stored or (tied and key == "lm_head.weight"):
                continue
            values = _draw(key, tensor, seed, tied)
            tensor.copy_(values.to(torch.bfloat16).to(tensor.dtype))
    model.tie_weights()


def build_checkpoint(
    out: Path, *, variant: str = "deepseek_v3", size: str = "tiny", max_shard_size: str = "5GB"
) -> Path:
    """Write the checkpoint ``variant`` in ``size`` into the directory ``out`` and return it.

    The directory appears whole or not at all: it is built beside its place and renamed.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; it is one of {', '.join(VARIANTS)}")
    eos = [END_OF_TURN, END_OF_TEXT]
    config = AutoConfig.for_model(
        VARIANTS[variant]["model_type"],
        vocab_size=VOCABULARY[size],
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=END_OF_TEXT,
        **config_fields(variant, size),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for module in model.modules():  # published checkpoints keep the routing bias in float32
        if "e_score_correction_bias" in module._buffers:
            bias = module._buffers["e_score_correction_bias"]
            module._buffers["e_score_correction_bias"] = bias.float()
    _initialise(model, f"{variant}/{size}")
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=END_OF_TEXT)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        fresh = Path(scratch) / "checkpoint"
        model.save_pretrained(fresh, max_shard_size=max_shard_size)
        build_tokenizer(size).save_pretrained(fresh)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return out


def cached_checkpoint(
    variant: str = "deepseek_v3", size: str = "tiny", cache: Path | None = None
) -> Path:
    """The checkpoint from ``.cache/checkpoints`` of this repository, built when missing.

    Its directory carries a hash of this file and its data, so that an edit builds a new one.
    """
    import fcntl

    root = cache or Path(__file__).resolve().parents[2] / ".cache" / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6)
    digest.update(json.dumps(_FIELDS, sort_keys=True).encode())
    edition = digest.hexdigest()
    out = root / f"{variant}-{size}-{edition}"
    with (root / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parallel test processes build it once
        if not (out / "tokenizer.json").exists():
            build_checkpoint(out, variant=variant, size=size)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--variant", choices=list(VARIANTS), default="deepseek_v3")
    parser.add_argument("--size", choices=list(VOCABULARY), default="tiny")
    parser.add_argument(
        "--max-shard-size", default="5GB", help="split the weights into files of this size"
    )
    options = parser.parse_args()
    out = build_checkpoint(
        options.out,
        variant=options.variant,
        size=options.size,
        max_shard_size=options.max_shard_size,
    )
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    config = json.loads((out / "config.json").read_text())
    print(f"{out}: {config['model_type']}, {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
