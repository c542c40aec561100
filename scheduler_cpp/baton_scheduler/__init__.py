"""The request scheduler: a pure C++ state machine and its Python face.

The core owns request lifecycles, pages, prefix identities and leases; it has no clock, no I/O and
no threads. See docs/scheduler.md.
"""

from baton_scheduler._core import (
    Admission,
    Completion,
    Config,
    FinishReason,
    Goal,
    Lease,
    Reply,
    Role,
    RowKind,
    Scheduler,
    Stats,
    Step,
    Verdict,
    page_hashes,
    transitions,
)
from baton_scheduler.fsm import fsm_mermaid, fsm_table
from baton_scheduler.keys import cache_key

__all__ = [
    "Admission",
    "Completion",
    "Config",
    "FinishReason",
    "Goal",
    "Lease",
    "Reply",
    "Role",
    "RowKind",
    "Scheduler",
    "Stats",
    "Step",
    "Verdict",
    "cache_key",
    "fsm_mermaid",
    "fsm_table",
    "page_hashes",
    "transitions",
]
