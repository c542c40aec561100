"""The execution plane both workers embed: step loop, batches, model runner, page fetching."""

from importlib import import_module
from typing import TYPE_CHECKING

from baton_engine.config import EngineConfig
from baton_engine.events import (
    Admitted,
    Cost,
    Done,
    Event,
    Failed,
    FailReason,
    FinishReason,
    PoolState,
    Prefilled,
    PromptProgress,
    PullReport,
    StepEvents,
    StepTimes,
    TokenLogprob,
    TokensEmitted,
)
from baton_engine.refusal import EngineRefusal
from baton_engine.request import (
    Await,
    EngineRequest,
    Generate,
    Grammar,
    HandOver,
    SamplingParams,
    Source,
    StopParams,
)

if TYPE_CHECKING:
    from baton_engine.engine import Engine, EngineDescription
    from baton_engine.sampling import GrammarCompiler, GrammarRefused

__all__ = [
    "Admitted",
    "Await",
    "Cost",
    "Done",
    "Engine",
    "EngineConfig",
    "EngineDescription",
    "EngineRefusal",
    "EngineRequest",
    "Event",
    "FailReason",
    "Failed",
    "FinishReason",
    "Generate",
    "Grammar",
    "GrammarCompiler",
    "GrammarRefused",
    "HandOver",
    "PoolState",
    "Prefilled",
    "PromptProgress",
    "PullReport",
    "SamplingParams",
    "Source",
    "StepEvents",
    "StepTimes",
    "StopParams",
    "TokenLogprob",
    "TokensEmitted",
]


def __getattr__(name: str) -> object:
    # The engine brings torch, which takes seconds to import: who only wants to read or check
    # a configuration does not wait for it.
    if name in ("Engine", "EngineDescription"):
        return getattr(import_module("baton_engine.engine"), name)
    if name in ("GrammarCompiler", "GrammarRefused"):
        return getattr(import_module("baton_engine.sampling"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
