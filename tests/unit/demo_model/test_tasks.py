"""Tasks: deterministic, disjoint between the splits, solved by their own reference."""

import json
import re
from collections.abc import Sequence

import pytest
from demo_model.agent import Turn, attempt
from demo_model.names import ADJECTIVES, NOUNS, Split, split_of
from demo_model.tasks import Message, Task, make_task

COUNT = 300
NAME = re.compile(r"\b[a-z]+-[a-z]+\b")


class Replay:
    """Says what the reference conversations say."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._references = {json.dumps(t.reference()[:2]): t.reference() for t in tasks}

    def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
        turns = []
        for conversation in conversations:
            said = self._references[json.dumps(list(conversation[:2]))][len(conversation)]
            calls = [call["function"] for call in said.get("tool_calls", ())]
            turns.append(
                Turn(said["content"], tuple((c["name"], c["arguments"]) for c in calls), 1)
            )
        return turns


def test_a_seed_is_a_task() -> None:
    for split in Split:
        assert make_task(split, 5) == make_task(split, 5)
        assert make_task(split, 5) != make_task(split, 6)
    assert make_task("held_out", 5) == make_task(Split.HELD_OUT, 5)


def test_a_number_of_requests_can_be_asked_for() -> None:
    assert {len(make_task(Split.TRAIN, seed).requests) for seed in range(40)} == {2, 3, 4}
    assert len(make_task(Split.HELD_OUT, 4, 3).requests) == 3


@pytest.mark.parametrize("split", list(Split))
def test_a_task_uses_only_things_of_its_split(split: Split) -> None:
    """Names, values, numbers and the tree's shape; so the two splits cannot meet."""
    for seed in range(COUNT):
        task = make_task(split, seed)
        folders: dict[str, int] = {}
        for path, text in task.world.files.items():
            _, folder, file = path.split("/")
            folders[folder] = folders.get(folder, 0) + 1
            assert split_of("directory", folder) is split
            assert split_of("file", file.removesuffix(".txt")) is split
            assert split_of("number" if text.isdigit() else "value", text) is split
        assert split_of("shape", "-".join(map(str, folders.values()))) is split
        for key in task.notes_after:
            assert split_of("note", key) is split


def test_the_splits_share_no_conversation_and_no_path() -> None:
    seen = {
        split: {path for seed in range(COUNT) for path in make_task(split, seed).world.files}
        for split in Split
    }
    assert not seen[Split.TRAIN] & seen[Split.HELD_OUT]


def test_both_splits_use_the_same_words() -> None:
    """A word that was never trained could not be copied."""
    for split in Split:
        texts: list[str] = []
        for seed in range(COUNT):
            texts += make_task(split, seed).world.files
        names = NAME.findall(" ".join(texts))
        assert {name.partition("-")[0] for name in names} == set(ADJECTIVES)
        assert {name.partition("-")[2] for name in names} == set(NOUNS)


@pytest.mark.parametrize("split", list(Split))
def test_the_reference_solves_its_task(split: Split) -> None:
    tasks = [make_task(split, seed) for seed in range(COUNT)]
    for finished in attempt(Replay(tasks), tasks):
        assert finished.solved
        assert finished.bad_calls == 0
        assert finished.messages == finished.task.reference()


def test_a_wrong_answer_does_not_solve_a_task() -> None:
    task = make_task(Split.HELD_OUT, 0)
    for request in task.requests:
        assert not request.answered_by("I do not know.")
        # A fact inside something longer is another fact.
        assert not request.answered_by(" ".join(f"{fact}9" for fact in request.facts))
        assert not request.answered_by(" ".join(f"9{fact}" for fact in request.facts))


def test_a_note_that_was_not_written_does_not_solve_a_task() -> None:
    class Liar(Replay):
        def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
            turns = super().reply(conversations)
            lies = [t.calls and t.calls[0][0] == "write_note" for t in turns]
            return [
                Turn("", (("calc", {"expression": "1 + 1"}),), 1) if lie else turn
                for turn, lie in zip(turns, lies, strict=True)
            ]

    tasks = [make_task(Split.HELD_OUT, seed) for seed in range(60)]
    writing = [
        task
        for task in tasks
        if any(
            call.name == "write_note"
            for r in task.requests
            for round_ in r.rounds
            for call in round_
        )
    ]
    assert writing
    assert not any(finished.solved for finished in attempt(Liar(writing), writing))


def test_an_agent_that_calls_for_ever_is_stopped() -> None:
    class Obsessed:
        def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
            return [Turn("", (("calc", {"expression": "1 + 1"}),), 1) for _ in conversations]

    (finished,) = attempt(Obsessed(), [make_task(Split.HELD_OUT, 1)])
    assert finished.done
    assert not finished.solved


def test_calls_that_are_not_calls_are_counted() -> None:
    class Sloppy:
        def reply(self, conversations: Sequence[Sequence[Message]]) -> list[Turn]:
            malformed = [Turn('<tool_call>\n{"name": "calc"\n</tool_call>', (), 1)]
            return malformed * len(conversations)

    task = make_task(Split.HELD_OUT, 1)
    (finished,) = attempt(Sloppy(), [task])
    assert finished.calls == finished.bad_calls == len(task.requests)
