"""What `baton doctor` says about moving pages: settings, transports, measured throughput."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baton_transfer import binding
from baton_transfer.agent import Agent, AgentError
from baton_transfer.arena import PageArena
from baton_transfer.exporter import Exporter
from baton_transfer.outcome import ReadOutcome
from baton_transfer.page_file import PageFile
from baton_transfer.reader import PageReader
from baton_transfer.ucx import SETTINGS, Transport, configure_ucx, progress_delay_us

_PAGE_BYTES, _PAGES, _ROUNDS = 64 << 10, 512, 3


@dataclass(frozen=True, slots=True)
class Loopback:
    """Pages read by one agent out of another one of this process, checksums verified."""

    gb_per_s: float  # best of a few rounds
    one_page_us: float  # best of a few reads, thread hand-over included


def measure_loopback() -> Loopback:
    """Takes about a second. Raises RuntimeError when the read fails."""
    source = PageArena.allocate(page_bytes=_PAGE_BYTES, num_pages=_PAGES)
    source.pages[:] = np.random.default_rng(0).integers(0, 256, source.pages.shape, np.uint8)
    target = PageArena.allocate(page_bytes=_PAGE_BYTES, num_pages=_PAGES)
    order = np.random.default_rng(1).permutation(_PAGES).astype(np.int32)
    exporter = Exporter("doctor", time.time_ns(), [source])
    reader = PageReader("doctor-reader", target)
    try:
        memory = exporter.exported.groups[0].SerializeToString()
        sums = source.checksums(order)
        slots = np.arange(_PAGES, dtype=np.int32)
        bulk = [_whole(reader.read(memory, order, slots, sums)) for _ in range(_ROUNDS)]
        single = [
            _whole(reader.read(memory, order[:1], slots[:1], sums[:1])) for _ in range(_ROUNDS)
        ]
    finally:
        reader.close()
        exporter.close()
    fastest = min(bulk, key=lambda outcome: outcome.seconds)
    return Loopback(
        fastest.moved_bytes / fastest.seconds / 1e9, min(o.seconds for o in single) * 1e6
    )


def examine(transport: Transport = Transport.LOCAL) -> Iterator[tuple[str, bool, str]]:
    """(topic, whether it is well, text) of everything there is to say."""
    settings = configure_ucx(transport)
    try:
        yield "nixl", True, f"{binding.nixl_version()} ({binding.wheel()})"
        agent = Agent("doctor-probe", progress_thread=False)
    except (ImportError, AgentError) as error:
        yield "nixl", False, str(error)
        return
    agent.destroy()
    chosen = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
    delay = progress_delay_us() / 1000
    yield (
        "ucx",
        True,
        f"transport {transport}: {chosen}; progress thread every {delay:g} ms, sync mode strict",
    )
    yield from _others(transport)
    try:
        loopback = measure_loopback()
    except RuntimeError as error:
        yield "loopback", False, f"{error}; is UCX_TLS={settings.get('UCX_TLS')} usable here?"
        return
    speed = f"{loopback.gb_per_s:.1f} GB/s in pages of 64 KiB"
    yield "loopback", True, f"{speed}, one page in {loopback.one_page_us:.0f} us, verified"
    yield _files()


def _others(used: Transport) -> Iterator[tuple[str, bool, str]]:
    """What the other transports would set; `transport` in a worker's section chooses."""
    for other in Transport:
        if other is used:
            continue
        settings = SETTINGS[other]
        differs = {k: v for k, v in settings.items() if v != SETTINGS[used].get(k)}
        shown = ", ".join(f"{name}={value}" for name, value in sorted(differs.items()))
        delay = progress_delay_us(settings["UCX_TLS"]) / 1000
        text = f"{shown}; progress thread every {delay:g} ms"
        if other is Transport.RDMA:
            devices = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
            text += f"; devices: {', '.join(devices) or 'none here'}"
        yield f"ucx, {other}", True, text


def _files() -> tuple[str, bool, str]:
    """Whether pages can be kept in files, and how: it depends on kernel and sandbox."""
    with tempfile.TemporaryDirectory(prefix="baton-doctor-") as directory:
        try:
            file = PageFile(Path(directory) / "pages.data", _PAGE_BYTES)
        except (AgentError, OSError) as error:
            return "page files", False, f"{error}; the kvstore's NVMe tier cannot run here"
        how = "direct" if file.direct else "through the page cache"
        queue = file.queue.name.lower()
        file.close()
    return "page files", True, f"NIXL POSIX by {queue}, {how} in {tempfile.gettempdir()}"


def _whole(outcome: ReadOutcome) -> ReadOutcome:
    if outcome.failure is not None:
        raise RuntimeError(f"reading from ourselves failed: {outcome.failure}: {outcome.detail}")
    return outcome
