"""How much of a prompt's transfer hides behind its prefill, and how soon decode begins after it.

    python bench/handover/overlap.py [--tokens 4096] [--chunk 256] [--rounds 5]

Two engines in two processes of this machine, joined by real KvPeer services and NIXL. Both read
the same clock (CLOCK_MONOTONIC). Per prompt:

    hidden   share of the pulls' time (lease to verdict) that lies before the end of prefill
    gap      end of prefill -> begin of the decode worker's first step, less the time of the last
             pull (the wire time of the last chunk)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop

from baton.v1.kv_pb2 import Peer
from baton_engine import Await, HandOver, Prefilled

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "checkpoints")]
from integration.engine_worker import EngineWorker, running  # noqa: E402
from make_checkpoint import cached_checkpoint  # noqa: E402


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of both engines: the prompt fits twice, so that no page is missing."""
    pages = 2 * -(-options.tokens // 16) + 64
    step = max(options.chunk, 16)
    return {"num_pages": pages, "max_chunk_tokens": options.chunk, "max_step_tokens": step}


async def prefill(options: argparse.Namespace) -> None:
    """The prefill worker's process: a request per line of stdin, the end of its prefill back."""
    reading = asyncio.get_running_loop().run_in_executor
    async with running(cached_checkpoint(), "prefill", **settings(options)) as worker:
        print(json.dumps({"address": worker.peer.address, "epoch": worker.peer.epoch}), flush=True)
        while line := await reading(None, sys.stdin.readline):
            asked = json.loads(line)
            goal = HandOver(asked["reader"])
            attempt = worker.submit(asked["name"], asked["prompt"], 4, goal=goal)
            await attempt.until(Prefilled, timeout=300.0)
            print(worker.told[-1], flush=True)
            await attempt.ended(timeout=60.0)


@dataclass(frozen=True)
class Figures:
    """Of one prompt, in seconds."""

    prefill_s: float  # asked -> prompt complete
    pulls_s: float  # all of them
    hidden: float  # share of it, 0 to 1
    gap_s: float
    last_pull_s: float


def figures(worker: EngineWorker, first: int, asked_at: float, prefilled_at: float) -> Figures:
    """From what the decode engine said since its step `first`."""
    pulls: list[tuple[float, float]] = []  # (begin, end)
    begun = None
    for told, step in zip(worker.told[first:], worker.steps[first:], strict=True):
        pulls += [(told - pull.seconds, told) for pull in step.pulls]
        if begun is None and step.times is not None and step.times.decode_rows:
            times = step.times
            took = times.plan_us + times.forward_us + times.sample_us + times.complete_us
            begun = told - took / 1e6
    if begun is None or not pulls:
        raise RuntimeError("the decode worker pulled nothing, or never decoded")
    total = sum(end - begin for begin, end in pulls)
    hidden = sum(max(0.0, min(end, prefilled_at) - begin) for begin, end in pulls)
    last = pulls[-1][1] - pulls[-1][0]
    gap = begun - prefilled_at - last
    return Figures(prefilled_at - asked_at, total, hidden / total, gap, last)


async def measure(options: argparse.Namespace, process: subprocess.Popen[str]) -> list[Figures]:
    """One prompt after another."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the prefill process has no pipes")
    loop = asyncio.get_running_loop()
    source = Peer(name="prefill-0", **json.loads(process.stdout.readline()))
    random = np.random.default_rng(3)
    results = []
    async with running(cached_checkpoint(), "decode", **settings(options)) as worker:
        for number in range(options.rounds + 1):
            prompt = random.integers(100, 2000, options.tokens).tolist()
            name, first, asked_at = f"p{number}", len(worker.steps), time.monotonic()
            attempt = worker.submit(name, prompt, 4, goal=Await(source))
            line = json.dumps({"name": name, "prompt": prompt, "reader": worker.peer.name})
            process.stdin.write(line + "\n")
            process.stdin.flush()
            prefilled_at = float(await loop.run_in_executor(None, process.stdout.readline))
            await attempt.ended(timeout=60.0)
            results.append(figures(worker, first, asked_at, prefilled_at))
    return results[1:]  # the first one connects


def report(options: argparse.Namespace, rounds: list[Figures]) -> str:
    """Medians."""
    middle = {
        name: median(getattr(one, name) for one in rounds) for name in Figures.__annotations__
    }
    return (
        f"{options.tokens} tokens in chunks of {options.chunk}: prefill {middle['prefill_s']:.2f} s"
        f", pulls {middle['pulls_s'] * 1e3:.1f} ms, {middle['hidden']:.0%} of it hidden "
        f"(wanted: 80%)\nprefill's end -> decode's first step: {middle['gap_s'] * 1e3:.1f} ms "
        f"(wanted: 20), and {middle['last_pull_s'] * 1e3:.1f} ms of the last pull\n"
        f"load while this ran: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prefill:
        uvloop.run(prefill(options))
        return
    process = subprocess.Popen(
        [sys.executable, *sys.argv, "--prefill"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        print(report(options, uvloop.run(measure(options, process))))
        if process.stdin is not None:
            process.stdin.close()


if __name__ == "__main__":
    main()
