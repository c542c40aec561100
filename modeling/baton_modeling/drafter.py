"""The drafting layer of a model, compiled: guesses the token after next."""

from __future__ import annotations

import torch
from torch import Tensor

from baton_modeling.batch import ForwardBatch
from baton_modeling.binding import Binding, Step
from baton_modeling.compiler.explain import Explanation, explain
from baton_modeling.compiler.operations import Lowered
from baton_modeling.execution import Executable


class CompiledDrafter:
    """One rank's program of a multi-token-prediction layer (DeepSeek-V3, 2024, section 2.2).

    Its keys and values are one more layer of the model's own cache group, so whatever moves or
    reuses the model's pages moves and reuses the drafter's.
    """

    def __init__(self, program: Executable, lowered: Lowered, binding: Binding) -> None:
        self._program = program
        self._lowered = lowered
        self._binding = binding

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [L, vocab] of the token after next, and hidden states [T, hidden] to go on from.

        batch: the model's, but ``token_ids[t]`` is the token that follows the one at
        ``positions[t]``. hidden [T, hidden]: the model's for those positions, from
        ``CompiledModel.forward_hidden``, or this drafter's own when it drafts further.
        """
        step = Step(batch, self._binding.page_size)
        step.hidden = hidden
        logits = self._program.run(step)
        return logits, kept(step.hidden)

    def prepare(self, rows: int, pages: int) -> None:
        """As ``CompiledModel.prepare``."""
        self._program.prepare(rows, pages)

    def forget(self) -> None:
        """Drop what was prepared on the cache that another one replaces."""
        self._program.forget()

    @property
    def bytes(self) -> int:
        """Device memory that execution holds between steps."""
        return self._program.bytes

    def explain(self) -> Explanation:
        """The program, as ``CompiledModel.explain``."""
        return explain(self._lowered, self._binding.mesh, self._binding.dtype.itemsize)


def kept(hidden: Tensor | None) -> Tensor:
    """The hidden states that a program has kept in its step."""
    if hidden is None:
        raise ValueError(
            "this model keeps no hidden states; load it with Options(draft=True) to draft"
        )
    return hidden
