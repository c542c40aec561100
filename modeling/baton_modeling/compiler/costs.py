"""What collectives cost: the table by which the compiler chooses between equivalent ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CollectiveCost:
    """Time of one collective: a fixed latency and a rate for the bytes each rank puts on a wire."""

    latency_us: float
    gigabytes_per_s: float

    def __post_init__(self) -> None:
        if self.latency_us < 0 or self.gigabytes_per_s <= 0:
            raise ValueError(
                f"a collective of {self.latency_us} us and {self.gigabytes_per_s} GB/s cannot be; "
                "the latency must not be negative and the rate must be positive"
            )


# Bytes a rank sends per byte of the whole tensor, ring algorithms over n ranks; for an all_to_all
# per byte of what one rank gives, with equal shares for everybody.
_WIRE: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
}
COLLECTIVES = tuple(_WIRE)


@dataclass(frozen=True)
class CostTable:
    """Costs by collective. ``tokens`` is the step size for which alternatives are compared."""

    costs: Mapping[str, CollectiveCost] = field(
        # Gloo between processes of one machine: calls dominate. reduce_scatter is an all_reduce
        # there (see GlooComm), so it is given twice the bytes.
        default_factory=lambda: {
            "all_reduce": CollectiveCost(150.0, 1.5),
            "reduce_scatter": CollectiveCost(160.0, 0.75),
            "all_gather": CollectiveCost(150.0, 1.5),
            "all_to_all": CollectiveCost(250.0, 1.0),
        }
    )
    tokens: int = 64

    def __post_init__(self) -> None:
        missing = [name for name in COLLECTIVES if name not in self.costs]
        if missing:
            raise ValueError(f"the cost table lacks {', '.join(missing)}")
        unknown = [name for name in self.costs if name not in COLLECTIVES]
        if unknown:
            raise ValueError(
                f"the cost table has {', '.join(unknown)}; the collectives are "
                f"{', '.join(COLLECTIVES)}"
            )
        if self.tokens < 1:
            raise ValueError(f"the cost table is for {self.tokens} tokens; it must be at least 1")

    def microseconds(self, collective: str, whole_bytes: int, ranks: int) -> float:
        """Time of ``collective`` over a tensor of ``whole_bytes``.

        That is the summed or gathered size, for an all_to_all what one rank gives.
        """
        cost = self.costs[collective]
        return cost.latency_us + wire_bytes(collective, whole_bytes, ranks) / (
            cost.gigabytes_per_s * 1e3
        )


def wire_bytes(collective: str, whole_bytes: int, ranks: int) -> float:
    """Bytes each rank sends in a ring ``collective`` over ``ranks`` ranks."""
    return whole_bytes * _WIRE[collective](ranks)
