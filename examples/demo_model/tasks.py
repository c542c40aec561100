"""Tasks in the closed world: what a user asks, turn by turn, and what is right.

A task is a conversation of a few requests about one world. Each request knows
the tool calls of a good agent (one round of calls after another; the calls of
a round are made in the same assistant turn), its answer, and the facts any
right answer must state. Everything follows from `(split, seed)`.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .names import Namer, Split
from .world import SYSTEM_PROMPT, World

Message = dict[str, Any]  # Hugging Face's form: role, content, tool_calls


@dataclass(frozen=True)
class Call:
    """A tool call."""

    name: str
    arguments: Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One thing the user asks for."""

    kind: str
    text: str
    rounds: tuple[tuple[Call, ...], ...]
    answer: str
    facts: tuple[str, ...]

    def answered_by(self, text: str) -> bool:
        """Does an answer state every fact? A fact is no part of a longer word or number."""
        return all(
            re.search(rf"(?<![\w-]){re.escape(fact)}(?![\w-])", text) is not None
            for fact in self.facts
        )


@dataclass(frozen=True)
class Task:
    """A conversation to be had in `world`; afterwards its notes should be `notes_after`."""

    split: Split
    seed: int
    world: World
    requests: tuple[Request, ...]
    notes_after: Mapping[str, str]

    def reference(self) -> list[Message]:
        """The conversation of a good agent."""
        world = copy.deepcopy(self.world)
        messages: list[Message] = [{"role": "system", "content": SYSTEM_PROMPT}]
        for request in self.requests:
            messages.append({"role": "user", "content": request.text})
            for calls in request.rounds:
                messages.append(call_message([(c.name, c.arguments) for c in calls]))
                messages += [
                    {"role": "tool", "content": world.call(c.name, c.arguments)} for c in calls
                ]
            messages.append({"role": "assistant", "content": request.answer})
        return messages


