"""A real cluster for tests: every service its own process, ended by process id."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from baton.v1 import inference_pb2, inference_pb2_grpc

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
# A server that is still starting is asked again soon.
RECONNECT = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]


def free_ports(count: int) -> list[int]:
    """Ports free a moment ago, below the range that the kernel gives to outgoing connections.

    A port from that range could become somebody's local end before its server listens.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
    return ports


@dataclass(frozen=True)
class Shape:
    """What a test asks for: how many workers, of what kind."""

    prefill: int = 1
    decode: int = 1
    tp: int = 1
    page_size: int = 16
    num_pages: int = 512
    model: dict[str, Any] = field(default_factory=dict)  # further keys of its section
    routing: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    prefill_worker: dict[str, Any] = field(default_factory=dict)  # on top of `worker`
    limits: dict[str, Any] = field(default_factory=dict)  # the router's
    router: dict[str, Any] = field(default_factory=dict)  # further keys of its section
    kvstore: dict[str, Any] = field(default_factory=dict)
    kvstores: int = 1
    nvme_mb: int = 0  # of each kvstore's disk; none when 0
    gateway: bool = False  # SMG in front


@dataclass
class Answer:
    """One finished stream."""

    token_ids: list[int]
    text: str
    finished: inference_pb2.Finished
    token_times: list[float]

    @property
    def usage(self) -> inference_pb2.Usage:
        return self.finished.usage


