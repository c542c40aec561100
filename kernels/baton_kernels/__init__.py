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

__all__ = [
    "Band",
    "KernelError",
    "Operator",
    "PagedRows",
    "Requirements",
    "ShapeRule",
    "Site",
    "Verdict",
    "as_text",
    "check_overrides",
    "environment_overrides",
    "explain_all",
    "load_plugins",
    "ops",
    "parse_overrides",
]
