"""Cache groups: what the model keeps, how many pages of each there are, what the scheduler counts.

The scheduler's group 0 is the model's group of token pages; beside it a model may have one group of
recurrent states.
"""

from __future__ import annotations

import baton_scheduler as scheduling
from baton_engine.config import EngineConfig
from baton_modeling import CacheGroup, CacheLayout, GroupKind

# Snapshots are this many pages of tokens apart unless the operator says otherwise.
_SNAPSHOT_PAGES = 16


def token_group(layout: CacheLayout) -> CacheGroup:
    """The group whose pages hold tokens. ValueError when there is not exactly one."""
    groups = [group for group in layout.groups if group.kind is GroupKind.FULL]
    if len(groups) != 1:
        raise ValueError(
            f"the model keeps cache groups {[group.name for group in layout.groups]}; this build "
            f"serves models with exactly one group of token pages"
        )
    return groups[0]


def state_group(layout: CacheLayout) -> CacheGroup | None:
    """The group of recurrent states, None for a model without. ValueError for several."""
    groups = [group for group in layout.groups if group.kind is GroupKind.STATE]
    if len(groups) > 1:
        raise ValueError(
            f"the model keeps states in groups {[group.name for group in groups]}; this build "
            f"serves models with at most one"
        )
    return groups[0] if groups else None


def numbered_groups(layout: CacheLayout) -> tuple[CacheGroup, ...]:
    """All groups; the index is the number by which scheduler and transfer know a group."""
    states = state_group(layout)
    return (token_group(layout), *(() if states is None else (states,)))


def group_pages(layout: CacheLayout, config: EngineConfig) -> dict[str, int]:
    """Pages of each group's arena.

    ValueError for a layout that cannot be served, or for settings of states without a state.
    """
    pages = {token_group(layout).name: config.num_pages}
    states = state_group(layout)
    if states is not None:
        pages[states.name] = config.state_pages or 2 * config.max_running
    elif config.state_pages is not None or config.snapshot_every is not None:
        raise ValueError(
            "state_pages and snapshot_every are for models with a recurrent state, which this one "
            "does not have; leave them out"
        )
    return pages


def side_groups(layout: CacheLayout, config: EngineConfig) -> list[scheduling.CacheGroup]:
    """The scheduler's groups beside the token pages."""
    states = state_group(layout)
    if states is None:
        return []
    every = config.snapshot_every or _SNAPSHOT_PAGES * config.page_size
    return [
        scheduling.CacheGroup.state(every=every, pages=group_pages(layout, config)[states.name])
    ]
