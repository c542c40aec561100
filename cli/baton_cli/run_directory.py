"""Where a cluster that we start keeps its logs and the configuration it ran with."""

import datetime
import os
import shutil
from pathlib import Path

RUNS = Path(".baton")
KEPT_RUNS = 20


def new_run_directory(root: Path = RUNS) -> Path:
    """`.baton/run-DATE-TIME-PID/`, empty. The oldest ones make room."""
    root.mkdir(parents=True, exist_ok=True)
    runs = sorted(path for path in root.glob("run-*") if path.is_dir())
    for old in runs[: max(0, len(runs) - KEPT_RUNS + 1)]:
        shutil.rmtree(old)
    now = datetime.datetime.now(tz=datetime.UTC).astimezone()
    run = root / f"run-{now:%Y%m%d-%H%M%S}-{os.getpid()}"
    run.mkdir()
    return run
