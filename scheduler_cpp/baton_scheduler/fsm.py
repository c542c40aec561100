"""The request lifecycle as text, printed from the table that the core was compiled with."""

from __future__ import annotations

from baton_scheduler._core import Reply, transitions

_MARKS = {Reply.IGNORED: "ignored", Reply.REJECTED: "·"}


def fsm_table() -> str:
    """Markdown, a row for each event: the state it leads to, `ignored`, or `·` for rejected."""
    cells = transitions()
    states = list(dict.fromkeys(state for state, _, _, _ in cells))
    events = list(dict.fromkeys(event for _, event, _, _ in cells))
    entry = {(s, e): f"**{to}**" if to else _MARKS[reply] for s, e, reply, to in cells}
    lines = [
        "| event | " + " | ".join(states) + " |",
        "|---" * (len(states) + 1) + "|",
    ]
    lines += [
        f"| {event} | " + " | ".join(entry[state, event] for state in states) + " |"
        for event in events
    ]
    return "\n".join(lines) + "\n"


def fsm_mermaid() -> str:
    """A mermaid state diagram of the accepted cells; events with the same ends share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, event, _, to in transitions():
        if to is not None:
            arrows.setdefault((state, to), []).append(event)
    lines = ["stateDiagram-v2", "    [*] --> Queued"]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    lines.append("    Finished --> [*]")
    return "\n".join(lines) + "\n"
