"""A network namespace joined to ours by one cable that can be cut."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_counter = itertools.count()


def why_not() -> str:
    """Why there can be none here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command"
    tried = subprocess.run(["ip", "netns", "add", _name()], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    _ip("netns", "del", _name())
    return ""


def _name() -> str:
    return f"baton-{os.getpid()}"


@dataclass(frozen=True)
class Namespace:
    """`address` is its end of the cable."""

    name: str
    cable: str  # our end
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """Before a command that is to run there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Nothing passes, and nobody is told."""
        # The far end goes down; ours stays up, so that no local error gives the cut away.
        _ip("-n", self.name, "link", "set", "cable", "down")

    def mend(self) -> None:
        """As before."""
        _ip("-n", self.name, "link", "set", "cable", "up")

    def delay(self, milliseconds: int) -> str:
        """Delays everything; what is wrong when the kernel cannot."""
        command = ["ip", "netns", "exec", self.name, "tc", "qdisc", "add", "dev", "cable", "root"]
        command += ["netem", "delay", f"{milliseconds}ms"]
        return subprocess.run(command, capture_output=True, text=True).stderr.strip()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Made for a `with` block."""
    number = next(_counter)
    name, cable = f"{_name()}-{number}", f"bt{os.getpid() % 100_000}-{number}"
    subnet = f"10.77.{os.getpid() % 200 + number % 50}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", name)
        _ip("addr", "add", f"{subnet}.1/24", "dev", cable)
        _ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "cable")
        _ip("link", "set", cable, "up")
        for end in ("cable", "lo"):
            _ip("-n", name, "link", "set", end, "up")
        yield Namespace(name, cable, f"{subnet}.2")
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
