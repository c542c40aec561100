"""A StartRequest's constraint, compiled beside the event loop."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_engine import Grammar, GrammarCompiler, GrammarRefused
from baton_rpc import Refusal

MAX_BYTES: Final = 1 << 18


class Constraints(Protocol):
    """What the desk asks for."""

    async def grammar(self, start: wire.StartRequest) -> Grammar:
        """The request's constraint. Raises Refusal (INVALID_CONSTRAINT)."""


class CompiledConstraints:
    """By the engine's compiler, on another thread."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler

    async def grammar(self, start: wire.StartRequest) -> Grammar:
        kind = start.constraint.WhichOneof("language")
        if kind is None:
            raise _refusal("constraint", "is empty; give json_schema, regex, ebnf, structural_tag")
        text = getattr(start.constraint, kind)
        if len(text) > MAX_BYTES:
            raise _refusal(kind, f"has {len(text)} characters; at most {MAX_BYTES} are compiled")
        try:
            return await asyncio.to_thread(
                self._compiler.compile, kind, text, tuple(start.stop.eos_token_ids)
            )
        except GrammarRefused as error:
            raise _refusal(f"constraint.{kind}", str(error)) from error


def _refusal(field: str, message: str) -> Refusal:
    return Refusal(errors.ERROR_REASON_INVALID_CONSTRAINT, f"{field}: {message}", {"field": field})
