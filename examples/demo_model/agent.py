"""The agent loop: a model asks for tools, the world answers, until the user has an answer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tasks import Message, Request, Task, call_message
from .world import SYSTEM_PROMPT, World, invalid_call

MAX_ROUNDS = 6  # assistant turns per request


@dataclass(frozen=True)
class Turn:
    """What a model said: content, well-formed calls, and how much that took."""

    content: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    tokens: int

    def message(self) -> Message:
        """The turn as a message of the conversation."""
        if not self.calls:
            return {"role": "assistant", "content": self.content}
        return {**call_message(list(self.calls)), "content": self.content}


class Model(Protocol):
    """Something that continues conversations."""

    def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
        """The next assistant turn of each conversation, greedily."""


@dataclass
class Attempt:
    """A task while a model is at it."""

    task: Task
    world: World
    messages: list[Message]
    answers: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    rounds: int = 0
    invalid_calls: int = 0

    @classmethod
    def of(cls, task: Task) -> Attempt:
        """The beginning: the first request has been asked."""
        messages: list[Message] = [{"role": "system", "content": SYSTEM_PROMPT}]
        messages.append({"role": "user", "content": task.requests[0].text})
        return cls(task, copy.deepcopy(task.world), messages)

    @property
    def done(self) -> bool:
        """No request is left."""
        return len(self.answers) == len(self.task.requests)

    @property
    def calls(self) -> int:
        """Tool calls tried, well-formed or not."""
        return sum(len(turn.calls) for turn in self.turns) + self._malformed

    @property
    def _malformed(self) -> int:
        # A call that is not well-formed stays in the content, to the letter.
        return sum(turn.content.count("<tool_call>") for turn in self.turns)

    @property
    def bad_calls(self) -> int:
        """Calls that are malformed or do not fit the tools' schemas."""
        return self.invalid_calls + self._malformed

    def right(self) -> list[tuple[Request, bool]]:
        """The requests and whether each was answered rightly."""
        return [
            (request, request.answered_by(answer))
            for request, answer in zip(self.task.requests, self.answers, strict=True)
        ]

    @property
    def solved(self) -> bool:
        """Every answer is right and the notes are what they should be."""
        notes = self.world.notes == dict(self.task.notes_after)
        return notes and all(right for _, right in self.right())

    def take(self, turn: Turn) -> None:
        """Executes the turn's calls, or takes it as the answer and asks the next request."""
        self.turns.append(turn)
        self.messages.append(turn.message())
        self.rounds += 1
        for name, arguments in turn.calls:
            self.invalid_calls += invalid_call(name, arguments) is not None
            self.messages.append({"role": "tool", "content": self.world.call(name, arguments)})
        if turn.calls and self.rounds < MAX_ROUNDS:
            return
        self.answers.append(turn.content)
        self.rounds = 0
        if not self.done:
            text = self.task.requests[len(self.answers)].text
            self.messages.append({"role": "user", "content": text})


def attempt(model: Model, tasks: Sequence[Task]) -> list[Attempt]:
    """Lets the model work on all tasks side by side, to the end of each."""
    attempts = [Attempt.of(task) for task in tasks]
    while active := [a for a in attempts if not a.done]:
        turns = model.reply([a.messages for a in active])
        for one, turn in zip(active, turns, strict=True):
            one.take(turn)
    return attempts
