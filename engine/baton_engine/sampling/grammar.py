"""Structured output: a constraint to the set of tokens that may come next, by xgrammar.

Compiling takes milliseconds to seconds and happens once a constraint, outside the engine's thread.
A matcher follows one request; like every other state of the sampler it is a function of the tokens
so far, so a retraction or another worker rebuilds it by replaying them.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from baton_engine.request import Grammar
from baton_engine.sampling.schema import not_enforced, with_types_inside

if TYPE_CHECKING:
    import xgrammar  # a second and a half; imported when the first constraint comes

_KEPT_GRAMMARS = 256
# Between two values of JSON. Without a bound a model may write nothing else to its end.
_MOST_WHITESPACE = 20
_HOLD_SCHEMAS = ("json_schema", "structural_tag")
# xgrammar 0.2.8 lets control characters into JSON strings that have a length. JSON itself needs
# none but line breaks (between values); a tab there is not missed.
_CONTROL = bytes(byte for byte in range(0x20) if byte not in b"\t\n\r")
_NEVER = {"json_schema": _CONTROL + b"\t", "structural_tag": _CONTROL}
_THREADS = 2


class GrammarRefused(ValueError):
    """The constraint does not compile; the message is for the one who wrote it."""


class GrammarCompiler:
    """Constraints of one checkpoint's vocabulary, the latest ones kept. Thread-safe."""

    def __init__(self, checkpoint: Path, vocab_size: int) -> None:
        self._file = checkpoint / "tokenizer.json"
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._compilers: dict[tuple[tuple[int, ...], bytes], xgrammar.GrammarCompiler] = {}
        self._kept: OrderedDict[tuple[str, str, tuple[int, ...]], Grammar] = OrderedDict()

    def compile(self, kind: str, text: str, eos_token_ids: Sequence[int]) -> Grammar:
        """`kind`: json_schema, regex, ebnf or structural_tag. Raises GrammarRefused."""
        if not eos_token_ids:
            raise GrammarRefused("a constraint needs an end-of-sequence token to end with")
        key = (kind, text, tuple(eos_token_ids))
        with self._lock:  # one at a time: a burst of one schema compiles it once
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            if kind in _HOLD_SCHEMAS:
                text = _enforceable(kind, text)
            compiler = self._compiler(key[2], _NEVER.get(kind, b""))
            methods: dict[str, Callable[[str], Any]] = {
                "json_schema": partial(
                    compiler.compile_json_schema, max_whitespace_cnt=_MOST_WHITESPACE
                ),
                "regex": compiler.compile_regex,
                "ebnf": compiler.compile_grammar,
                "structural_tag": compiler.compile_structural_tag,
            }
            try:
                grammar = Grammar(methods[kind](text))
            except (RuntimeError, ValueError) as error:
                raise GrammarRefused(f"the {kind} does not compile: {_reason(error)}") from error
            self._kept[key] = grammar
            if len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
            return grammar

    def _compiler(self, eos: tuple[int, ...], never: bytes) -> xgrammar.GrammarCompiler:
        if (eos, never) not in self._compilers:
            import xgrammar

            if not self._file.is_file():
                raise GrammarRefused(f"{self._file.name} is missing: no text can be constrained")
            info = _tokenizer_info(self._file, self._vocab_size, eos, never)
            self._compilers[eos, never] = xgrammar.GrammarCompiler(info, max_threads=_THREADS)
        return self._compilers[eos, never]


def _enforceable(kind: str, text: str) -> str:
    """The schema, or the tag with its schemas, as xgrammar takes all of it."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise GrammarRefused(f"the {kind} is not JSON: {error}") from error
    except RecursionError as error:
        raise GrammarRefused(f"the {kind} is nested too deeply") from error
    return json.dumps(_schema(value) if kind == "json_schema" else _tag(value))


def _schema(schema: Any) -> Any:
    schema = with_types_inside(schema)
    left_out = not_enforced(schema)
    if left_out is not None:
        raise GrammarRefused(f"the json_schema cannot be enforced: {left_out}")
    return schema


def _tag(value: Any) -> Any:
    """A structural tag holds schemas under `json_schema`, at any depth."""
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _schema(inner) if key == "json_schema" else _tag(inner) for key, inner in value.items()
    }


def _tokenizer_info(
    file: Path, vocab_size: int, eos_token_ids: tuple[int, ...], never: bytes
) -> xgrammar.TokenizerInfo:
    """The vocabulary as xgrammar reads it, without tokens that hold a byte of `never`."""
    import xgrammar

    tokenizer = Tokenizer.from_file(str(file))
    # A special token is no text: its name must not pass for the characters it is written with.
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocab = [""] * vocab_size
    for text, token in tokenizer.get_vocab().items():
        if token < vocab_size and token not in special:
            vocab[token] = text
    metadata = xgrammar.TokenizerInfo._detect_metadata_from_hf(tokenizer.to_str())

    def info() -> xgrammar.TokenizerInfo:
        return xgrammar.TokenizerInfo(
            vocab,
            vocab_type=metadata["vocab_type"],
            vocab_size=vocab_size,
            stop_token_ids=list(eos_token_ids),
            add_prefix_space=metadata["add_prefix_space"],
        )

    if never:
        for token, spelled in enumerate(info().decoded_vocab):
            if set(spelled) & set(never):
                vocab[token] = ""
    return info()


def _reason(error: Exception) -> str:
    """xgrammar's words without its clock, source line and traceback."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", first)


class GrammarMatchers:
    """Where each constrained slot is in its language. Not thread-safe; the sampler owns it."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._matchers: dict[int, xgrammar.GrammarMatcher] = {}
        self._strayed: set[int] = set()
        self._batch: xgrammar.BatchGrammarMatcher | None = None

    def add(self, slot: int, grammar: Grammar, output_tokens: NDArray[np.int32]) -> None:
        """Start a slot, after these tokens of its output."""
        import xgrammar

        if self._batch is None:
            self._batch = xgrammar.BatchGrammarMatcher(max_threads=_THREADS)
        matcher = xgrammar.GrammarMatcher(grammar.compiled)
        self._matchers[slot] = matcher
        # Tokens that are no prefix of the language: nothing may follow, and the request fails.
        if not all(matcher.accept_token(token) for token in output_tokens.tolist()):
            self._strayed.add(slot)

    def drop(self, slot: int) -> None:
        """Forget a slot; unknown slots are ignored."""
        self._matchers.pop(slot, None)
        self._strayed.discard(slot)

    def allowed(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """Which tokens may come next, bool [R, V] on the CPU. All slots were added."""
        import xgrammar

        bits = xgrammar.allocate_token_bitmask(len(slots), self._vocab_size)
        if self._batch is None:
            raise RuntimeError("no slot was added")
        self._batch.batch_fill_next_token_bitmask(
            [self._matchers[slot] for slot in slots.tolist()], bits
        )
        unpacked = np.unpackbits(bits.numpy().view(np.uint8), axis=1, bitorder="little")
        allowed = unpacked[:, : self._vocab_size].view(np.bool_)
        if self._strayed:
            allowed[[slot in self._strayed for slot in slots.tolist()]] = False
        return torch.from_numpy(allowed)

    def record(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """One more output token per slot; each was allowed."""
        import xgrammar

        matchers = [self._matchers[slot] for slot in slots.tolist()]
        xgrammar.BatchGrammarMatcher.batch_accept_token(matchers, tokens.tolist())
