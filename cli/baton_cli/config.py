"""ClusterConfig: one tree for the whole cluster, made of the services' own models.

Each service owns the model of its section and is imported only when its
section is wanted: a router's process never loads a worker's configuration,
which may need torch.

What the sections have in common (the checkpoint, page size, who listens
where) is said once in the tree and handed to each section here. A section
that says it itself wins.
"""

import importlib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton_cli.addresses import free_ports
from baton_cli.faults import faults_of
from baton_cli.tree import ConfigError, Tree, override, read_tree

Role = Literal["router", "prefill", "decode", "kvstore", "gateway"]
ROLES: tuple[Role, ...] = ("router", "prefill", "decode", "kvstore")  # services of ours
WORKERS: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")

_MODELS: dict[Role, tuple[str, str]] = {
    "router": ("baton_router.config", "RouterConfig"),
    "prefill": ("baton_prefill.config", "PrefillConfig"),
    "decode": ("baton_decode.config", "DecodeConfig"),
    "kvstore": ("baton_kvstore.config", "KvstoreConfig"),
    "gateway": ("baton_cli.gateway", "GatewayConfig"),
}
# Where they listen when nobody says otherwise and nobody is there yet.
ROUTER_PORTS = {"listen": 7000, "metrics": 7001}
GATEWAY_PORTS = {"listen": 8000, "metrics": 8001}


def _one() -> list[dict[str, Any]]:
    return [{}]


class SpeculativeSection(BaseModel):
    """How tokens are guessed; both worker roles must agree, since pages hold the guesser's part."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["mtp"] = "mtp"  # the checkpoint's own multi-token-prediction layer
    tokens: int = Field(default=1, ge=1, le=64)  # guesses a step


class ModelSection(BaseModel):
    """The checkpoint that the whole cluster serves, and how its cache is cut."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    name: str = ""  # what clients call it; empty: the directory's name
    dtype: Literal["float32", "bfloat16"] = "float32"
    kv_cache_dtype: Literal["model", "bfloat16", "fp8"] = "model"
    page_size: int = Field(default=16, ge=1, le=1024)  # tokens
    speculative: SpeculativeSection | None = None  # null: one token a step


