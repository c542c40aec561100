"""Captured decoding: a step that only decodes is recorded once per size and then replayed.

Launching a step's many small kernels costs more than running them when few rows decode. A CUDA
graph launches them as one; it repeats what was recorded on the same memory, so a batch is copied
into buffers of the next size, its last row filling the rest: it writes what that row writes anyway.

What is a function of a step's output alone (drawing tokens) can be recorded as its tail. Tails are
graphs of their own, behind that of the step: ranks that want none then record and replay the same
collectives, and each is recorded once for a number of rows, whatever the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from baton_modeling.batch import ForwardBatch, StateSlots
from baton_modeling.binding import Step, Tail
from baton_modeling.compiler.emit import Program
from baton_modeling.compiler.inductor import ExecutionError
from baton_modeling.compiler.regions import buckets

T = TypeVar("T")

# Widths of page tables are recorded at every so many doublings.
_WIDTH_STEP = 2


class Recorder(Protocol):
    """Records computations, to be called again on the same memory. bytes: what that holds."""

    bytes: int

    def record(self, compute: Callable[[], T]) -> Callable[[], T]: ...

    def forget(self) -> None: ...


class PlainCalls:
    """Calls again in place of a replay: all of this module but the capture, on any device."""

    bytes = 0

    def record(self, compute: Callable[[], T]) -> Callable[[], T]:
        compute()
        return compute

    def forget(self) -> None:
        pass


class CudaGraphs:
    """Graphs that share one pool of memory, since one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self.bytes = 0

    def record(self, compute: Callable[[], T]) -> Callable[[], T]:
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(2):  # kernels are compiled and libraries make their workspaces
                compute()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        self.bytes += torch.cuda.memory_reserved(self._device) - before

        def replay() -> T:
            graph.replay()
            return result

        return replay

    def forget(self) -> None:
        """Recordings were dropped: their memory is free once nothing refers to the pool."""
        self._pool = torch.cuda.graph_pool_handle()
        self.bytes = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A decoding step that has run, for the types of buffers."""

    batch: ForwardBatch
    hidden: Tensor | None  # that it was given
    output: Tensor


class CapturedProgram:
    """A program whose decoding steps are replayed, once prepared; other steps run as they come."""

    def __init__(self, program: Program, page_size: int, recorder: Recorder) -> None:
        """ExecutionError names an operation that needs counts from other ranks."""
        for each in program.instructions:
            if each.counts:
                raise ExecutionError(
                    f"execution: graphs cannot capture {each.label}, which sends as many rows as "
                    "other ranks say; choose execution: eager, or a mesh without dispatched experts"
                )
        self._program = program
        self._page_size = page_size
        self._recorder = recorder
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._rows: list[int] = []
        self._widths: list[int] = []
        self._tails: dict[int, list[Callable[[], Tensor]]] = {}  # by rows
        self._output: Tensor | None = None  # [most rows, width], of whichever was replayed last
        self._example: Example | None = None

    @property
    def bytes(self) -> int:
        """Device memory that recordings and their buffers hold."""
        output = 0 if self._output is None else self._output.nbytes
        buffers = sum(recording.buffer_bytes for recording in self._recordings.values())
        return self._recorder.bytes + output + buffers

    def run(self, step: Step) -> Tensor:
        """Execute the program and return its output; after a replay it is valid until the next."""
        recording = self._recording(step.batch)
        if recording is None:
            given = step.hidden
            output = self._program.run(step)
            if self._example is None and step.decode_rows == len(step.batch.token_ids) > 0:
                self._example = Example(step.batch, given, output)
            return output
        output = recording.run(step)
        if tails := self._tails[recording.rows]:
            step.tail_output = tails[step.tail]()[: len(output)]
        return output

    def prepare(self, rows: int, pages: int, tails: Sequence[Tail] = ()) -> None:
        """Record for up to ``rows`` rows and ``pages`` pages each, through page and slot 0."""
        if self._example is None:
            raise RuntimeError("a decoding step must run before steps can be recorded")
        self.forget()
        self._rows, self._widths = buckets(rows), buckets(pages)[::-_WIDTH_STEP][::-1]
        like = self._example.output
        self._output = like.new_zeros(self._rows[-1], like.shape[1])
        for count in reversed(self._rows):  # the largest first: the others fit into its memory
            output = self._output[:count]
            for width in reversed(self._widths):
                self._recordings[count, width] = Recording(
                    self._program, self._example, self._page_size, width, output, self._recorder
                )
            self._tails[count] = [self._recorder.record(partial(tail, output)) for tail in tails]

    def forget(self) -> None:
        """Drop the recordings: they read and write the memory they were made on."""
        self._recordings.clear()
        self._tails.clear()
        self._output = None
        self._rows, self._widths = [], []
        self._recorder.forget()

    def _recording(self, batch: ForwardBatch) -> Recording | None:
        count, width = batch.page_tables.shape
        if not len(batch.token_ids) == len(batch.logit_rows) == batch.decode_rows == count > 0:
            return None
        rows = next((each for each in self._rows if each >= count), None)
        pages = next((each for each in self._widths if each >= width), None)
        if rows is None or pages is None or batch.group_tokens:
            return None
        return self._recordings[rows, pages]


class Recording:
    """The program for one size of batch, with the buffers that it reads."""

    def __init__(
        self,
        program: Program,
        like: Example,
        page_size: int,
        width: int,
        output: Tensor,
        recorder: Recorder,
    ) -> None:
        """width: of page tables. output: [rows, ...], where each replay leaves what it gives."""
        self.rows = rows = len(output)
        self._output = output
        self._batch = batch = _buffers(like.batch, rows, width)
        given = like.hidden
        self._hidden = hidden = None if given is None else given.new_zeros(rows, given.shape[1])

        def compute() -> Tensor | None:
            # A new step each time: what a step derives from its batch is computed inside.
            step = Step(batch, page_size, captured=True)
            step.hidden = hidden
            output.copy_(program.run(step))
            return step.hidden

        self._replay = recorder.record(compute)

    @property
    def buffer_bytes(self) -> int:
        """Of the buffers that steps are copied into."""
        hidden = 0 if self._hidden is None else self._hidden.nbytes
        return hidden + sum(each.nbytes for each in _tensors(self._batch))

    def run(self, step: Step) -> Tensor:
        """Replay for the step's batch; its hidden states, if any, are a copy."""
        count, batch, mine = step.batch.decode_rows, step.batch, self._batch
        for name in ("token_ids", "positions", "write_slots", "context_tokens", "page_tables"):
            self._fill(getattr(mine, name), getattr(batch, name), count)
        self._fill(mine.logit_rows, batch.logit_rows, count)
        if mine.states is not None and batch.states is not None:
            self._fill(mine.states.reads, batch.states.reads, count)
            self._fill(mine.states.writes, batch.states.writes, count)
        if self._hidden is not None and step.hidden is not None:
            self._fill(self._hidden, step.hidden, count)
        hidden = self._replay()
        if hidden is not None:
            step.hidden = hidden[:count].clone()
        return self._output[:count]

    def _fill(self, buffer: Tensor, values: Tensor, count: int) -> None:
        if buffer.dim() == 2:
            buffer = buffer[:, : values.shape[1]]
        buffer[:count] = values
        if count < self.rows:
            buffer[count:] = values[-1]


def _buffers(like: ForwardBatch, rows: int, width: int) -> ForwardBatch:
    """A batch of ``rows`` decoding rows at position 0 of page 0, its last snapshot in slot 0."""

    def zeros(tensor: Tensor, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

    starts = torch.arange(rows + 1, dtype=torch.int32, device=like.query_starts.device)
    states = like.states
    return replace(
        like,
        token_ids=zeros(like.token_ids, rows),
        positions=zeros(like.positions, rows),
        write_slots=zeros(like.write_slots, rows),
        query_starts=starts,
        context_tokens=zeros(like.context_tokens, rows) + 1,
        page_tables=zeros(like.page_tables, rows, width),
        decode_rows=rows,
        logit_rows=starts[:rows].to(like.logit_rows.dtype),
        states=None
        if states is None
        else StateSlots(zeros(states.reads, rows) - 1, zeros(states.writes, rows)),
    )


def _tensors(batch: ForwardBatch) -> Iterator[Tensor]:
    values = [getattr(batch, each.name) for each in fields(batch)]
    if batch.states is not None:
        values += [batch.states.reads, batch.states.writes]
    yield from (value for value in values if isinstance(value, Tensor))
