"""Structured output: what the sampler may choose, whatever the model would have liked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from baton_engine.request import Grammar, SamplingParams
from baton_engine.sampling import GrammarCompiler, GrammarRefused, TokenSampler

MODEL = Path(__file__).parents[3] / "examples" / "demo_model" / "model"
VOCAB, EOS = 2048, (2, 0)
SPECIAL = 1  # <|im_start|>
NOTHING = np.empty(0, np.int32)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"type": "string", "enum": ["file", "note"]},
        "size": {"type": "integer", "minimum": -20, "maximum": 999},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "where": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^/[a-c]{1,4}$"}]},
    },
    "required": ["name", "kind", "size", "tags", "where"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(MODEL, VOCAB)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def random_logits(seed: int, position: int) -> torch.Tensor:
    """A model without any opinion of language, but always of the same."""
    generator = torch.Generator().manual_seed(seed * 100_003 + position)
    return 6 * torch.randn((1, VOCAB), generator=generator)


def generate(
    sampler: TokenSampler, grammar: Grammar, seed: int, *, slot: int = 0, moved_at: int = -1
) -> list[int]:
    """Tokens to end-of-sequence; at `moved_at` the slot is given up and begun anew elsewhere."""
    params = SamplingParams(temperature=1.0, seed=seed, grammar=grammar)
    sampler.add(slot, params, NOTHING, NOTHING)
    tokens: list[int] = []
    while not tokens or tokens[-1] not in EOS:
        if len(tokens) == moved_at:
            sampler.drop(slot)
            slot += 1
            sampler.add(slot, params, NOTHING, np.array(tokens, np.int32))
        logits = random_logits(seed, len(tokens))
        result = sampler.sample(logits, np.array([slot]), np.array([len(tokens)]))
        assert not result.poisoned[0]
        tokens.append(int(result.tokens[0]))
        assert len(tokens) < 600, "the grammar does not end"
    return tokens


@pytest.mark.parametrize("seed", range(8))
def test_a_random_model_writes_what_the_schema_says(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    grammar = compiler.compile("json_schema", json.dumps(SCHEMA), EOS)
    tokens = generate(TokenSampler(VOCAB, 4), grammar, seed)
    assert SPECIAL not in tokens  # it decodes to nothing, but it is not the empty text
    jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMA)


@pytest.mark.parametrize("seed", range(4))
def test_regex_and_ebnf(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    sampler = TokenSampler(VOCAB, 4)
    pattern = r"(\d{1,3}\.){3}\d{1,3} (up|down)"
    text = tokenizer.decode(generate(sampler, compiler.compile("regex", pattern, EOS), seed))
    assert re.fullmatch(pattern, text), text
    ebnf = 'root ::= "(" root ")" | [0-9] | [0-9] [+*] [0-9]'
    text = tokenizer.decode(generate(sampler, compiler.compile("ebnf", ebnf, EOS), seed))
    assert re.fullmatch(r"\(*\d([+*]\d)?\)*", text) and text.count("(") == text.count(")"), text


@pytest.mark.parametrize("moved_at", [1, 5, 11])
def test_another_worker_goes_on_with_the_same_tokens(
    compiler: GrammarCompiler, moved_at: int
) -> None:
    grammar = compiler.compile("json_schema", json.dumps(SCHEMA), EOS)
    whole = generate(TokenSampler(VOCAB, 4), grammar, 3)
    assert len(whole) > 12
    assert generate(TokenSampler(VOCAB, 4), grammar, 3, moved_at=moved_at) == whole


def test_neighbours_in_the_batch_do_not_matter(compiler: GrammarCompiler) -> None:
    """Two languages and a free row together choose what each would choose alone."""
    grammars = [
        compiler.compile("regex", "[a-m]{4}", EOS),
        None,
        compiler.compile("regex", "[0-9]{4}", EOS),
    ]
    alone = []
    for i, grammar in enumerate(grammars):
        sampler = TokenSampler(VOCAB, 4)
        sampler.add(0, SamplingParams(grammar=grammar, temperature=1.0, seed=i), NOTHING, NOTHING)
        rows = [
            sampler.sample(random_logits(i, at), np.array([0]), np.array([at])) for at in range(2)
        ]
        alone.append([int(row.tokens[0]) for row in rows])
    sampler = TokenSampler(VOCAB, 4)
    for i, grammar in enumerate(grammars):
        sampler.add(
            3 - i, SamplingParams(grammar=grammar, temperature=1.0, seed=i), NOTHING, NOTHING
        )
    together = [
        sampler.sample(
            torch.cat([random_logits(i, at) for i in range(3)]),
            np.array([3, 2, 1]),
            np.array([at] * 3),
        ).tokens.tolist()
        for at in range(2)
    ]
    assert [list(row) for row in zip(*together, strict=True)] == alone


def test_a_row_that_nothing_may_follow_fails_alone(compiler: GrammarCompiler) -> None:
    """Its output so far is not of the language: another worker's mistake, never this batch's."""
    sampler = TokenSampler(VOCAB, 2)
    grammar = compiler.compile("regex", "[0-9]{4}", EOS)
    sampler.add(0, SamplingParams(grammar=grammar), NOTHING, np.array([600, 601], np.int32))
    sampler.add(1, SamplingParams(), NOTHING, NOTHING)
    logits = torch.cat([random_logits(1, 0), random_logits(2, 0)])
    best = int(logits[1].argmax())
    result = sampler.sample(logits, np.array([0, 1]), np.array([2, 0]))
    assert result.poisoned.tolist() == [True, False]
    assert int(result.tokens[1]) == best


INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "object", "if": {}, "then": {}}, "not supported"),
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"properties": {"a": {"type": "string", "pattern": "a", "maxLength": 3}}}, "#/properties"),
        ({"allOf": [INTEGER, {"minimum": 3}]}, "'allOf'"),
        ({"type": "integer", "anyOf": [{"type": "string"}]}, "beside 'anyOf'"),
        ({"type": "integer", "minimum": 5, "enum": [1, 7]}, "beside 'enum'"),
        ({"type": "string", "enum": ["a", 1]}, "beside 'enum'"),
        ({"$defs": {"a": INTEGER}, "$ref": "#/$defs/a", "minimum": 5}, "beside '$ref'"),
        ({"type": "whole"}, "whole"),
        ({"$ref": "#/nowhere"}, "nowhere"),
    ],
)
def test_what_would_not_be_enforced_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(GrammarRefused, match=re.escape(named)):
        compiler.compile("json_schema", json.dumps(schema), EOS)


@pytest.mark.parametrize("seed", range(3))
def test_a_type_beside_branches_holds(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    """As gateways write it for a choice of tools."""
    schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {
            "type": "object",
            "anyOf": [
                {"properties": {"name": {"enum": [name]}}, "required": ["name"]}
                | {"additionalProperties": False}
                for name in ("calc", "search")
            ],
        },
    }
    grammar = compiler.compile("json_schema", json.dumps(schema), EOS)
    tokens = generate(TokenSampler(VOCAB, 4), grammar, seed)
    jsonschema.validate(json.loads(tokenizer.decode(tokens)), schema)


def tag(schema: dict[str, Any]) -> str:
    content = {"type": "json_schema", "json_schema": schema}
    part = {"type": "tag", "begin": "<call>", "content": content, "end": "</call>"}
    return json.dumps({"type": "structural_tag", "format": part})


@pytest.mark.parametrize("seed", range(3))
def test_structural_tag(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    grammar = compiler.compile("structural_tag", tag(SCHEMA), EOS)
    text = tokenizer.decode(generate(TokenSampler(VOCAB, 4), grammar, seed))
    assert text.startswith("<call>") and text.endswith("</call>")
    value = text.removeprefix("<call>").removesuffix("</call>")
    jsonschema.validate(json.loads(value, strict=False), SCHEMA)


def test_a_tag_is_held_to_its_schemas(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarRefused, match="'not' is not supported"):
        compiler.compile("structural_tag", tag({"type": "object", "not": {}}), EOS)


@pytest.mark.parametrize(
    ("kind", "text"), [("json_schema", "{"), ("regex", "[a"), ("ebnf", "x ::= y")]
)
def test_what_does_not_compile_is_refused_in_words(
    compiler: GrammarCompiler, kind: str, text: str
) -> None:
    with pytest.raises(GrammarRefused) as raised:
        compiler.compile(kind, text, EOS)
    assert kind in str(raised.value) and ".cc:" not in str(raised.value)


def test_a_constraint_needs_an_end(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarRefused, match="end-of-sequence"):
        compiler.compile("regex", "a", ())
