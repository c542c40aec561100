"""What both workers share: the command stream, step reports, page holding, publishing.

`baton_worker.worker.serve_worker` is not imported here: it brings the engine and torch, which a
process that only checks a configuration does not want.
"""

from baton_worker.config import WorkerConfig
from baton_worker.role import Goal, Role, wrong_plan

__all__ = ["Goal", "Role", "WorkerConfig", "wrong_plan"]
