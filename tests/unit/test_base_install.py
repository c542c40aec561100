"""The base install serves routers, kvstores and clients: it must do without torch."""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "triton", "safetensors", "transformers", "ray")
WITHOUT_TORCH = [
    "baton.v1.inference_pb2_grpc",
    "baton_scheduler",
    "baton_rpc",
    "baton_sessions",
    "baton_telemetry",
    "baton_transfer",
    "baton_router",
    "baton_router.config",
    "baton_kvstore",
    "baton_kvstore.config",
    "baton_cli.main",
]

PROBE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("the base install has no " + name)
sys.meta_path.insert(0, Block())
import importlib
importlib.import_module({module!r})
loaded = sorted(set(sys.modules) & set({blocked!r}))
assert not loaded, loaded
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module: str) -> None:
    done = run(PROBE.format(blocked=BLOCKED, module=module))
    assert done.returncode == 0, done.stderr


def test_the_hook_would_notice() -> None:
    assert run(PROBE.format(blocked=BLOCKED, module="torch")).returncode != 0


def test_base_dependencies_name_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = " ".join(project["dependencies"])
    assert not [name for name in (*BLOCKED, "nixl") if name in named]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fresh_environment_with_base_dependencies_only(tmp_path: Path) -> None:
    """The real thing: install the wheel without extras, start what needs no torch."""
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)],
        check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    installed = subprocess.run(
        [python, "-m", "pip", "list"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not [name for name in BLOCKED if name in installed]
    imports = "; ".join(f"import {module}" for module in WITHOUT_TORCH)
    subprocess.run([python, "-P", "-c", imports], check=True, cwd=tmp_path)
    subprocess.run([tmp_path / "env" / "bin" / "baton", "--help"], check=True, cwd=tmp_path)
