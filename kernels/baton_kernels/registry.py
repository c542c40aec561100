"""Operators, their implementations, and the choice between them.

An *operator* is a typed function with a torch reference. *Implementations* register with what they
require; the choice is made once, where a model is compiled (``Operator.bind``), and the chosen
callable is then called directly: nothing here runs per step. Overrides say which implementation
to take for an operator; they are checked like any other choice and never bypass a requirement.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

OVERRIDE_VARIABLE = "BATON_KERNELS"
ENTRY_POINT_GROUP = "baton.kernels"


class KernelError(ValueError):
    """An override, a registration or a binding that cannot be satisfied."""


class Band(IntEnum):
    """Priority bands: among implementations whose requirements are met the highest wins."""

    REFERENCE = 0  # always runs, defines the result
    STATIC = 50  # anywhere, at a price: work by shapes alone, for captured steps
    PORTABLE = 100  # faster, anywhere the device type is right
    TUNED = 200  # written for a generation of hardware
    PLUGIN = 300  # installed on purpose by the operator of this machine


@dataclass(frozen=True)
class Site:
    """What is known where an operator is bound.

    shape: sizes by name as the operator documents them (``heads``, ``hidden``, ...).
    capability: CUDA compute capability, None on other devices.
    captured: what runs here is captured once and replayed, so it must not look at values.
    """

    device: str
    dtype: torch.dtype
    shape: Mapping[str, int] = field(default_factory=dict)
    capability: tuple[int, int] | None = None
    captured: bool = False

    @staticmethod
    def on(device: str | torch.device, dtype: torch.dtype, **shape: int) -> Site:
        """A site on a device of this machine, its capability looked up."""
        kind = torch.device(device)
        capability = torch.cuda.get_device_capability(kind) if kind.type == "cuda" else None
        return Site(kind.type, dtype, shape, capability)


@dataclass(frozen=True)
class ShapeRule:
    """A predicate on one named size: ``ShapeRule("rank", "a multiple of 16", lambda n: ...)``.

    default: the size where it is not named; None refuses such a site.
    """

    size: str
    text: str
    holds: Callable[[int], bool]
    default: int | None = None

    def unmet(self, site: Site) -> str | None:
        value = site.shape.get(self.size, self.default)
        if value is None:
            return f"{self.size} must be {self.text} and is not known here"
        return None if self.holds(value) else f"{self.size} is {value}, must be {self.text}"


@dataclass(frozen=True)
class Requirements:
    """What an implementation needs. An empty set of a kind means anything will do.

    packages: importable packages it needs (``triton``).
    """

    devices: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] = frozenset()
    min_capability: tuple[int, int] | None = None
    shapes: tuple[ShapeRule, ...] = ()
    packages: tuple[str, ...] = ()

    def unmet(self, site: Site) -> list[str]:
        """Every reason why the implementation cannot serve ``site``; empty when it can."""
        reasons = []
        if self.devices and site.device not in self.devices:
            reasons.append(f"device is {site.device}, needs {_either(self.devices)}")
        if self.dtypes and site.dtype not in self.dtypes:
            names = (str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            given = str(site.dtype).removeprefix("torch.")
            reasons.append(f"dtype is {given}, needs {_either(names)}")
        if self.min_capability and (site.capability or (0, 0)) < self.min_capability:
            reasons.append(f"needs compute capability {_dotted(self.min_capability)} or later")
        reasons += [text for rule in self.shapes if (text := rule.unmet(site))]
        reasons += [
            f"package {name} is not installed"
            for name in self.packages
            if importlib.util.find_spec(name) is None
        ]
        return reasons


def _either(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


@dataclass(frozen=True)
class Implementation(Generic[P, R]):
    """One way to compute an operator.

    reads_host: looks at values of its inputs on the host (a loop over the rows' contexts), so that
        it can neither be traced for a compiler nor captured in a CUDA graph.
    """

    name: str
    function: Callable[P, R]
    band: Band
    requirements: Requirements
    reads_host: bool = False

    def unmet(self, site: Site) -> list[str]:
        """Every reason why it cannot serve ``site``."""
        looks = ["reads values on the host, which a captured step cannot"]
        return self.requirements.unmet(site) + looks * (site.captured and self.reads_host)


@dataclass(frozen=True)
class Verdict:
    """Why an implementation was or was not chosen at a site."""

    operator: str
    implementation: str
    band: Band
    chosen: bool
    reason: str


class Operator(Generic[P, R]):
    """A typed operator. Calling it selects by the first tensor argument; ``bind`` selects once."""

    def __init__(
        self, reference: Callable[P, R], name: str | None = None, *, reads_host: bool = False
    ) -> None:
        self.name = name or reference.__name__
        self.reference = reference
        self.__doc__ = reference.__doc__
        self._generator: Callable[..., tuple[tuple[object, ...], dict[str, object]]] | None = None
        self._table: dict[str, Implementation[P, R]] = {
            "reference": Implementation(
                "reference", reference, Band.REFERENCE, Requirements(), reads_host
            )
        }

    def __repr__(self) -> str:
        return f"<operator {self.name}: {', '.join(self._table)}>"

    @property
    def implementations(self) -> Mapping[str, Implementation[P, R]]:
        return self._table

    def register(
        self,
        name: str,
        *,
        band: Band,
        requirements: Requirements | None = None,
        reads_host: bool = False,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorator that adds an implementation; its name must be new."""

        def add(function: Callable[P, R]) -> Callable[P, R]:
            if name in self._table:
                raise KernelError(f"operator {self.name} already has an implementation {name!r}")
            needs = requirements or Requirements()
            self._table[name] = Implementation(name, function, band, needs, reads_host)
            return function

        return add

    def explain(self, site: Site, overrides: Mapping[str, str] | None = None) -> list[Verdict]:
        """Every implementation with the reason for its being chosen or not, best first.

        Raises KernelError when an override names what does not exist or cannot run here.
        """
        wanted = (overrides or {}).get(self.name)
        if wanted is not None and wanted not in self._table:
            raise KernelError(
                f"operator {self.name} has no implementation {wanted!r}; "
                f"it has {', '.join(self._table)}"
            )
        ranked = sorted(self._table.values(), key=lambda each: -each.band)
        refused = {each.name: each.unmet(site) for each in ranked}
        if wanted is not None and refused[wanted]:
            raise KernelError(
                f"{self.name}={wanted} was asked for but cannot run here: "
                f"{'; '.join(refused[wanted])}"
            )
        able = [each.name for each in ranked if not refused[each.name]]
        if not able:
            reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in refused.items())
            raise KernelError(f"no implementation of {self.name} can run here: {reasons}")
        chosen = wanted or able[0]
        why = "asked for" if wanted else "highest band that can run here"
        return [
            Verdict(
                self.name,
                each.name,
                each.band,
                each.name == chosen,
                why if each.name == chosen else "; ".join(refused[each.name]) or "outranked",
            )
            for each in ranked
        ]

    def bind(self, site: Site, overrides: Mapping[str, str] | None = None) -> Callable[P, R]:
        """The implementation for ``site``, to be called directly from then on."""
        chosen = next(v for v in self.explain(site, overrides) if v.chosen)
        return self._table[chosen.implementation].function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first = next(
            value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
        )
        return self.bind(Site.on(first.device, first.dtype))(*args, **kwargs)

    def generator(self, make: Callable[..., tuple[tuple[object, ...], dict[str, object]]]) -> None:
        """Attach the input generator: ``make(seed, dtype, ...) -> (args, kwargs)``."""
        self._generator = make

    def inputs(
        self, *args: object, **kwargs: object
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Inputs from the operator's generator, for tests and benchmarks."""
        if self._generator is None:
            raise KernelError(f"operator {self.name} has no input generator")
        return self._generator(*args, **kwargs)


def parse_overrides(text: str) -> dict[str, str]:
    """``"rms_norm=reference,mla_decode=triton"`` as a mapping; KernelError on other forms."""
    overrides = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        operator, equals, implementation = item.partition("=")
        if not equals or not operator or not implementation:
            raise KernelError(f"{item!r} is not of the form operator=implementation")
        overrides[operator.strip()] = implementation.strip()
    return overrides


def check_overrides(
    overrides: Mapping[str, str], operators: Mapping[str, Operator[..., object]]
) -> None:
    """Raise KernelError for an override of an operator or implementation that does not exist."""
    for name, implementation in overrides.items():
        if name not in operators:
            raise KernelError(f"no operator {name!r}; the operators are {', '.join(operators)}")
        if implementation not in operators[name].implementations:
            raise KernelError(
                f"operator {name} has no implementation {implementation!r}; "
                f"it has {', '.join(operators[name].implementations)}"
            )


def environment_overrides() -> dict[str, str]:
    """Overrides from the variable BATON_KERNELS."""
    return parse_overrides(os.environ.get(OVERRIDE_VARIABLE, ""))


def load_plugins() -> list[str]:
    """Call every ``baton.kernels`` entry point, which registers its implementations.

    Returns their names. Raises KernelError naming the plugin that failed: a broken plugin was
    installed on purpose, so it is not passed over.
    """
    names = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()()
        except Exception as error:
            raise KernelError(f"kernel plugin {entry.name} ({entry.value}): {error}") from error
        names.append(entry.name)
    return names
