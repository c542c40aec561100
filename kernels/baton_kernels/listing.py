"""What `baton kernels` prints: every implementation of every operator, and why it was taken."""

from __future__ import annotations

from collections.abc import Mapping

from baton_kernels.ops import OPERATORS
from baton_kernels.registry import Site, Verdict, check_overrides, environment_overrides


def explain_all(site: Site, overrides: Mapping[str, str] | None = None) -> list[Verdict]:
    """Verdicts for all operators at ``site``; overrides default to the variable BATON_KERNELS.

    Raises KernelError for an override that does not exist or cannot run there.
    """
    overrides = environment_overrides() if overrides is None else overrides
    check_overrides(overrides, OPERATORS)
    return [
        verdict for operator in OPERATORS.values() for verdict in operator.explain(site, overrides)
    ]


def as_text(verdicts: list[Verdict]) -> str:
    """One line a verdict, the chosen ones marked."""
    rows = [
        ("*" if v.chosen else " ", v.operator, v.implementation, v.band.name.lower(), v.reason)
        for v in verdicts
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        " ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )
