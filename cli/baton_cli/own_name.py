"""How a person types `baton` here."""

import os
import sys
from pathlib import Path


def baton_as_typed() -> str:
    """`baton` in an activated environment, else the path that works from here."""
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return "baton"
    script = Path(sys.prefix) / "bin" / "baton"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)
