"""What an idle cluster costs: CPU seconds a second of each process, of one core.

    python bench/cluster/idle_cpu.py --model DIR [--seconds 30] [--most 0.05]

Starts a router, a kvstore with both tiers, a prefill and a decode worker, gives them one session
so that every connection and thread there is has been made, waits until they rest, and reads their
CPU time from /proc before and after. Ends with 1 when all together use more than `--most`.
CPU time, not wall time: others on the machine do not change the result much.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import yaml

from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from baton_rpc import channel, wait_until_healthy

_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that was free a moment ago, below those that outgoing connections take."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def listening(config: dict[str, Any]) -> list[str]:
    """Where every process serves, the router last."""
    parts = [config["kvstore"], *config["prefill"], *config["decode"], config["router"]]
    return [part["listen"] for part in parts]


def configuration(model: Path, disk: Path) -> dict[str, Any]:
    """A cluster of four processes on loopback ports."""

    def listen() -> dict[str, str]:
        return {key: f"127.0.0.1:{free_port()}" for key in ("listen", "metrics")}

    worker = {"num_pages": 512, "threads": 1}
    return {
        "model": {"path": str(model), "name": "idle", "dtype": "float32", "page_size": 16},
        "kvstore": {**listen(), "capacity_mb": 32, "nvme_path": str(disk), "nvme_mb": 64},
        "prefill": [{"name": "prefill-0", **listen(), **worker}],
        "decode": [{"name": "decode-0", **listen(), **worker}],
        "router": {**listen(), "routing": {"local_suffix_tokens": 0}},
    }


def start(path: Path, name: str) -> "subprocess.Popen[bytes]":
    role = name.split("-")[0]
    command = [sys.executable, "-m", "baton_cli.main", role, "--config", str(path)]
    command += ["--name", name] if role in ("prefill", "decode") else []
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def stop(processes: dict[str, "subprocess.Popen[bytes]"]) -> None:
    for process in reversed(list(processes.values())):
        process.send_signal(signal.SIGTERM)
    for process in processes.values():
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


async def all_serve(addresses: list[str]) -> None:
    for address in addresses:
        async with channel(address) as link:
            await wait_until_healthy(link, timeout_s=60.0)


def one_session(address: str) -> None:
    """Two turns through every process; the second one moves pages both ways."""
    with grpc.insecure_channel(address) as link:
        stub = inference_pb2_grpc.InferenceServiceStub(link)
        context = [random.Random(1).randrange(100, 200) for _ in range(100)]
        for _ in range(2):
            request = pb.GenerateRequest(
                stop=pb.StopParams(max_tokens=20, ignore_eos=True), session_id="s"
            )
            request.token_ids.ids.extend(context)
            for event in stub.Generate(request, timeout=60, wait_for_ready=True):
                context.extend(event.delta.token_ids)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def busiest(pid: int, before: dict[str, float], seconds: float) -> str:
    """The threads that used most, by name."""
    spent = {t: used - before.get(t, 0.0) for t, used in threads(pid).items()}
    top = sorted(spent.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {100 * used / seconds:.2f} %" for name, used in top if used)


def threads(pid: int) -> dict[str, float]:
    """CPU seconds by thread: name and id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        found[f"{name}/{task.name}"] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to look")
    parser.add_argument("--most", type=float, default=0.05, help="of one core, all together")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-idle-")))
        config = configuration(options.model.resolve(), directory / "nvme")
        path = directory / "cluster.yaml"
        path.write_text(yaml.safe_dump(config))
        processes: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(stop, processes)
        for name in ("kvstore", "prefill-0", "decode-0", "router"):
            processes[name] = start(path, name)
        asyncio.run(all_serve(listening(config)))
        one_session(config["router"]["listen"])
        time.sleep(5.0)
        first = {name: cpu_seconds(p.pid) for name, p in processes.items()}
        of_threads = {name: threads(p.pid) for name, p in processes.items()}
        begun = time.monotonic()
        time.sleep(options.seconds)
        seconds = time.monotonic() - begun
        total = 0.0
        for name, process in processes.items():
            share = (cpu_seconds(process.pid) - first[name]) / seconds
            total += share
            most = busiest(process.pid, of_threads[name], seconds)
            print(f"{name:10} {100 * share:5.2f} % of a core   ({most})")
        print(f"{'together':10} {100 * total:5.2f} %   (at most {100 * options.most:g} %)")
    return 0 if total <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
