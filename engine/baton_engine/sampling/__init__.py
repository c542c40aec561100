"""Choosing tokens: a batch at a time, each row a pure function of its own request."""

from baton_engine.sampling.grammar import GrammarCompiler, GrammarRefused
from baton_engine.sampling.sampler import TokenSampler

__all__ = ["GrammarCompiler", "GrammarRefused", "TokenSampler"]
