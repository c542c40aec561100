"""What the demonstration's agent is asked, and who executes its tool calls.

With the trained model, a held-out task of its closed world: the model's own
calls are executed. With any other checkpoint (a random one speaks gibberish)
a scripted story: the same machinery, results from the script.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

TURNS = 3
# A held-out conversation of the trained model's world with a search, a reading
# and a calculation in it.
DEFAULT_SEED = 279


class Story(Protocol):
    """A conversation to be had."""

    @property
    def live(self) -> bool:
        """Whether the model's own tool calls are executed."""

    @property
    def system(self) -> str: ...

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Each with name, description, parameters."""

    @property
    def questions(self) -> Sequence[str]: ...

    @property
    def max_tokens(self) -> int:
        """Of one answer."""

    def call(self, name: str, arguments_json: str) -> str:
        """Executes a tool call; mistakes are answered in words."""

    def scripted_call(self, turn: int) -> tuple[str, str] | None:
        """The call (name, arguments) to pretend in a turn, when the model's own do not count."""


def story_for(checkpoint: Path, seed: int | None) -> Story:
    """The story that fits a checkpoint: its own world when it lies beside it."""
    world = checkpoint.resolve().parent
    if (world / "tasks.py").is_file() and (world / "world.py").is_file():
        return TrainedStory(_package(world), DEFAULT_SEED if seed is None else seed)
    return ScriptedStory()


def _package(folder: Path) -> ModuleType:
    """Imports a package by its folder: examples are not installed."""
    name = f"baton_example_{folder.name}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class TrainedStory:
    """A held-out task of the trained model's world."""

    live = True
    max_tokens = 160

    def __init__(self, package: ModuleType, seed: int) -> None:
        world = importlib.import_module(f"{package.__name__}.world")
        tasks = importlib.import_module(f"{package.__name__}.tasks")
        self._task = tasks.make_task("held_out", seed, TURNS)
        self.system: str = world.SYSTEM_PROMPT
        self.tools = [tool["function"] for tool in world.TOOLS]
        self.requests = self._task.requests  # each knows whether an answer is right
        self.questions = [str(request.text) for request in self.requests]

    def call(self, name: str, arguments_json: str) -> str:
        """Executes the call in the task's world."""
        try:
            arguments = json.loads(arguments_json)
        except json.JSONDecodeError:
            return "error: arguments are not JSON"
        if not isinstance(arguments, dict):
            return "error: arguments are not an object"
        return str(self._task.world.call(name, arguments))

    def scripted_call(self, turn: int) -> None:
        """The model makes its own calls."""
        return


@dataclass(frozen=True)
class _Scene:
    question: str
    call: str
    arguments: Mapping[str, str]
    result: str


_SCENES = (
    _Scene(
        "Which file in /orders mentions the blue lamp?",
        "search",
        {"query": "blue lamp"},
        "/orders/0412.txt\n/orders/0533.txt",
    ),
    _Scene(
        "What did the first one cost?",
        "read_file",
        {"path": "/orders/0412.txt"},
        "item: blue lamp\nprice: 84\nstock: 12\nregion: north\nowner: Ida Brandt",
    ),
    _Scene("And all of the stock together?", "calc", {"expression": "84 * 12"}, "1008"),
)


class ScriptedStory:
    """Three questions whose tool calls and results are written down."""

    live = False
    max_tokens = 24
    system = (
        "You are an agent in a small file tree. You may search files, read them and calculate. "
        "Use a tool whenever the answer is not in the conversation yet, one call at a time, and "
        "answer in one sentence. Never invent a path, a price or a name: look it up. When nothing "
        "is found, say so, and say what you searched for."
    )
    tools = tuple(
        {
            "name": name,
            "description": text,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string"}},
                "required": [parameter],
            },
        }
        for name, text, parameter in (
            ("search", "Paths of the files that contain a text.", "query"),
            ("read_file", "Text of a file.", "path"),
            ("calc", "Value of an expression.", "expression"),
        )
    )
    questions = tuple(scene.question for scene in _SCENES)

    def call(self, name: str, arguments_json: str) -> str:
        """The result that the script has for the call."""
        for scene in _SCENES:
            if scene.call == name and dict(scene.arguments) == json.loads(arguments_json):
                return scene.result
        return "error: nothing found"

    def scripted_call(self, turn: int) -> tuple[str, str]:
        """The call that a sensible model would make in this turn."""
        scene = _SCENES[turn]
        return scene.call, json.dumps(dict(scene.arguments))
