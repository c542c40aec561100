"""One rank's half of a step: page table, arena and model. The same on every rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from baton_engine.arena import KvArena
from baton_engine.batch import StepInput, StepOutput, forward_batch
from baton_engine.config import EngineConfig
from baton_engine.groups import group_pages, state_group
from baton_engine.guessing import DraftOrder, Guesser
from baton_engine.memory import cache_bytes, free_bytes, refuse_overcommit
from baton_engine.page_table import PageTable
from baton_engine.sampling.captured import CapturedDraw
from baton_engine.speculation import refuse_speculation
from baton_modeling import Communicator, Mesh, Options, load_model, tensor_parallel_mesh
from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.regions import buckets
from baton_modeling.compiler.tuning import load_costs
from baton_modeling.description import read_model_description
from baton_modeling.drafter import kept

LoadProgress = Callable[[str, float], None]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CACHE_DTYPES = {"model": None, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def resolve_max_context(config: EngineConfig) -> int:
    """The context length served: the operator's limit within what model and pool allow.

    Raises ValueError when the operator asks for more than the model can.
    """
    model_limit = read_model_description(config.model_path).max_context
    if config.max_context is not None:
        if config.max_context > model_limit:
            raise ValueError(
                f"max_context is {config.max_context}, but {config.model_path} can attend to at "
                f"most {model_limit} tokens; lower max_context"
            )
        return config.max_context
    return min(model_limit, config.num_pages * config.page_size)


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Which rank this process is, and how it talks to the others."""

    mesh: Mesh
    comm: Communicator


class ModelRunner:
    """Runs the steps of one rank. Not thread-safe: one thread steps."""

    def __init__(
        self,
        config: EngineConfig,
        place: RankPlace,
        progress: LoadProgress | None = None,
    ) -> None:
        """Load this rank's part of the checkpoint. ValueError says what cannot be served."""
        refuse_speculation(config)
        self._device = torch.device(config.device)
        self._page_size = config.page_size
        self._model = load_model(
            Path(config.model_path),
            mesh=place.mesh,
            comm=place.comm,
            dtype=_DTYPES[config.dtype],
            device=config.device,
            page_size=config.page_size,
            progress=progress,
            options=_options(config),
        )
        layout = self._model.cache_layout
        self._stateful = state_group(layout) is not None
        pages_per_slot = -(-resolve_max_context(config) // config.page_size)
        self._pages_per_slot = pages_per_slot
        self._table = PageTable(config.max_running, pages_per_slot)
        # Tokens of a step that decodes every row it may, guesses included.
        self._decoding_tokens = config.max_running * (1 + config.draft_tokens)
        drafter = self._model.drafter
        self._guesser = (
            None
            if drafter is None
            else Guesser(drafter, self._table, self._page_size, self._device, config.draft_tokens)
        )
        # Only rank 0 samples. The buffer is there before free memory is looked at.
        self._draw = (
            CapturedDraw(buckets(self._decoding_tokens)[-1], self._device)
            if config.execution == "graphs" and place.mesh.rank == 0
            else None
        )
        pages = group_pages(layout, config)
        if config.execution == "graphs":
            self._refuse_overcommit(pages)
        self.arena = self._cache_of(pages)

    def _cache_of(self, pages: Mapping[str, int]) -> KvArena:
        """A new cache for the model, so many pages of each group."""
        arena = KvArena(self._model.cache_layout, pages, self._page_size, self._device)
        self._model.bind_cache(arena.tensors)
        return arena

    def _refuse_overcommit(self, pages: Mapping[str, int]) -> None:
        """Measure what captured steps take, on a cache of one page, before the real one is made.

        ValueError when the two do not fit beside the weights.
        """
        self.arena = self._cache_of(dict.fromkeys(pages, 1))
        self.warm_up()
        graphs = self._model.execution_bytes
        self.arena = self._cache_of(dict.fromkeys(pages, 1))  # drops them again
        layout = self._model.cache_layout
        wanted = cache_bytes(layout, pages, self._page_size)
        refuse_overcommit(wanted, graphs, free_bytes(self._device))

    @property
    def fingerprint(self) -> str:
        return self._model.fingerprint

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    @torch.inference_mode()
    def run(self, step: StepInput, wishes: NDArray[np.float64] | None = None) -> StepOutput | None:
        """Bring page table and arena up to the step, then run its rows.

        wishes: what rows want that a captured step draws; None is their largest logit. Logits come
        in the rows' order; None for a step without rows.
        """
        self._table.apply(step.slot_resets, step.page_deltas)
        self.arena.copy_pages(step.copies)
        if not len(step.rows):
            return None
        batch = forward_batch(step, self._table, self._page_size, self._device)
        done = self._model.run(batch, 0 if self._draw is None else self._draw.take(wishes))
        if self._guesser is not None:
            self._guesser.note(step, batch, kept(done.hidden))
        return StepOutput(done.logits, done.tail)

    def draft(self, order: DraftOrder) -> NDArray[np.int32]:
        """Guesses [W, k] at what follows the step that ran last, once its outcome is known."""
        if self._guesser is None:
            raise RuntimeError("this engine was not told to draft (config: speculative)")
        return self._guesser.guess(order)

    def finish(self) -> None:
        """Return when what the last step wrote is in memory; others may read it then."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def warm_up(self) -> None:
        """One prompt chunk and one decode row through page 0, before anyone owns it.

        First calls allocate and select kernels; the first request should not pay for that.
        """
        tokens = min(2, self._page_size)
        none = np.empty((0,), np.int32)
        first, then = (
            np.array([states] if self._stateful else [], np.int32).reshape(-1, 2)
            for states in ([-1, 0], [0, 0])
        )
        step = StepInput(
            rows=np.array([[0, tokens, 0, 1, 0, 0]], np.int32),
            token_ids=np.zeros(tokens, np.int32),
            page_deltas=np.array([[0, 0, 0]], np.int32),
            slot_resets=none,
            copies=none.reshape(0, 2),
            states=first,
        )
        self.run(step)
        self._draft_warm(tokens)
        self.run(
            StepInput(
                rows=np.array([[0, 1, tokens - 1, 1, 0, 1]], np.int32),
                token_ids=np.zeros(1, np.int32),
                page_deltas=none.reshape(0, 3),
                slot_resets=none,
                copies=none.reshape(0, 2),
                states=then,
            )
        )
        self._draft_warm(1)
        self._table.apply(np.zeros(1, np.int32), none.reshape(0, 3))
        tails = () if self._draw is None else self._draw.tails
        self._model.prepare(self._decoding_tokens, self._pages_per_slot, tails)

    def _draft_warm(self, kept: int) -> None:
        if self._guesser is not None:
            self._guesser.guess(DraftOrder(np.array([[kept, 0, 1]], np.int32)))


def _options(config: EngineConfig) -> Options:
    return Options(
        costs=CostTable() if config.cost_table is None else load_costs(config.cost_table),
        cache_dtype=_CACHE_DTYPES[config.kv_cache_dtype],
        execution=config.execution,
        draft=config.speculative is not None,
    )


def set_threads(threads: int | None) -> None:
    """Limit the threads torch uses in this process; None leaves its choice."""
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def single_place() -> RankPlace:
    """The only rank of a worker without tensor parallelism."""
    from baton_modeling import SingleComm

    mesh = tensor_parallel_mesh(1)
    return RankPlace(mesh, SingleComm(mesh))
