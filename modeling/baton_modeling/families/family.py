"""What a family gives the compiler, and how it reads a config strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from baton_modeling.cache import CacheLayout
from baton_modeling.description import CheckpointError
from baton_modeling.graph import Graph
from baton_modeling.mesh import Mesh


@dataclass(frozen=True)
class Drafting:
    """A model with its multi-token-prediction layer.

    graph: the model, keeping its hidden states. draft: the layer, with embedding and output head.
    cache: the layout with the layer's entries. skipped: as in FamilyModel.
    """

    graph: Graph
    draft: Graph
    cache: Callable[[Mesh], CacheLayout]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class FamilyModel:
    """A family applied to one config.

    cache: the layout of the cache on one rank of a mesh.
    skipped: regular expressions of checkpoint tensors that are left out knowingly.
    block: rows and columns per scale of weights stored in FP8; they are dequantised as read.
    drafting: the same with a drafting layer, for families that have one.
    """

    graph: Graph
    cache: Callable[[Mesh], CacheLayout]
    skipped: tuple[str, ...] = ()
    block: tuple[int, int] | None = None
    drafting: Drafting | None = None


class ConfigReader:
    """Typed access to a config.json; every refusal names the field and its value."""

    def __init__(self, family: str, config: Mapping[str, Any]) -> None:
        self.family = family
        self.config = config

    def whole(self, name: str, default: int | None = None) -> int:
        """A non-negative integer field."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refusal(name, "a non-negative integer is needed")
        return value

    def number(self, name: str, default: float) -> float:
        """A number field."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.refusal(name, "a number is needed")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean field."""
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false is needed")
        return value

    def require(self, name: str, *allowed: object) -> None:
        """Refuse any value of ``name`` but the allowed ones; an absent field is allowed."""
        value = self.config.get(name)
        if value is not None and value not in allowed:
            raise self.refusal(name, f"supported: {', '.join(map(repr, allowed)) or 'absent'}")

    def windows(self, default: Callable[[int], bool] | None = None) -> tuple[int, ...]:
        """The sliding window of every layer, 0 for full attention, from ``layer_types``.

        default: whether a layer slides where ``layer_types`` is absent.
        """
        layers = self.whole("num_hidden_layers")
        kinds = self.config.get("layer_types")
        if kinds is None:
            slides = [default is not None and default(layer) for layer in range(layers)]
        elif len(kinds) != layers or not {"full_attention", "sliding_attention"} >= set(kinds):
            raise self.refusal(
                "layer_types",
                f"supported: full_attention or sliding_attention for each of {layers} layers",
            )
        else:
            slides = [kind == "sliding_attention" for kind in kinds]
        window = self.whole("sliding_window", 0) if any(slides) else 0
        if any(slides) and window < 1:
            raise self.refusal("sliding_window", "layers that slide need a positive window")
        return tuple(window if each else 0 for each in slides)

    def packed(self, method: str) -> bool:
        """Whether the experts are packed by ``method``; refuses any other quantisation."""
        fields = self.config.get("quantization_config")
        if fields is not None and fields.get("quant_method") != method:
            raise self.refusal("quantization_config", f"supported: {method}, or plain weights")
        return fields is not None

    def quantisation(self) -> tuple[int, int] | None:
        """The block of an FP8 checkpoint's scales, None for plain weights; refuses the rest."""
        fields = self.config.get("quantization_config")
        if fields is None:
            return None
        block = fields.get("weight_block_size")
        if fields.get("quant_method") != "fp8" or fields.get("fmt", "e4m3") != "e4m3":
            raise self.refusal("quantization_config", "supported: fp8 in e4m3 with block scales")
        if not isinstance(block, list) or len(block) != 2 or min(block) < 1:
            raise self.refusal("quantization_config", "weight_block_size must be two sizes")
        return (int(block[0]), int(block[1]))

    def refusal(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.family}: config.json has {name} = {self.config.get(name)!r}; {why}"
        )
