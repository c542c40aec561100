"""As test_cluster_faults, with a model whose requests need a recurrent state beside their pages.

Every fault may leave tokens without the state that belongs to them: then the answer is computed
from a snapshot, or from the start, and is the same.
"""

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
LISTS = True
VARIANT = "qwen3_next"
pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(400)]
