"""As test_cluster_faults, where every page is leased: readers as on another host."""

from __future__ import annotations

import pytest

from .test_cluster_faults import (
    test_a_stopped_worker_wakes_up_later,
    test_a_worker_killed_at_any_point_and_back_under_its_name,
    test_aborted_at_any_point,
)

__all__ = [
    "test_a_stopped_worker_wakes_up_later",
    "test_a_worker_killed_at_any_point_and_back_under_its_name",
    "test_aborted_at_any_point",
]

TRANSPORT = "local"
LISTS = False
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]
