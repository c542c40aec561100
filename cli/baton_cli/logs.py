"""How a service process writes its log."""

import logging
import sys
import time


def log_to_stderr(level: str) -> None:
    """One line a record, UTC, with the logger's name."""
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname).1s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
