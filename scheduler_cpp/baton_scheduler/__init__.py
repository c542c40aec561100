"""The request scheduler: a pure C++ state machine and its Python face.

The core owns request lifecycles, pages, prefix identities and leases; it has no clock, no I/O and
no threads. See docs/scheduler.md.
"""

from baton_scheduler._core import (
    Admission,
    CacheGroup,
    Completion,
    Config,
    FinishReason,
    Goal,
    Lease,
    PoolStats,
    Reply,
    Retention,
    Role,
    RowKind,
    Scheduler,
    Stats,
    Step,
    Verdict,
    in_group,
    page_hashes,
    transitions,
)
from baton_scheduler.fsm import fsm_mermaid, fsm_table
from baton_scheduler.keys import cache_key

__all__ = [
    "Admission",
    "CacheGroup",
    "Completion",
    "Config",
    "FinishReason",
    "Goal",
    "Lease",
    "PoolStats",
    "Reply",
    "Retention",
    "Role",
    "RowKind",
    "Scheduler",
    "Stats",
    "Step",
    "Verdict",
    "cache_key",
    "fsm_mermaid",
    "fsm_table",
    "in_group",
    "page_hashes",
    "transitions",
]