class Cluster:
    """Router, kvstore, prefill and decode workers over one checkpoint."""

    def __init__(self, checkpoint: Path, directory: Path, shape: Shape) -> None:
        self.shape = shape
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.config = self._config(checkpoint)
        self.path = directory / "cluster.yaml"
        self.path.write_text(yaml.safe_dump(self.config))
        self._channel = grpc.insecure_channel(self.config["router"]["listen"])
        self.stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def _config(self, checkpoint: Path) -> dict[str, Any]:
        shape = self.shape
        names = [
            "router",
            *self.kvstores,
            *(f"prefill-{i}" for i in range(shape.prefill)),
            *(f"decode-{i}" for i in range(shape.decode)),
            *(["gateway"] if shape.gateway else []),
        ]
        ports = iter(free_ports(2 * len(names)))
        section: dict[str, dict[str, Any]] = {
            name: {"listen": f"127.0.0.1:{next(ports)}", "metrics": f"127.0.0.1:{next(ports)}"}
            for name in names
        }
        worker = {"tp": shape.tp, "num_pages": shape.num_pages, "threads": 1, **shape.worker}
        return {
            "model": {
                "path": str(checkpoint),
                "name": "test-model",
                "dtype": "float32",
                "page_size": shape.page_size,
                **shape.model,
            },
            "kvstore": [
                {"name": name, **section[name], **self._kvstore(name)} for name in self.kvstores
            ]
            if shape.kvstores > 1
            else {**section["kvstore"], **self._kvstore("kvstore")},
            "prefill": [
                {"name": name, **section[name], **worker, **shape.prefill_worker}
                for name in names
                if name.startswith("prefill")
            ],
            "decode": [
                {"name": name, **section[name], **worker}
                for name in names
                if name.startswith("decode")
            ],
            "router": {
                **section["router"],
                "routing": shape.routing,
                "limits": shape.limits,
                **shape.router,
            },
            "gateway": {**section["gateway"], "drain_s": 1} if shape.gateway else None,
        }

    def _kvstore(self, name: str) -> dict[str, Any]:
        disk: dict[str, Any] = {}
        if self.shape.nvme_mb:
            path = str(self.directory / f"{name}-disk")
            disk = {"nvme_path": path, "nvme_mb": self.shape.nvme_mb}
        return {"capacity_mb": 32, **disk, **self.shape.kvstore}

    @property
    def kvstores(self) -> list[str]:
        count = self.shape.kvstores
        return ["kvstore"] if count == 1 else [f"kvstore-{i}" for i in range(count)]

    # ---- processes

    def section(self, name: str) -> dict[str, Any]:
        """The configuration of one process."""
        if name in self.config and isinstance(self.config[name], dict):
            return dict(self.config[name])
        role = name.split("-")[0]
        return dict(next(part for part in self.config[role] if part["name"] == name))

    @property
    def workers(self) -> list[str]:
        return [part["name"] for part in (*self.config["prefill"], *self.config["decode"])]

    def start(self, names: Iterable[str] | None = None) -> None:
        """Starts the processes and waits until each reports SERVING.

        Of a whole cluster the router also knows every worker then: it serves as soon as it has
        one decode worker, and a request that comes before the others would take another route.
        """
        front = ["router", *(["gateway"] if self.shape.gateway else [])]
        wanted = list(names) if names is not None else [*self.kvstores, *self.workers, *front]
        for name in wanted:
            self._spawn(name)
        for name in wanted:
            self.wait_serving(name)
        if names is None:
            self._wait_until_all_are_known()

    def _wait_until_all_are_known(self) -> None:
        begun = time.monotonic()
        while (known := self.metrics("router")["baton_workers"]) < len(self.workers):
            if time.monotonic() - begun > READY_SECONDS:
                raise TimeoutError(f"the router knows {known:g} of the workers {self.workers}")
            time.sleep(0.02)

    def _spawn(self, name: str) -> None:
        role = name.split("-")[0]
        command = [sys.executable, "-m", "baton_cli.main", role, "--config", str(self.path)]
        if name != role:
            command += ["--name", name]
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait_serving(self, name: str, seconds: float = READY_SECONDS) -> float:
        """Waits for grpc.health.v1 SERVING; returns the seconds it took."""
        begun = time.monotonic()
        address = self.section(name)["listen"]
        if name == "gateway":
            return self._wait_http(f"http://{address}/readiness", begun + seconds) - begun
        with grpc.insecure_channel(address, options=RECONNECT) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() - begun < seconds:
                code = self.processes[name].poll()
                if code is not None:
                    raise RuntimeError(f"{name} exited with {code}:\n{self.log(name)[-4000:]}")
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
                except grpc.RpcError:
                    answer = None
                if answer is not None and answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return time.monotonic() - begun
                time.sleep(0.05)
        raise RuntimeError(f"{name} not serving after {seconds} s:\n{self.log(name)[-4000:]}")

    def _wait_http(self, url: str, deadline: float) -> float:
        while time.monotonic() < deadline:
            code = self.processes["gateway"].poll()
            if code is not None:
                raise RuntimeError(f"gateway exited with {code}:\n{self.log('gateway')[-4000:]}")
            try:
                with urllib.request.urlopen(url, timeout=1.0):
                    return time.monotonic()
            except OSError:  # not there yet, or 503
                time.sleep(0.05)
        raise RuntimeError(f"gateway not ready:\n{self.log('gateway')[-4000:]}")

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """kill -9, by process id."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=STOP_SECONDS)

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT; harmless to one that runs."""
        self.processes[name].send_signal(signal.SIGCONT)

    def revive(self, name: str) -> bool:
        """Resumes a process, or starts it again if it is dead; whether it was."""
        process = self.processes.get(name)
        if process is not None and process.poll() is None:
            self.resume(name)
            return False
        self.start([name])
        return True

    def stop(self) -> dict[str, int]:
        """SIGTERM to all, front door first; returns the exit codes."""
        self._channel.close()
        order = ["gateway", "router", *self.workers, *self.kvstores]
        codes: dict[str, int] = {}
        for name in [name for name in order if name in self.processes]:
            process = self.processes.pop(name)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                codes[name] = process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes

    # ---- requests

    def generate(
        self,
        prompt: list[int] | str,
        *,
        max_tokens: int = 16,
        timeout: float = 60.0,
        **fields: Any,
    ) -> Answer:
        """One request to its end; temperature 0, end-of-sequence ignored unless said otherwise."""
        return collect(
            self.stream(prompt, max_tokens=max_tokens, timeout=timeout, **fields),
        )

    def stream(
        self,
        prompt: list[int] | str,
        *,
        max_tokens: int = 16,
        timeout: float = 60.0,
        **fields: Any,
    ) -> Iterator[inference_pb2.GenerateResponse]:
        stop = inference_pb2.StopParams(max_tokens=max_tokens, ignore_eos=True)
        request = inference_pb2.GenerateRequest(
            sampling=fields.pop("sampling", inference_pb2.SamplingParams(temperature=0.0)),
            stop=fields.pop("stop", stop),
            **fields,
        )
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        call: Iterator[inference_pb2.GenerateResponse] = self.stub.Generate(
            request, timeout=timeout, wait_for_ready=True
        )
        return call

    def generate_all(self, prompts: list[list[int]], **fields: Any) -> list[Answer]:
        """All prompts at once."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.generate(prompt, **fields), prompts))

    # ---- what the processes say of themselves

    def metrics(self, name: str) -> dict[str, float]:
        """Every sample, by `name` summed over labels and by `name:label` for each last label."""
        url = f"http://{self.section(name)['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=5.0) as response:
            text = response.read().decode()
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                keys = [
                    sample.name,
                    *(f"{sample.name}:{label}" for label in sample.labels.values()),
                ]
                for key in keys:
                    totals[key] = totals.get(key, 0.0) + sample.value
        return totals

    def held_pages(self, name: str) -> float:
        """Pages of a worker, of all groups, that somebody holds: a request, a lease, a fetch."""
        totals = self.metrics(name)
        return sum(
            totals.get(f"baton_{pages}_pages:{state}", 0)
            for pages in ("pool", "group")
            for state in ("owned", "referenced")
        )


def collect(stream: Iterator[inference_pb2.GenerateResponse]) -> Answer:
    """Reads a stream to its end; checks that it is Accepted, Deltas, Finished."""
    token_ids: list[int] = []
    text = ""
    times: list[float] = []
    finished: inference_pb2.Finished | None = None
    accepted = False
    for response in stream:
        kind = response.WhichOneof("event")
        if kind == "accepted":
            if accepted:
                raise AssertionError("Accepted came twice")
            accepted = True
        elif kind == "delta":
            if not accepted:
                raise AssertionError("Delta came before Accepted")
            token_ids.extend(response.delta.token_ids)
            text += response.delta.text
            times.extend([time.monotonic()] * len(response.delta.token_ids))
        else:
            finished = response.finished
    if finished is None:
        raise AssertionError("the stream ended with OK and without Finished")
    return Answer(token_ids, text, finished, times)
