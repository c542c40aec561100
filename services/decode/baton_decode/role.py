"""The decode role: generate, from a prompt computed here or from pages handed over."""

from __future__ import annotations

from baton.v1 import worker_pb2 as wire
from baton_engine import Await, Generate
from baton_worker import Goal, Role, wrong_plan
from baton_worker.checks import check_present


def goal_of(start: wire.StartRequest) -> Goal:
    """Raises Refusal for every plan but Compute and AwaitPrefill."""
    match start.WhichOneof("plan"):
        case "compute":
            return Generate()
        case "await_prefill":
            prefill = start.await_prefill.prefill
            check_present(prefill.name and prefill.address, "start.await_prefill.prefill")
            return Await(prefill)
        case _:
            raise wrong_plan(start, "decode", "compute and await_prefill")


DECODE = Role("decode", wire.WORKER_ROLE_DECODE, goal_of)
