"""The configuration tree as it is written: a YAML file, and `--set` on top of it."""

from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]


class ConfigError(Exception):
    """The configuration cannot be used; one line per fault, each naming its place."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing; this one speaks up."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError([f"line {key_node.start_mark.line + 1}: {key!r} is given twice"])
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_tree(path: Path) -> Tree:
    """Reads a YAML file whose top is a mapping. Raises ConfigError."""
    try:
        tree = yaml.load(path.read_text(), _Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: the top of a configuration is a mapping, not {_kind(tree)}"])
    return tree


def override(tree: Tree, assignment: str) -> None:
    """Applies one `a.b.0.c=value` in place; the value is read as YAML.

    Steps into mappings by key and into lists by index; an index one past the
    end appends, `prefill.*.tp=2` sets every entry.
    """
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError([f"--set {assignment}: write it as a.b=value"])
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"--set {assignment}: the value is not YAML: {error}"]) from error
    _assign(tree, keys, value, assignment)


def _assign(at: Any, keys: list[str], value: Any, assignment: str) -> None:
    key, rest = keys[0], keys[1:]
    if isinstance(at, list) and key == "*":
        for index in range(len(at)):
            _assign(at, [str(index), *rest], value, assignment)
        return
    place: Any = key
    if isinstance(at, list):
        if not key.isdigit() or int(key) > len(at):
            raise ConfigError(
                [f"--set {assignment}: {key!r} is no place in a list of {len(at)} (0 .. or *)"]
            )
        place = int(key)
        if place == len(at):
            at.append({})
    elif not isinstance(at, dict):
        raise ConfigError([f"--set {assignment}: {key!r} is inside {_kind(at)}, not a mapping"])
    if not rest:
        at[place] = value
        return
    if isinstance(at, dict) and at.get(place) is None:
        at[place] = {}
    _assign(at[place], rest, value, assignment)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "a mapping", str: "a text", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")


def dump_tree(tree: Tree) -> str:
    """The tree as YAML, in the order it was built."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
