"""`baton doctor`: what this machine has for Baton, and what is missing."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "fault"]

_PACKAGES = ("grpcio", "protobuf", "numpy", "tokenizers", "pydantic", "uvloop")
_WORKER_PACKAGES = ("torch", "safetensors", "nixl")
_MIN_SHM_BYTES = 256 << 20
_MIN_FILES = 1024
_PORTS = (7000, 7001)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    level: Level
    text: str


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has, and what is missing",
        description="Looks at versions, CPU, GPU, torch, NIXL's transports, shared memory and "
        "ports. Exit code 1 when something that Baton needs is missing.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the report."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fault": "[bold red]fault[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    found = list(findings())
    for finding in found:
        table.add_row(finding.topic, marks[finding.level], escape(finding.text))
    Console(highlight=False).print(table)
    return int(any(finding.level == "fault" for finding in found))


def findings() -> Iterator[Finding]:
    """Every finding; an examination that fails itself is a fault, not a traceback."""
    examinations: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _scheduler,
        _cpu,
        _torch,
        _transports,
        _shared_memory,
        _limits,
        _ports,
    )
    for examine in examinations:
        try:
            yield from examine()
        except Exception as error:  # noqa: BLE001 - a broken library may raise anything
            topic = examine.__name__.strip("_").replace("_", " ")
            yield Finding(topic, "fault", f"{type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    yield Finding("baton", "ok", importlib.metadata.version("baton-serve"))
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        yield Finding(name, "ok", importlib.metadata.version(name))
    for name in _WORKER_PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            text = "not installed; workers need it: pip install 'baton-serve[worker]'"
            yield Finding(name, "note", text)


def _scheduler() -> Iterator[Finding]:
    core = importlib.import_module("baton_scheduler._core")
    yield Finding("scheduler", "ok", f"C++ extension loads ({Path(str(core.__file__)).name})")


def _cpu() -> Iterator[Finding]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    usable = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    level: Level = "ok" if usable >= 2 else "note"
    yield Finding("cpu", level, f"{model}, {usable} usable cores, {memory / 2**30:.1f} GiB memory")


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("gpu", "note", "none that torch can use; workers run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size = f"{device.total_memory / 2**30:.0f} GiB"
        text = f"{device.name}, {size}, capability {device.major}.{device.minor}"
        yield Finding(f"gpu {index}", "ok", text)


def _transports() -> Iterator[Finding]:
    """NIXL and UCX, tried by a real read from one agent to another."""
    if importlib.util.find_spec("nixl") is None:
        return
    from baton_transfer.doctor import examine

    for topic, good, text in examine():
        yield Finding(topic, "ok" if good else "fault", text)


def _shared_memory() -> Iterator[Finding]:
    free = shutil.disk_usage("/dev/shm").free
    level: Level = "ok" if free >= _MIN_SHM_BYTES else "fault"
    need = "" if level == "ok" else f"; at least {_MIN_SHM_BYTES >> 20} MiB are wanted"
    yield Finding("/dev/shm", level, f"{free / 2**20:.0f} MiB free{need}")


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    level: Level = "ok" if files >= _MIN_FILES else "note"
    yield Finding("open files", level, f"at most {files}")
    ptrace = Path("/proc/sys/kernel/yama/ptrace_scope")
    if ptrace.exists() and ptrace.read_text().strip() not in ("0", "1"):
        text = "ptrace_scope forbids reading other processes: UCX falls back from cma to tcp"
        yield Finding("ptrace", "note", text)


def _ports() -> Iterator[Finding]:
    from baton_cli.addresses import is_free

    taken = [port for port in _PORTS if not is_free(f"127.0.0.1:{port}")]
    if taken:
        text = f"{', '.join(map(str, taken))} taken; `baton up` takes other ones for the router"
        yield Finding("ports", "note", text)
    else:
        yield Finding("ports", "ok", f"{', '.join(map(str, _PORTS))} free for the router")
