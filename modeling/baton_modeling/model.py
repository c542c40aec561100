"""Loading a model, and the compiled model that runs steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from baton_kernels import Verdict, check_overrides, environment_overrides, load_plugins, ops
from baton_modeling.batch import ForwardBatch
from baton_modeling.binding import Binding, Step, Tail
from baton_modeling.cache import CacheLayout
from baton_modeling.checkpoint import CheckpointReader, Progress
from baton_modeling.communicators import Communicator, SingleComm
from baton_modeling.compiler.costs import CostTable
from baton_modeling.compiler.emit import emit
from baton_modeling.compiler.explain import Explanation, explain
from baton_modeling.compiler.lower import lower
from baton_modeling.compiler.operations import Lowered
from baton_modeling.compiler.rewrite import RULES
from baton_modeling.compiler.verify import checker
from baton_modeling.description import CheckpointError, ModelDescription, read_model_description
from baton_modeling.drafter import CompiledDrafter, kept
from baton_modeling.execution import Executable, Execution, executable
from baton_modeling.families import family_of
from baton_modeling.families.family import FamilyModel
from baton_modeling.graph import Graph
from baton_modeling.mesh import Mesh, tensor_parallel_mesh


@dataclass(frozen=True)
class Options:
    """How to compile. The defaults are right for serving.

    verify: check at run time that what is declared replicated is equal on all ranks (slow).
    cache_dtype: element type of cached keys, values and latents: float8_e4m3fn (with a scale per
        token), bfloat16, or None for the model's. Recurrent states stay as they are.
    kernels: implementation by operator; the variable BATON_KERNELS adds to it.
    draft: load the multi-token-prediction layer too; its entries are one more layer of the cache.
    execution: how programs run: "eager"; or once ``CompiledModel.prepare`` was called, "compiled",
        or "graphs", which replays decoding steps (without CUDA it calls them, for tests).
    """

    costs: CostTable = field(default_factory=CostTable)
    verify: bool = False
    cache_dtype: torch.dtype | None = None
    kernels: Mapping[str, str] | None = None
    draft: bool = False
    execution: Execution = "eager"


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a step gives. With graphs logits and tail are valid until the next step."""

    logits: Tensor  # float32 [L, vocab], equal on all ranks
    hidden: Tensor | None  # [T, hidden] of all tokens, for the drafter; None without one
    tail: Tensor | None  # [L, ...] what the tail made of the logits; None unless captured with it


