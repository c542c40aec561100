"""Children: their death, ours, their logs, the cluster that they are."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from baton_cli import cluster as clusters
from baton_cli.addresses import free_ports, is_free
from baton_cli.cluster import Cluster, ClusterError, Member, death_report
from baton_cli.config import ClusterConfig
from baton_cli.processes import PARENT_VARIABLE, Child, exit_text
from baton_cli.run_directory import KEPT_RUNS, new_run_directory

# Stands in for a service: the same command line, health, SIGTERM. `fail` in its
# name makes it die at its start, `slow` keeps it from becoming healthy.
SERVICE = """
import asyncio, sys
from baton_cli.config import load
from baton_cli.processes import die_with_parent
from baton_rpc import Server, stop_signal
from pathlib import Path

async def serve(role, path, name):
    _, section = load(Path(path), []).raw_section(role, name)
    print("hello from", name or role, flush=True)
    if "fail" in (name or ""):
        raise SystemExit("no such checkpoint")
    server = Server(section["listen"], [])
    await server.start(serving="slow" not in (name or ""))
    await stop_signal().wait()
    await server.stop()

die_with_parent()
role, _, path, *rest = sys.argv[1:]
asyncio.run(serve(role, path, rest[1] if rest else None))
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_service.py").write_text(SERVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("baton_cli.processes.MODULE", "fake_service")


def cluster(tmp_path: Path, **sections: object) -> Cluster:
    config = ClusterConfig.from_tree({"model": {"path": "unused"}, **sections})
    config.choose_addresses()
    (tmp_path / "run").mkdir()
    return Cluster(config, tmp_path / "run")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("service")
async def test_a_cluster_starts_and_stops_in_order(tmp_path: Path) -> None:
    up = cluster(tmp_path)
    ready: list[str] = []
    stopped: list[tuple[str, int]] = []
    await up.start(30, lambda member: ready.append(member.name))
    assert sorted(ready) == ["decode-0", "kvstore", "prefill-0", "router"]
    assert up.can_serve()
    assert (up.run / "cluster.yaml").exists()
    await up.stop(lambda member, code: stopped.append((member.name, code)))
    assert stopped == [("router", 0), ("prefill-0", 0), ("decode-0", 0), ("kvstore", 0)]
    assert not up.can_serve()


@pytest.mark.usefixtures("service")
async def test_a_child_that_fails_at_its_start_is_shown_with_its_log(tmp_path: Path) -> None:
    up = cluster(tmp_path, decode=[{"name": "fails"}])
    with pytest.raises(ClusterError, match=r"(?s)fails: exit code 1.*no such checkpoint"):
        await up.start(30, lambda member: None)
    await up.stop()


@pytest.mark.usefixtures("service")
async def test_a_child_that_is_not_ready_in_time_is_named(tmp_path: Path) -> None:
    up = cluster(tmp_path, decode=[{"name": "slow"}])
    with pytest.raises(ClusterError, match=r"(?s)not ready after 3 s:.*slow: no answer"):
        await up.start(3, lambda member: None)
    await up.stop()


@pytest.mark.usefixtures("service")
async def test_a_death_is_noticed_once_and_reported(tmp_path: Path) -> None:
    up = cluster(tmp_path)
    await up.start(30, lambda member: None)
    victim = next(member for member in up.members if member.name == "decode-0")
    assert victim.child is not None
    os.kill(victim.child.pid, signal.SIGKILL)
    dead = await asyncio.wait_for(up.next_death(set()), 5)
    assert dead is victim
    assert "killed by SIGKILL" in death_report(dead)
    assert "hello from decode-0" in death_report(dead)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(up.next_death({"decode-0"}), 0.3)
    assert not up.can_serve()
    await up.stop()


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = await _child(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert await child.stop(grace_s=0.3) == -signal.SIGKILL


async def test_a_child_and_its_ranks_leave_with_kill(tmp_path: Path) -> None:
    child = await _child(tmp_path, "print(subprocess.Popen(['sleep', '600']).pid, flush=True)")
    rank = int(child.last_lines()[0])
    child.kill()
    await child.wait()
    until(lambda: gone(rank))


def test_children_die_with_a_parent_that_is_killed() -> None:
    grandchild = (
        "import sys, time; from baton_cli.processes import die_with_parent; "
        "die_with_parent(); print('ready', flush=True); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"env = {{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}\n"
        f"child = subprocess.Popen([sys.executable, '-P', '-c', {grandchild!r}], env=env,\n"
        "    stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", parent], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert not gone(pid)
    process.kill()
    process.wait()
    until(lambda: gone(pid))


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(is_free(f"127.0.0.1:{port}") for port in ports)


def test_preferred_ports_come_first_unless_taken() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (other,) = free_ports(1)
        port = taken.getsockname()[1]
        assert free_ports(1, [port, other]) == [other]
        assert not is_free(f"127.0.0.1:{port}")


def test_old_runs_make_room_for_new_ones(tmp_path: Path) -> None:
    for number in range(KEPT_RUNS + 5):
        (tmp_path / f"run-2020-{number:03}").mkdir()
    (tmp_path / "kept.txt").write_text("not a run")
    run = new_run_directory(tmp_path)
    runs = sorted(path.name for path in tmp_path.glob("run-*"))
    assert len(runs) == KEPT_RUNS
    assert run.name in runs
    assert (tmp_path / "kept.txt").exists()


def test_exit_codes_in_words() -> None:
    assert exit_text(3) == "exit code 3"
    assert exit_text(-9) == "killed by SIGKILL"
    assert clusters.STOP_GRACE_S > 0
    assert Member("router", "router", "", "").child is None


async def _child(tmp_path: Path, code: str) -> Child:
    """A child that has run `code` and now waits."""
    log = tmp_path / "child.log"
    program = (
        f"import signal, subprocess, time\n{code}\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "program", stdout=out, env=environment, start_new_session=True
        )
    child = Child("child", process, log)
    async with asyncio.timeout(10):
        while "ready" not in child.last_lines():
            await asyncio.sleep(0.02)
    return child
