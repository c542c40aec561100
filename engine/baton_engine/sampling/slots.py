"""Sampling parameters by slot, as columns, so that a batch gathers instead of looping."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baton_engine.request import SamplingParams

# What a slot needs beyond the largest logit.
RANDOM, PENALISED, BIASED, LOGPROBS, CONSTRAINED = 1, 2, 4, 8, 16
# Draws from other logits than the model's.
ADJUSTED = PENALISED | BIASED | CONSTRAINED


class SlotParams:
    """One row per slot; rows of slots that are not in use ask for nothing."""

    def __init__(self, max_slots: int) -> None:
        self.needs = np.zeros(max_slots, np.uint8)
        self.temperature = np.zeros(max_slots, np.float32)
        self.top_p = np.ones(max_slots, np.float32)
        self.top_k = np.zeros(max_slots, np.int64)
        self.min_p = np.zeros(max_slots, np.float32)
        self.frequency = np.zeros(max_slots, np.float32)
        self.presence = np.zeros(max_slots, np.float32)
        self.repetition = np.ones(max_slots, np.float32)
        self.seed = np.zeros(max_slots, np.uint64)
        self.alternatives = np.zeros(max_slots, np.int64)
        self._bias_ids: dict[int, NDArray[np.int64]] = {}
        self._bias_values: dict[int, NDArray[np.float32]] = {}

    def add(self, slot: int, params: SamplingParams) -> int:
        """Take a slot's parameters; returns what it needs."""
        self.drop(slot)
        needs = 0
        if params.temperature > 0 and params.top_k != 1:  # the best of one is the best
            needs |= RANDOM
        if params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty:
            needs |= PENALISED
        if params.logit_bias:
            needs |= BIASED
            self._bias_ids[slot] = np.fromiter(params.logit_bias.keys(), np.int64)
            self._bias_values[slot] = np.fromiter(params.logit_bias.values(), np.float32)
        if params.logprobs is not None:
            needs |= LOGPROBS
            self.alternatives[slot] = params.logprobs
        if params.grammar is not None:
            needs |= CONSTRAINED
        self.needs[slot] = needs
        # float32 knows no number between 0 and this one.
        self.temperature[slot] = max(params.temperature, float(np.finfo(np.float32).tiny))
        self.top_p[slot] = params.top_p
        self.top_k[slot] = params.top_k
        self.min_p[slot] = params.min_p
        self.frequency[slot] = params.frequency_penalty
        self.presence[slot] = params.presence_penalty
        self.repetition[slot] = params.repetition_penalty
        self.seed[slot] = params.seed
        return needs

    def drop(self, slot: int) -> None:
        """Ask for nothing any more."""
        self.needs[slot] = 0
        self._bias_ids.pop(slot, None)
        self._bias_values.pop(slot, None)

    def biases(
        self, slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(index into slots, token id, value) of every bias of slots that are BIASED."""
        ids = [self._bias_ids[slot] for slot in slots.tolist()]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        rows = np.repeat(np.arange(len(slots)), lengths)
        values = [self._bias_values[slot] for slot in slots.tolist()]
        return rows, np.concatenate(ids), np.concatenate(values)
