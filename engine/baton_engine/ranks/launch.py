"""Starting followers: as subprocesses of the worker, or as Ray actors on other machines."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from baton_engine.config import Launcher
from baton_engine.ranks.follower import follow
from baton_engine.ranks.frames import FrameSocket

_CONNECT_TIMEOUT_S = 120.0
_TOKEN_BYTES = 32


class FollowerHandle(Protocol):
    """One started follower, whoever started it."""

    @property
    def frames(self) -> FrameSocket: ...

    def exit_note(self) -> str:
        """How it ended, for an error message; empty when nothing is known."""

    def end(self, grace_s: float) -> None:
        """Wait for it to exit after STOP, then make it."""


class FollowerLauncher(Protocol):
    """Starts all followers of a worker. `host` is where they reach rank 0."""

    host: str

    def start(self, count: int) -> Sequence[FollowerHandle]: ...


def launcher(kind: Launcher) -> FollowerLauncher:
    """The launcher that the configuration names. ValueError when its package is missing."""
    return RayLauncher() if kind == "ray" else ProcessLauncher()


class ProcessLauncher:
    """Subprocesses on this machine, each joined to rank 0 by an inherited socket pair."""

    host = "127.0.0.1"

    def start(self, count: int) -> list[ProcessFollower]:
        """Call it from a thread that lives as long as the worker: the kernel kills a follower
        when the thread that started it ends."""
        return [ProcessFollower() for _ in range(count)]


class ProcessFollower:
    """One subprocess."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-m",
            "baton_engine.ranks",
            "--fd",
            str(theirs.fileno()),
        ]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ.copy())
        theirs.close()
        self.frames = FrameSocket(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_note(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "its process still runs"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def end(self, grace_s: float) -> None:
        try:
            self._process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.frames.close()


class RayLauncher:
    """Ray actors, one per follower, placed by Ray; each connects back to rank 0 by TCP."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "launcher: ray needs Ray; install baton-serve[ray] or set launcher: process"
            ) from error
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=True)
        self.host: str = self._ray.util.get_node_ip_address()

    def start(self, count: int) -> list[RayFollower]:
        """Raises TimeoutError when an actor did not connect back."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        with socket.create_server((self.host, 0)) as server:
            server.settimeout(_CONNECT_TIMEOUT_S)
            port = server.getsockname()[1]
            actor = self._ray.remote(max_restarts=0, num_cpus=1)(RayRank)
            actors = [actor.remote() for _ in range(count)]
            ends = [a.run.remote(self.host, port, token) for a in actors]
            sockets = [_accept(server, token) for _ in range(count)]
        # Ranks are given by who connected first; actors are interchangeable until HELLO.
        return [
            RayFollower(self._ray, ends, actors, FrameSocket(connection), connection is sockets[-1])
            for connection in sockets
        ]


def _accept(server: socket.socket, token: bytes) -> socket.socket:
    """The next connection that knows the token; others are dropped."""
    while True:
        connection, _ = server.accept()
        connection.settimeout(_CONNECT_TIMEOUT_S)
        said = connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL)
        if secrets.compare_digest(said, token):
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection.close()


class RayRank:
    """The actor: connects to rank 0 and follows."""

    def run(self, host: str, port: int, token: bytes) -> int:
        connection = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(token)
        return follow(FrameSocket(connection))


class RayFollower:
    """One of the actors' connections; the last one ends them all."""

    def __init__(
        self, ray: Any, ends: Sequence[Any], actors: Sequence[Any], frames: FrameSocket, last: bool
    ) -> None:
        self._ray, self._ends, self._actors, self._last = ray, ends, actors, last
        self.frames = frames

    def exit_note(self) -> str:
        return "its Ray actor ended; see Ray's logs"

    def end(self, grace_s: float) -> None:
        if self._last:
            self._ray.wait(list(self._ends), num_returns=len(self._ends), timeout=grace_s)
            for actor in self._actors:
                self._ray.kill(actor)
        self.frames.close()
