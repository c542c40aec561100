"""Operators: public API (``ops``), registry, references and implementations."""

from baton_kernels import ops
from baton_kernels.listing import as_text, explain_all
from baton_kernels.paging import PagedRows
from baton_kernels.registry import (
    Band,
    KernelError,
    Operator,
    Requirements,
    ShapeRule,
    Site,
    Verdict,
    check_overrides,
    environment_overrides,
    load_plugins,
    parse_overrides,
)
from baton_kernels.states import NO_STATE, StateRows

__all__ = [
    "Band",
    "KernelError",
    "NO_STATE",
    "Operator",
    "PagedRows",
    "Requirements",
    "ShapeRule",
    "Site",
    "StateRows",
    "Verdict",
    "as_text",
    "check_overrides",
    "environment_overrides",
    "explain_all",
    "load_plugins",
    "ops",
    "parse_overrides",
]
