"""What a module is bound to: device, dtype, mesh, kernels, cache; and the step it then runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from baton_kernels import Operator, PagedRows, Site, StateRows, Verdict, ops
from baton_modeling.batch import ForwardBatch, StateSlots
from baton_modeling.mesh import Mesh
from baton_modeling.weights import WeightError

P = ParamSpec("P")
R = TypeVar("R")

# What may follow the output [rows, width] of captured steps: what it makes of it, [rows, ...].
Tail = Callable[[Tensor], Tensor]


class CacheView:
    """One layer's view of a cache arena, filled in when the engine binds its memory."""

    def __init__(self, group: str, layer: int) -> None:
        self.group = group
        self.layer = layer
        self._tensor: Tensor | None = None

    def attach(self, arena: Tensor) -> None:
        """Take the layer's part of ``arena`` [pages, layers, entries, width]."""
        self._tensor = arena[:, self.layer]

    @property
    def tensor(self) -> Tensor:
        """[pages, entries, width]; a page of states has one entry."""
        if self._tensor is None:
            raise RuntimeError("the model has no cache yet; call bind_cache() before forward()")
        return self._tensor


@dataclass
class Binding:
    """Everything ``Module.bind`` may need on this rank.

    cache_dtype: None is the model's. captures: steps that only decode are captured and replayed.
    """

    device: torch.device
    dtype: torch.dtype
    mesh: Mesh
    page_size: int
    overrides: Mapping[str, str] = field(default_factory=dict)
    cache_dtype: torch.dtype | None = None
    captures: bool = False
    caches: list[CacheView] = field(default_factory=list)
    choices: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    # Whether what was bound since it was last cleared looks at values on the host.
    reads_host: bool = False

    def operator(
        self, operator: Operator[P, R], dtype: torch.dtype | None = None, **shape: int
    ) -> Callable[P, R]:
        """The implementation of ``operator`` for this device, and a note of the choice."""
        return self._bound(operator, Site.on(self.device, dtype or self.dtype, **shape))

    def decoding(
        self, operator: Operator[P, R], dtype: torch.dtype | None = None, **shape: int
    ) -> Callable[P, R]:
        """As ``operator``, for steps that only decode: it may be captured."""
        site = Site.on(self.device, dtype or self.dtype, **shape)
        return self._bound(operator, replace(site, captured=self.captures))

    def _bound(self, operator: Operator[P, R], site: Site) -> Callable[P, R]:
        chosen = next(v for v in operator.explain(site, self.overrides) if v.chosen)
        self.choices[operator.name, chosen.implementation] = chosen
        self.reads_host |= operator.implementations[chosen.implementation].reads_host
        return operator.bind(site, self.overrides)

    @property
    def converts_cache(self) -> bool:
        """Whether entries are kept in another type than the model's."""
        return self.cache_dtype not in (None, self.dtype)

    def cache_write(
        self, parts: tuple[int, int]
    ) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
        """Storing of entries made of ``parts``: (cache, entries, pages, offsets)."""
        if not self.converts_cache:
            return self.operator(ops.cache_write)
        write = self.operator(ops.cache_write_as)
        return lambda cache, entries, pages, offsets: write(cache, entries, pages, offsets, parts)

    def cache(self, group: str, layer: int) -> CacheView:
        """The view of one layer of a cache group."""
        view = CacheView(group, layer)
        self.caches.append(view)
        return view

    def local(self, size: int, axis: str) -> int:
        """``size`` items cut over ``axis``: how many are this rank's. WeightError if uneven."""
        ranks = self.mesh.axis(axis).size
        if size % ranks:
            raise WeightError(
                f"{size} heads or rows cannot be cut evenly over the {ranks} ranks of mesh axis "
                f"{axis}; choose a size of {axis} that divides {size}"
            )
        return size // ranks


class Step:
    """One forward step as bound modules see it: the batch, and what layers share."""

    def __init__(self, batch: ForwardBatch, page_size: int, *, captured: bool = False) -> None:
        """captured: nothing may look at values, now that the step is recorded to be replayed."""
        self.batch = batch
        self.captured = captured
        self.page_size = page_size
        self.decode_rows = batch.decode_rows
        # [T, hidden], for a drafting layer: what the model kept, or what the drafter is given.
        self.hidden: Tensor | None = None
        # Which of the tails that were prepared follows a captured step, and what it gave: [L, ...].
        self.tail = 0
        self.tail_output: Tensor | None = None

    @cached_property
    def decode(self) -> PagedRows:
        """The rows with one query token each."""
        n, batch = self.decode_rows, self.batch
        return PagedRows(
            batch.query_starts[: n + 1],
            batch.context_tokens[:n],
            batch.page_tables[:n],
            self.page_size,
        )

    @cached_property
    def prefill(self) -> PagedRows:
        """The prompt chunks; their query_starts count from the first token after decode's."""
        n, batch = self.decode_rows, self.batch
        return PagedRows(
            batch.query_starts[n:] - n,
            batch.context_tokens[n:],
            batch.page_tables[n:],
            self.page_size,
        )

    def group_rows(self, what: str) -> tuple[int, ...]:
        """``tokens`` or ``logit_rows`` of every data-parallel group, in the axis's order."""
        batch = self.batch
        return batch.group_tokens if what == "tokens" else batch.group_logit_rows

    @cached_property
    def _states(self) -> StateSlots:
        if self.batch.states is None:
            raise ValueError("this model keeps recurrent states, but the batch names none")
        return self.batch.states

    @cached_property
    def decode_states(self) -> StateRows:
        """The states of the rows with one token each."""
        n, states = self.decode_rows, self._states
        starts = self.batch.query_starts[: n + 1]
        return StateRows(starts, states.reads[:n], states.writes[:n], one_each=True)

    @cached_property
    def prefill_states(self) -> StateRows:
        """The states of the prompt chunks."""
        n, states = self.decode_rows, self._states
        return StateRows(self.batch.query_starts[n:] - n, states.reads[n:], states.writes[n:])

    @cached_property
    def write_pages(self) -> Tensor:
        """The page of each token's cache entry, int64 [T]."""
        return self.batch.write_slots // self.page_size

    @cached_property
    def write_offsets(self) -> Tensor:
        """The slot of each token's cache entry in its page, int64 [T]."""
        return self.batch.write_slots % self.page_size

    @cached_property
    def has_prefill(self) -> bool:
        return self.batch.token_ids.shape[0] > self.decode_rows

    @cached_property
    def selects_all(self) -> bool:
        """Whether logit_rows is 0..T-1, as in a step that only decodes."""
        rows, tokens = self.batch.logit_rows, self.batch.token_ids.shape[0]
        if self.captured:
            return False
        return rows.shape[0] == tokens and bool(
            torch.equal(rows, torch.arange(tokens, device=rows.device))
        )
