"""What Baton's router costs under SMG: the same canned worker, with and without it in between.

    python bench/gateway/overhead.py [--requests 300] [--concurrency 8]

Three measurements in one run: SMG over the bare worker, SMG over the router over the same worker,
and both again, so that the run shows its own noise. CPU is user and system time of each process
(from /proc); per request is that of a one-token answer, per token the slope up to 65. Time to
first token is the median at concurrency 1, as the client sees it. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from baton_cli.addresses import free_ports

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "examples" / "demo_model" / "model"
FEW, MANY = 1, 65
PROMPT = "There is no file /blue-hill/red-fox.txt. " * 8
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Setup:
    """Who serves, by process id."""

    url: str
    pids: dict[str, int]

    def cpu(self) -> dict[str, float]:
        """Seconds of each process so far."""
        return {name: _cpu(pid) for name, pid in self.pids.items()}


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def process(name: str, command: list[str], directory: Path) -> Iterator[int]:
    """Yields its id; ended by it."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with (directory / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def setup(kind: str, directory: Path) -> Iterator[Setup]:
    """`bare` or `baton`."""
    directory.mkdir()
    worker, router, http_port, metrics = free_ports(4)
    smg = [
        sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(http_port),
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics),
        "--worker-urls", f"grpc://127.0.0.1:{worker if kind == 'bare' else router}",
        "--worker-startup-check-interval", "1", "--policy", "round_robin",
        "--shutdown-grace-period-secs", "1", "--log-level", "warn",
    ]  # fmt: skip
    canned = [sys.executable, str(HERE / "canned_worker.py"), str(MODEL), str(worker)]
    with process("worker", canned, directory) as worker_pid:
        pids = {"worker": worker_pid}
        if kind == "bare":
            with process("smg", smg, directory) as smg_pid:
                yield _ready(f"http://127.0.0.1:{http_port}", {**pids, "smg": smg_pid})
            return
        tree = {
            "model": {"path": str(MODEL), "name": "model"},
            "kvstore": None,
            "prefill": [],
            "decode": [{"name": "canned", "listen": f"127.0.0.1:{worker}"}],
            "router": {"listen": f"127.0.0.1:{router}", "gateway": "smg"},
        }
        config = directory / "cluster.yaml"
        config.write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-m", "baton_cli.main", "router", "--config", str(config)]
        with process("router", command, directory) as router_pid:
            with process("smg", smg, directory) as smg_pid:
                pids = {**pids, "router": router_pid, "smg": smg_pid}
                yield _ready(f"http://127.0.0.1:{http_port}", pids)


def _ready(url: str, pids: dict[str, int]) -> Setup:
    """Waits until a request is answered."""
    deadline = time.monotonic() + 60
    while True:
        try:
            first_token(url, FEW)
            return Setup(url, pids)
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def first_token(url: str, tokens: int) -> float:
    """Seconds to the first data of one streamed completion, read to its end."""
    body = {"model": "model", "prompt": PROMPT, "max_tokens": tokens, "stream": True}
    body["ignore_eos"] = True
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    begun = time.perf_counter()
    first: float | None = None
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if first is None and line.startswith(b"data:"):
                first = time.perf_counter() - begun
            if b'"error"' in line:
                raise ValueError(line.decode())
    if first is None:
        raise http.client.IncompleteRead(b"")
    return first


def cpu_of(at: Setup, requests: int, concurrency: int, tokens: int) -> dict[str, float]:
    """CPU seconds of each process for so many requests."""
    before = at.cpu()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(lambda _: first_token(at.url, tokens), range(requests)))
    return {name: seconds - before[name] for name, seconds in at.cpu().items()}


def measure(kind: str, directory: Path, requests: int, concurrency: int) -> None:
    """One line of the table for each process."""
    with setup(kind, directory) as at:
        cpu_of(at, requests // 4, concurrency, FEW)  # warm
        few = cpu_of(at, requests, concurrency, FEW)
        many = cpu_of(at, requests // 4, concurrency, MANY)
        waits = [first_token(at.url, FEW) for _ in range(requests // 2)]
        for name in ("smg", "router"):
            if name not in few:
                continue
            request = few[name] / requests
            token = (many[name] / (requests // 4) - request) / (MANY - FEW)
            print(
                f"{kind:6} {name:7} {1e3 * request:8.3f} {1e3 * token:8.4f}"
                + (f" {1e3 * statistics.median(waits):8.2f}" if name == "smg" else "")
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before; {options.requests} requests")
    print("path   process  ms/request  ms/token  TTFT ms")
    with tempfile.TemporaryDirectory() as directory:
        for run, kind in enumerate(("bare", "baton", "bare", "baton")):
            measure(kind, Path(directory) / str(run), options.requests, options.concurrency)


if __name__ == "__main__":
    main()