class ClusterConfig(BaseModel):
    """The tree. Sections stay as written until `section()` validates them with their owner."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSection
    # null: a cluster without; a list: replicas that share the pages between them
    kvstore: dict[str, Any] | list[dict[str, Any]] | None = Field(default_factory=dict)
    prefill: list[dict[str, Any]] = Field(default_factory=_one)
    decode: list[dict[str, Any]] = Field(default_factory=_one, min_length=1)
    router: dict[str, Any] = Field(default_factory=dict)
    gateway: dict[str, Any] | None = None  # null: clients speak baton.v1 only

    @classmethod
    def from_tree(cls, tree: Tree) -> "ClusterConfig":
        """Checks the tree's frame and names its workers. Raises ConfigError."""
        tree = deepcopy(tree)
        for role in WORKERS:
            if tree.get(role) is None and role in tree:
                tree[role] = []  # `prefill:` with nothing under it: none
        try:
            config = cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(faults_of(error, cls, "")) from error
        for role in WORKERS:
            for index, worker in enumerate(config.workers(role)):
                worker.setdefault("name", f"{role}-{index}")
        if isinstance(config.kvstore, list):
            for index, section in enumerate(config.kvstore):
                section.setdefault("name", f"kvstore-{index}")
        names = config.names()
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError([f"two processes are named {name!r}" for name in twice])
        return config

    def workers(self, role: Role) -> list[dict[str, Any]]:
        """The sections of a worker role, as written."""
        return self.prefill if role == "prefill" else self.decode

    def names(self) -> list[str]:
        """The names of all workers, prefill first, and of several kvstores."""
        workers = [str(worker["name"]) for role in WORKERS for worker in self.workers(role)]
        return [*workers, *(name for name in self.kvstore_names() if name is not None)]

    def kvstores(self) -> list[dict[str, Any]]:
        """The sections of all kvstores, as written."""
        if self.kvstore is None:
            return []
        return self.kvstore if isinstance(self.kvstore, list) else [self.kvstore]

    def kvstore_names(self) -> list[str | None]:
        """As `--name` says which; None for one that stands alone."""
        if isinstance(self.kvstore, list):
            return [str(section["name"]) for section in self.kvstore]
        return [] if self.kvstore is None else [None]

    def as_tree(self) -> Tree:
        """The tree with every default of its frame filled in."""
        return self.model_dump(mode="json")

    def choose_addresses(self) -> None:
        """Gives every section without `listen` or `metrics` a free port on this machine."""
        for section in self.kvstores():
            _listen(section)
        for role in WORKERS:
            for worker in self.workers(role):
                _listen(worker)
        _listen(self.router, ROUTER_PORTS)
        if self.gateway is not None:
            _listen(self.gateway, GATEWAY_PORTS)

    # ---- sections, validated by their owners

    def raw_section(self, role: Role, name: str | None = None) -> tuple[str, dict[str, Any]]:
        """A section as written, and its place in the tree. Raises ConfigError."""
        if role == "router":
            return "router", self.router
        if role == "kvstore":
            if not self.kvstores():
                raise ConfigError(["kvstore: this cluster has none (the section is null)"])
            if isinstance(self.kvstore, dict):
                return "kvstore", self.kvstore
        if role == "gateway":
            if self.gateway is None:
                raise ConfigError(["gateway: this cluster has none (the section is null)"])
            return "gateway", self.gateway
        sections = self.kvstores() if role == "kvstore" else self.workers(role)
        if name is None and len(sections) == 1:
            return f"{role}[0]", sections[0]
        for index, section in enumerate(sections):
            if section["name"] == name:
                return f"{role}[{index}]", section
        known = ", ".join(str(section["name"]) for section in sections) or "none"
        raise ConfigError([f"{role}: say which one with --name; this cluster has: {known}"])

    def section(self, role: Role, name: str | None = None) -> Any:
        """The section as an object of its owner's model. Raises ConfigError."""
        place, written = self.raw_section(role, name)
        model = _model(role)
        given = {key: value for key, value in self._shared(role).items() if key in _keys(model)}
        try:
            return model.model_validate({**given, **written})
        except ValidationError as error:
            faults = faults_of(error, model, place, hidden=given)
            raise ConfigError(faults) from error

    def check(self) -> None:
        """Validates every section. Raises ConfigError with the faults of all of them."""
        faults: list[str] = []
        roles: list[tuple[Role, str | None]] = [("router", None)]
        roles += [("kvstore", name) for name in self.kvstore_names()]
        if self.gateway is not None:
            roles.append(("gateway", None))
        roles += [(role, str(w["name"])) for role in WORKERS for w in self.workers(role)]
        for role, name in roles:
            try:
                self.section(role, name)
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults)

    def _shared(self, role: Role) -> dict[str, Any]:
        self._check_dialled(role)
        kvstores = [s.get("advertise") or s.get("listen") for s in self.kvstores()]
        if role == "gateway":
            return {"router": self.router["listen"]}
        if role == "router":
            return {
                "gateway": None if self.gateway is None else self.gateway.get("kind", "smg"),
                "model": {"path": self.model.path, "name": self.model.name},
                "workers": {role: [w["listen"] for w in self.workers(role)] for role in WORKERS},
                "kvstore": kvstores,
            }
        if role == "kvstore":
            return {"replicas": kvstores} if len(kvstores) > 1 else {}
        return {
            "model_path": self.model.path,
            "model": self.model.model_dump(),
            "dtype": self.model.dtype,
            "kv_cache_dtype": self.model.kv_cache_dtype,
            "page_size": self.model.page_size,
            "speculative": self.model.model_dump()["speculative"],
            "kvstore": kvstores,
        }

    def _check_dialled(self, role: Role) -> None:
        """Whom a process of this role dials must have an address in the tree."""
        if role == "gateway":
            dialled = {"router": self.router}
        else:
            dialled = {
                "kvstore" if isinstance(self.kvstore, dict) else f"kvstore[{index}]": section
                for index, section in enumerate(self.kvstores())
            }
        if role == "router":
            for worker_role in WORKERS:
                for index, worker in enumerate(self.workers(worker_role)):
                    dialled[f"{worker_role}[{index}]"] = worker
        faults = [
            f"{place}.listen: must be given, the {role} dials it"
            for place, section in dialled.items()
            if not place.startswith(role) and "listen" not in section
        ]
        if faults:
            raise ConfigError(faults)


def load(path: Path | None, overrides: list[str], given: Tree | None = None) -> ClusterConfig:
    """The configuration of a file (or of `given`), with `--set` on top. Raises ConfigError."""
    tree = read_tree(path) if path is not None else deepcopy(given or {})
    for assignment in overrides:
        override(tree, assignment)
    return ClusterConfig.from_tree(tree)


def _model(role: Role) -> type[BaseModel]:
    module, name = _MODELS[role]
    model = getattr(importlib.import_module(module), name)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"{module}.{name} is not a pydantic model")
    return model


def _keys(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def _listen(section: dict[str, Any], preferred: Mapping[str, int] | None = None) -> None:
    wanted = [key for key in ("listen", "metrics") if key not in section]
    liked = [preferred[key] for key in wanted] if preferred else []
    for key, port in zip(wanted, free_ports(len(wanted), liked), strict=True):
        section[key] = f"127.0.0.1:{port}"
