"""Fixtures for every room's tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings

# The same examples in every run, however slow the machine. To look for new ones:
# pytest --hypothesis-profile=search
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("same")

MakeCheckpoint = Callable[..., Path]


def _cached_checkpoint() -> MakeCheckpoint:
    # By path: tests are imported without putting the repository's root on sys.path.
    file = Path(__file__).parent / "checkpoints" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(MakeCheckpoint, module.cached_checkpoint)


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """``make_checkpoint(variant, size)``: a checkpoint directory, built once and cached."""
    return _cached_checkpoint()


@pytest.fixture(scope="session")
def deepseek_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """A tiny random ``deepseek_v3`` checkpoint: 2048 tokens, 3 layers, YaRN, grouped routing."""
    return make_checkpoint("deepseek_v3")


# What looks at values on the host. A captured step may do none of it.
LOOKS = (
    "tolist", "item", "numpy", "cpu", "nonzero", "unique",
    "__bool__", "__int__", "__index__", "__float__", "__array__",
)  # fmt: skip


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While steps are recorded and replayed (plain calls, without CUDA), looking at a value on the
    host raises. The list gets an entry for each call."""
    from torch import Tensor

    from baton_modeling.compiler.captured import PlainCalls

    calls: list[int] = []

    def record(self: PlainCalls, compute: Any) -> Any:
        def call() -> Any:
            calls.append(1)
            with pytest.MonkeyPatch.context() as patch:
                for name in LOOKS:
                    patch.setattr(Tensor, name, looked)
                return compute()

        call()
        return call

    def looked(*_: Any, **__: Any) -> Any:
        raise AssertionError("a captured step looked at a value on the host")

    monkeypatch.setattr(PlainCalls, "record", record)
    return calls
