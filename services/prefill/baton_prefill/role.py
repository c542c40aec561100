"""The prefill role: compute a prompt, hold its pages for one reader."""

from __future__ import annotations

from baton.v1 import worker_pb2 as wire
from baton_engine import HandOver
from baton_worker import Goal, Role, wrong_plan
from baton_worker.checks import check_present


def goal_of(start: wire.StartRequest) -> Goal:
    """Raises Refusal for every plan but PrefillFor."""
    if start.WhichOneof("plan") != "prefill_for":
        raise wrong_plan(start, "prefill", "prefill_for")
    check_present(start.prefill_for.reader, "start.prefill_for.reader")
    return HandOver(start.prefill_for.reader)


PREFILL = Role("prefill", wire.WORKER_ROLE_PREFILL, goal_of)