def call_message(calls: list[tuple[str, Mapping[str, Any]]]) -> Message:
    """The assistant message that makes these calls."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
            for name, arguments in calls
        ],
    }


@dataclass
class _Story:
    """A task while it is being made up."""

    rng: random.Random
    namer: Namer
    files: dict[str, str] = field(default_factory=dict)  # text by path
    notes: dict[str, str] = field(default_factory=dict)
    known: str = ""  # the file that the last request read, if it was one

    def file(self) -> str:
        return self.rng.choice(list(self.files))

    def number_file(self) -> str:
        return self.rng.choice([path for path, text in self.files.items() if text.isdigit()])

    def folder(self) -> str:
        return self.file().rpartition("/")[0]

    def files_in(self, folder: str) -> list[str]:
        return [path for path in self.files if path.startswith(folder + "/")]

    def phrase(self, *phrases: str) -> str:
        return self.rng.choice(phrases)


def make_task(split: Split | str, seed: int, requests: int | None = None) -> Task:
    """The task of a seed, with two to four requests unless their number is given."""
    split = Split(split)  # a plain string does as well
    rng = random.Random(f"{split}/{seed}")
    story = _Story(rng, Namer(split, rng))
    _furnish(story)
    world = World(dict(story.files), dict(story.notes))
    count = rng.randint(2, 4) if requests is None else requests
    asked = tuple(_next_request(story) for _ in range(count))
    return Task(split, seed, world, asked, dict(story.notes))


def _furnish(story: _Story) -> None:
    for files in story.namer.tree_shape():
        folder = "/" + story.namer.name("directory")
        for _ in range(files):
            # The first file has a number, so that there is one.
            number = not story.files or story.rng.random() < 0.5
            text = str(story.namer.number()) if number else story.namer.name("value")
            story.files[f"{folder}/{story.namer.name('file')}.txt"] = text
    for _ in range(story.rng.randint(1, 3)):
        story.notes[story.namer.name("note")] = story.namer.name("value")


def _next_request(story: _Story) -> Request:
    if story.known and story.rng.random() < 0.25:
        return _again(story)
    story.known = ""
    kinds, weights = zip(*_KINDS.items(), strict=True)
    make: Callable[[_Story], Request] = story.rng.choices(kinds, weights)[0]
    return make(story)


# ---- the kinds of requests


def _read(story: _Story) -> Request:
    path = story.known = story.file()
    text = story.phrase(f"What does {path} say?", f"Read {path}.")
    return _reading("read", text, path, story, (Call("read_file", {"path": path}),))


def _reading(kind: str, text: str, path: str, story: _Story, *rounds: tuple[Call, ...]) -> Request:
    value = story.files[path]
    return Request(kind, text, rounds, f'{path} says "{value}".', (path, value))


def _again(story: _Story) -> Request:
    text = story.phrase("What did it say?", "Tell me again.")
    return _reading("again", text, story.known, story)


def _read_missing(story: _Story) -> Request:
    path = f"{story.folder()}/{story.namer.name('file')}.txt"
    call = Call("read_file", {"path": path})
    text = story.phrase(f"What does {path} say?", f"Read {path}.")
    answer = f"There is no file {path}."
    return Request("read_missing", text, ((call,),), answer, ("no file", path))


def _list(story: _Story) -> Request:
    folder = story.folder()
    names = [path.removeprefix(folder + "/") for path in story.files_in(folder)]
    text = story.phrase(f"List the files in {folder}.", f"Which files are in {folder}?")
    listed = ", ".join(f'"{name}"' for name in names)
    call = Call("list_dir", {"path": folder})
    return Request("list", text, ((call,),), f"{folder} has {listed}.", tuple(names))


def _first_file(story: _Story) -> Request:
    folder = story.folder()
    path = story.known = story.files_in(folder)[0]
    text = story.phrase(
        f"What does the first file of {folder} say?", f"Read the first file of {folder}."
    )
    rounds = ((Call("list_dir", {"path": folder}),), (Call("read_file", {"path": path}),))
    return _reading("first_file", text, path, story, *rounds)


def _search(story: _Story) -> Request:
    path = story.file()
    value = story.files[path]
    text = story.phrase(f'Which file says "{value}"?', f'Find the file that says "{value}".')
    call = Call("search", {"query": value})
    return Request("search", text, ((call,),), f"It is {path}.", (path,))


def _calculate(story: _Story) -> Request:
    left, right = story.namer.number(), story.namer.number()
    expression = f"{left} + {right}"
    value = World().call("calc", {"expression": expression})
    text = story.phrase(f"What is {left} plus {right}?", f"Add {left} and {right}.")
    call = Call("calc", {"expression": expression})
    return Request("calculate", text, ((call,),), f"{expression} = {value}.", (value,))


def _combine(story: _Story) -> Request:
    first, second = story.number_file(), story.number_file()
    expression = f"{story.files[first]} + {story.files[second]}"
    value = World().call("calc", {"expression": expression})
    text = f"What is the number in {first} plus the number in {second}?"
    reads = (Call("read_file", {"path": first}), Call("read_file", {"path": second}))
    rounds = (reads, (Call("calc", {"expression": expression}),))
    return Request("combine", text, rounds, f"{expression} = {value}.", (value,))


def _write_note(story: _Story) -> Request:
    key, value = story.namer.name("note"), story.namer.name("value")
    story.notes[key] = value
    text = f'Save the note "{key}" with the text "{value}".'
    call = Call("write_note", {"key": key, "text": value})
    return Request("write_note", text, ((call,),), f'I saved the note "{key}".', (key,))


def _read_note(story: _Story) -> Request:
    key = story.rng.choice(list(story.notes))
    value = story.notes[key]
    text = story.phrase(f'What does the note "{key}" say?', f'Read the note "{key}".')
    call = Call("read_note", {"key": key})
    answer = f'The note "{key}" says "{value}".'
    return Request("read_note", text, ((call,),), answer, (key, value))


def _copy_to_note(story: _Story) -> Request:
    path = story.file()
    key = story.namer.name("note")
    value = story.notes[key] = story.files[path]
    text = story.phrase(
        f'Copy {path} to the note "{key}".', f'Save the text of {path} as the note "{key}".'
    )
    rounds = (
        (Call("read_file", {"path": path}),),
        (Call("write_note", {"key": key, "text": value}),),
    )
    return Request("copy_to_note", text, rounds, f'I saved the note "{key}".', (key,))


_KINDS: Final[dict[Callable[[_Story], Request], float]] = {
    _read: 3,
    _read_missing: 1,
    _list: 1.5,
    _first_file: 1.5,
    _search: 1.5,
    _calculate: 1.5,
    _combine: 2,
    _write_note: 1,
    _read_note: 1.5,
    _copy_to_note: 1.5,
}
