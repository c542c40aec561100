"""What tells one role from the other: which plans it accepts, and what it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from baton.v1 import errors_pb2 as errors
from baton.v1 import worker_pb2 as wire
from baton_engine import Await, Generate, HandOver
from baton_rpc import Refusal

Goal = Await | Generate | HandOver


class GoalOf(Protocol):
    """Reads the plan of a StartRequest. Raises Refusal for a plan of the other role."""

    def __call__(self, start: wire.StartRequest) -> Goal: ...


@dataclass(frozen=True, slots=True)
class Role:
    """A role is data and one function; everything else is the same for both."""

    name: Literal["prefill", "decode"]
    wire: wire.WorkerRole
    goal_of: GoalOf


def wrong_plan(start: wire.StartRequest, role: str, accepted: str) -> Refusal:
    """The refusal of a plan that this role does not carry out, or of none at all."""
    plan = start.WhichOneof("plan")
    given = "no plan" if plan is None else f"the plan {plan}"
    return Refusal(
        errors.ERROR_REASON_MISSING_FIELD,
        f"a {role} worker got {given}; it accepts {accepted}",
        {"field": "start.plan", "value": plan or ""},
    )
