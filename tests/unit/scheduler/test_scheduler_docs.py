"""The lifecycle in the documentation is the one the core was compiled with."""

from __future__ import annotations

from pathlib import Path

from baton_scheduler import Reply, fsm_mermaid, fsm_table, transitions

DOCS = Path(__file__).parents[3] / "docs" / "scheduler.md"


def test_the_documented_table_is_current() -> None:
    text = DOCS.read_text()
    assert fsm_table() in text, "docs/scheduler.md: paste `baton fsm`"
    assert fsm_mermaid() in text, "docs/scheduler.md: paste `baton fsm --format mermaid`"


def test_every_state_ends() -> None:
    """From every state some chain of accepted events leads to Finished, and nothing leaves it."""
    leads: dict[str, set[str]] = {}
    for state, _, reply, to in transitions():
        assert (reply is Reply.ACCEPTED) == (to is not None)
        leads.setdefault(state, set()).update({to} if to else set())
    assert not leads["Finished"]
    ending = {"Finished"}
    while more := {state for state, to in leads.items() if to & ending} - ending:
        ending |= more
    assert ending == set(leads)
