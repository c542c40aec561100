"""Reading a checkpoint: memory-mapped safetensors, only the slices this rank needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from baton_modeling.description import CheckpointError, weight_files
from baton_modeling.mesh import Mesh
from baton_modeling.weights import Source, Weight

log = logging.getLogger(__name__)

# Called after every tensor read: its name, and the part of this rank's reading that is done.
Progress = Callable[[str, float], None]


# What DeepSeek's FP8 checkpoints call the scales of "<layer>.weight".
SCALE_SUFFIX = "_scale_inv"


class CheckpointReader:
    """The tensors of a checkpoint by name. Use as a context manager; files are mapped, not read."""

    def __init__(
        self,
        checkpoint: Path,
        progress: Progress | None = None,
        block: tuple[int, int] | None = None,
    ) -> None:
        """block: rows and columns that share a scale where weights are stored in FP8."""
        self.checkpoint = checkpoint
        self.block = block
        self.progress = progress
        self.read: set[str] = set()
        self.expected = 0
        self.bytes = 0
        self._files: list[Any] = []
        self._home: dict[str, Any] = {}
        self._loaded: dict[Weight, Tensor] = {}

    def __enter__(self) -> Self:
        for file in weight_files(self.checkpoint):
            opened: Any = safe_open(str(file), framework="pt")
            opened.__enter__()
            self._files.append(opened)
            self._home.update(dict.fromkeys(opened.keys(), opened))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in self._files:
            opened.__exit__(kind, error, trace)
        self._loaded.clear()

    def load(self, weight: Weight, mesh: Mesh, dtype: torch.dtype, device: torch.device) -> Tensor:
        """This rank's part of ``weight``. Equal weights (tied ones) share one tensor."""
        if weight not in self._loaded:
            form = self.stored(weight)
            parts = form.local(mesh)
            self._loaded[weight] = self._joined(form, parts, form.dtype or dtype, device)
        return self._loaded[weight]

    def _joined(
        self,
        form: Weight,
        parts: list[tuple[Source, tuple[slice, ...]]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """The parts read one by one into their places, so that none is in memory twice.

        Always a copy: what is read uncut would keep the whole file mapped.
        """
        width = len(form.parts[0])
        sizes = [[part.stop - part.start for part in cut] for _, cut in parts]
        shape = list(sizes[0])
        shape[form.join] = sum(size[form.join] for size in sizes[:width])
        whole = torch.empty(len(parts) // width, *shape, dtype=dtype, device=device)
        for index, ((source, cut), size) in enumerate(zip(parts, sizes, strict=True)):
            group = index - index % width
            first = sum(each[form.join] for each in sizes[group:index])
            place = whole[index // width].narrow(form.join, first, size[form.join])
            place.copy_(self._slice(source, cut))
        return whole if form.stacked else whole[0]

    def stored(self, weight: Weight) -> Weight:
        """The form in which this checkpoint has ``weight``."""
        return weight.stored(self._home)

    def _slice(self, source: Source, cut: tuple[slice, ...]) -> Tensor:
        if source.name not in self._home:
            raise CheckpointError(f"{self.checkpoint} has no tensor {source.name}")
        view = self._home[source.name].get_slice(source.name)
        shape = tuple(view.get_shape())
        if shape != source.shape:
            raise CheckpointError(
                f"{source.name} has shape {list(shape)}, config.json asks for {list(source.shape)}"
            )
        tensor: Tensor = view[cut]
        self.read.add(source.name)
        self.bytes += tensor.numel() * tensor.element_size()
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = self._dequantised(tensor, source, cut)
        if self.progress is not None:
            self.progress(source.name, min(1.0, len(self.read) / max(1, self.expected)))
        return tensor

    def _dequantised(self, tensor: Tensor, source: Source, cut: tuple[slice, ...]) -> Tensor:
        """An FP8 slice times the scales of the blocks it touches, float32."""
        name = f"{source.name}{SCALE_SUFFIX}"
        if self.block is None or name not in self._home or tensor.dim() != 2:
            raise CheckpointError(
                f"{source.name} is stored in FP8, but "
                + (
                    f"there is no {name}"
                    if self.block
                    else "config.json has no quantization_config with weight_block_size"
                )
            )
        touched = tuple(
            slice(part.start // size, -(-part.stop // size))
            for part, size in zip(cut, self.block, strict=True)
        )
        scales: Tensor = self._home[name].get_slice(name)[touched]
        self.bytes += scales.numel() * scales.element_size()
        for dim, (part, size) in enumerate(zip(cut, self.block, strict=True)):
            first = part.start - part.start // size * size
            scales = scales.repeat_interleave(size, dim).narrow(dim, first, part.stop - part.start)
        return tensor.float() * scales.float()

    def refuse_unread(self, skipped: Sequence[str], declared: set[str]) -> None:
        """Raise CheckpointError if the checkpoint holds tensors the model does not know.

        skipped: regular expressions of names that are left out on purpose. declared: names the
        model reads on some rank.
        """
        known = [re.compile(pattern) for pattern in skipped]
        if self.block is not None:
            declared = declared | {f"{name}{SCALE_SUFFIX}" for name in declared}
        others = [name for name in self._home if name not in declared]
        unread = sorted(name for name in others if not any(p.fullmatch(name) for p in known))
        if unread:
            shown = ", ".join(unread[:4]) + (f" and {len(unread) - 4} more" if unread[4:] else "")
            raise CheckpointError(
                f"{self.checkpoint} holds tensors that this family does not use: {shown}; "
                "ignoring them would give wrong output"
            )
        if others:
            roots = sorted({name.split(".", 1)[0] for name in others})
            log.info(
                "%s: %d tensors are of no use to this text model as it is loaded and stay unread; "
                "they are in %s",
                self.checkpoint,
                len(others),
                ", ".join(roots),
            )