class CompiledModel:
    """One rank's program with its weights. Not thread-safe: one forward at a time."""

    def __init__(
        self,
        config: ModelDescription,
        cache_layout: CacheLayout,
        program: Executable,
        lowered: Lowered,
        binding: Binding,
        fingerprint: str,
        drafter: CompiledDrafter | None = None,
    ) -> None:
        self.config = config
        self.cache_layout = cache_layout
        self.fingerprint = fingerprint
        self.drafter = drafter
        self.mesh = binding.mesh
        self.dtype = binding.dtype
        self.device = binding.device
        self.page_size = binding.page_size
        self._program = program
        self._lowered = lowered
        self._binding = binding

    @property
    def kernels(self) -> list[Verdict]:
        """The implementation chosen for each operator of this model."""
        return list(self._binding.choices.values())

    def bind_cache(self, arenas: Mapping[str, Tensor]) -> None:
        """Use these arenas, one per cache group: [num_pages, layers, entries, entry_width].

        What ``prepare`` captured on other arenas is dropped.
        ValueError names the group whose arena is missing or of another shape or dtype.
        """
        for group in self.cache_layout.groups:
            if group.name not in arenas:
                raise ValueError(f"no arena for cache group {group.name!r}")
            arena = arenas[group.name]
            wanted = group.arena_shape(arena.shape[0], self.page_size)
            if tuple(arena.shape) != wanted or arena.dtype != group.dtype:
                raise ValueError(
                    f"the arena of cache group {group.name!r} is {list(arena.shape)} "
                    f"{arena.dtype}, it must be [num_pages, {', '.join(map(str, wanted[1:]))}] "
                    f"{group.dtype}"
                )
        for view in self._binding.caches:
            view.attach(arenas[view.group])
        self._program.forget()
        if self.drafter is not None:
            self.drafter.forget()

    def prepare(self, rows: int, pages: int, tails: Sequence[Tail] = ()) -> None:
        """Make ready for decoding up to ``rows`` rows of up to ``pages`` pages, the drafter too.

        Call it after first steps and before serving; again when another cache was bound. It may
        compile, which takes a while, and write to page 0 and slot 0 of the cache. tails: functions
        of the logits [rows, vocab] that captured steps end with, one of them each (``run``). They
        look at no value on the host, communicate nothing and leave the logits as they are.
        """
        self._program.prepare(rows, pages, tails)
        if self.drafter is not None:
            self.drafter.prepare(rows, pages)

    @property
    def execution_bytes(self) -> int:
        """Device memory that execution holds between steps, beside weights and cache."""
        return self._program.bytes + (0 if self.drafter is None else self.drafter.bytes)

    @torch.inference_mode()
    def run(self, batch: ForwardBatch, tail: int = 0) -> Forwarded:
        """Run one step: writes the cache. tail: which of those prepared, if it is captured."""
        step = Step(batch, self.page_size)
        step.tail = tail
        logits = self._program.run(step)
        return Forwarded(logits, step.hidden, step.tail_output)

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run one step: writes the cache, gives float32 logits [L, vocab], equal on all ranks.

        With graphs the logits are valid until the next step.
        """
        return self.run(batch).logits

    def forward_hidden(self, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """``forward``, and the hidden states [T, hidden] of all tokens for ``drafter``.

        ValueError when the model was not loaded with ``Options(draft=True)``.
        """
        done = self.run(batch)
        return done.logits, kept(done.hidden)

    def explain(self) -> Explanation:
        """The program: operations, collectives, bytes per token, rules, totals."""
        return explain(self._lowered, self.mesh, self.dtype.itemsize)


def compile_graph(
    graph: Graph, mesh: Mesh, itemsize: int, costs: CostTable | None = None
) -> Lowered:
    """Lower ``graph`` on ``mesh`` and apply every rewrite rule."""
    lowered = lower(graph, mesh, itemsize, costs or CostTable())
    for rule in RULES:
        rule(lowered)
    return lowered


def build_family(description: ModelDescription, dtype: torch.dtype) -> FamilyModel:
    """The graph of the described model, before any mesh or weight."""
    return family_of(description.family)(description.config, dtype)


def explain_checkpoint(
    checkpoint: str | Path,
    *,
    tp: int = 1,
    mesh: Mesh | None = None,
    dtype: torch.dtype = torch.bfloat16,
    costs: CostTable | None = None,
) -> Explanation:
    """The program of the model in ``checkpoint`` on ``mesh``, or on ``tp`` ranks. Reads no weights.

    Raises CheckpointError, MeshError, CompileError or WeightError as load_model would.
    """
    mesh = mesh or tensor_parallel_mesh(tp)
    family = build_family(read_model_description(checkpoint), dtype)
    family.cache(mesh)  # refuses heads that cannot be cut
    graph = family.graph
    for application in graph.applications:
        for weight in application.module.weights().values():
            weight.local(mesh)  # refuses sizes that cannot be cut
    return explain(compile_graph(graph, mesh, dtype.itemsize, costs), mesh, dtype.itemsize)


def load_model(
    checkpoint: str | Path,
    *,
    mesh: Mesh | None = None,
    comm: Communicator | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    page_size: int,
    progress: Progress | None = None,
    options: Options | None = None,
) -> CompiledModel:
    """Compile the model in ``checkpoint`` for this rank and read this rank's weights.

    comm: communicates along the axes of ``mesh``; needed when the mesh has several ranks.
    progress: called after every tensor read with its name and the fraction done.
    Raises CheckpointError for a checkpoint that is broken or asks for what is not supported,
    CompileError or WeightError for a mesh the model cannot be cut over.
    """
    options = options or Options()
    mesh = mesh or Mesh({})
    peers: Communicator = comm or SingleComm(mesh)
    load_plugins()
    kernels = {**(options.kernels or {}), **environment_overrides()}
    check_overrides(kernels, ops.OPERATORS)
    description = read_model_description(checkpoint)
    cache_dtype = options.cache_dtype or dtype
    if cache_dtype not in (dtype, torch.bfloat16, torch.float8_e4m3fn):
        raise ValueError(
            f"a cache in {cache_dtype} is not supported; it can be in the model's type, bfloat16 "
            "or float8_e4m3fn"
        )
    family = build_family(description, cache_dtype)
    graph, draft, layout, skipped = _chosen(family, description, options)
    graphs = [graph] if draft is None else [graph, draft]
    captures = options.execution == "graphs"
    binding = Binding(torch.device(device), dtype, mesh, page_size, kernels, cache_dtype, captures)
    with CheckpointReader(description.path, progress, family.block) as reader:
        declared = {
            name
            for each in graphs
            for application in each.applications
            for weight in application.module.weights().values()
            for name in reader.stored(weight).names
        }
        reader.expected = len(declared)
        reader.refuse_unread(skipped, declared)

        def compiled(graph: Graph) -> tuple[Executable, Lowered]:
            lowered = compile_graph(graph, mesh, dtype.itemsize, options.costs)
            program = emit(
                lowered,
                binding,
                peers,
                lambda module: {
                    name: reader.load(weight, mesh, dtype, binding.device)
                    for name, weight in module.weights().items()
                },
                checker(lowered, peers) if options.verify else None,
            )
            return executable(program, options.execution, binding), lowered

        program, lowered = compiled(graph)
        drafter = None if draft is None else CompiledDrafter(*compiled(draft), binding)
    return CompiledModel(
        description,
        layout(mesh),
        program,
        lowered,
        binding,
        _fingerprint(description, dtype, cache_dtype),
        drafter,
    )


def _chosen(
    family: FamilyModel, description: ModelDescription, options: Options
) -> tuple[Graph, Graph | None, Callable[[Mesh], CacheLayout], tuple[str, ...]]:
    """Graph, drafting graph, cache layout and what is left out, as the options ask."""
    if not options.draft:
        return family.graph, None, family.cache, family.skipped
    drafting = family.drafting
    if drafting is None:
        raise CheckpointError(
            f"{description.path} ({description.family}) has no multi-token-prediction layer that "
            f"this build can draft with; load it without Options(draft=True)"
        )
    return drafting.graph, drafting.draft, drafting.cache, drafting.skipped


def _fingerprint(
    description: ModelDescription, dtype: torch.dtype, cache_dtype: torch.dtype
) -> str:
    """Cached entries depend on the weights and on the types they were computed and kept in."""
    text = f"{description.fingerprint}/{str(dtype).removeprefix('torch.')}"
    if cache_dtype != dtype:
        text += f"/{str(cache_dtype).removeprefix('torch.')}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
