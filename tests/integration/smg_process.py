"""SMG by itself, over workers of a test's choice; ended by its process id."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cluster import free_ports


@contextmanager
def running_smg(directory: Path, *arguments: str) -> Iterator[str]:
    """Yields its URL once it has found a worker."""
    port, metrics = free_ports(2)
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics),
        "--worker-startup-check-interval", "1", "--shutdown-grace-period-secs", "2", *arguments,
    ]  # fmt: skip
    log = directory / "smg.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while get(f"{url}/readiness") != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"smg is not ready:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(url: str) -> int:
    """The HTTP status; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """(HTTP status, the answer's JSON)."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
