"""Child processes: their log files, their death, and ours."""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# In the child's environment: the process id without which it does not want to live.
PARENT_VARIABLE: Final = "BATON_PARENT"
MODULE: Final = "baton_cli.main"
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """One process of ours, writing to its own log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], log: Path) -> "Child":
        """Starts `python -m baton_cli.main ARGUMENTS` in a session of its own.

        Its own session, because Ctrl-C in the terminal is for us: we end the
        children in order. It follows us into death by PARENT_VARIABLE.
        """
        environment = {
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            PARENT_VARIABLE: str(os.getpid()),
        }
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                MODULE,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for its end and returns the exit code."""
        return await self._process.wait()

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL after `grace_s`. Returns the exit code."""
        if self.exit_code is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    return await self.wait()
            except TimeoutError:
                self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL, to its whole session: ranks of a worker are its children."""
        if self.exit_code is None:
            os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> list[str]:
        """The end of its log."""
        with self.log.open(errors="replace") as lines:
            return [line.rstrip() for line in deque(lines, maxlen=count)]


def exit_text(code: int) -> str:
    """`exit code 1`, `killed by SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def die_with_parent() -> None:
    """Makes the kernel send us SIGTERM when the parent that asked for it dies. Linux."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
