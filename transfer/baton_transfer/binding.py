"""Finds the installed NIXL wheel and loads its bindings, without torch.

`import nixl` imports torch when it cannot read a CUDA version off the
installed torch (a CPU build), so the wheels behind it are imported by name.
"""

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import version
from typing import Any


def _wheels() -> list[str]:
    torch = sys.modules.get("torch")
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    # The process's CUDA runtime must be the wheel's; without one any wheel serves DRAM.
    first = [f"nixl_cu{cuda.split('.')[0]}"] if cuda else []
    return [*first, *(name for name in ("nixl_cu13", "nixl_cu12") if name not in first)]


@cache
def wheel() -> str:
    """The import name of the wheel in use. ImportError when none is installed."""
    for name in _wheels():
        if importlib.util.find_spec(name) is not None:
            return name
    raise ImportError(
        f"no NIXL wheel found (looked for {', '.join(_wheels())}); "
        "install nixl, or nixl-cu12 without its dependencies where there is no torch"
    )


@cache
def load() -> Any:
    """NIXL's pybind11 module. ImportError when no wheel is installed."""
    return importlib.import_module(f"{wheel()}._bindings")


def nixl_version() -> str:
    """The version of the wheel in use."""
    return version(wheel().replace("_", "-"))
