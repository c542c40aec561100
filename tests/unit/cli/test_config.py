"""The cluster's tree, composed of the services' sections."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton_cli.config import ClusterConfig, load
from baton_cli.main import main
from baton_cli.tree import ConfigError


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(tmp_path / "model"), "name": "m"},
        "kvstore": {"listen": "127.0.0.1:7300", "metrics": "127.0.0.1:7301"},
        "prefill": [{"listen": "127.0.0.1:7200"}],
        "decode": [{"listen": "127.0.0.1:7210"}, {"name": "two", "listen": "127.0.0.1:7211"}],
        "router": {"listen": "127.0.0.1:7000"},
    }


def faults(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        ClusterConfig.from_tree(tree).check()
    return "\n".join(caught.value.faults)


def test_the_router_learns_the_rest_of_the_tree(tree: dict[str, Any]) -> None:
    router = ClusterConfig.from_tree(tree).section("router")
    assert list(router.workers.decode) == ["127.0.0.1:7210", "127.0.0.1:7211"]
    assert list(router.workers.prefill) == ["127.0.0.1:7200"]
    assert router.kvstore == ("127.0.0.1:7300",)
    assert router.model.served_name == "m"


def test_a_worker_learns_the_model_and_the_kvstore(tree: dict[str, Any]) -> None:
    tree["model"]["page_size"] = 32
    worker = ClusterConfig.from_tree(tree).section("decode", "two")
    assert worker.name == "two"
    assert worker.page_size == 32
    assert worker.kvstore == ("127.0.0.1:7300",)
    assert str(worker.model_path) == tree["model"]["path"]


def test_both_roles_learn_how_to_speculate(tree: dict[str, Any]) -> None:
    config = ClusterConfig.from_tree(tree)
    assert config.section("decode", "two").speculative is None
    tree["model"]["speculative"] = {"tokens": 3}
    config = ClusterConfig.from_tree(tree)
    assert config.as_tree()["model"]["speculative"] == {"method": "mtp", "tokens": 3}
    for role, name in (("prefill", None), ("decode", "two")):
        assert config.section(role, name).speculative.tokens == 3  # type: ignore[arg-type]


def test_what_a_section_says_itself_wins(tree: dict[str, Any]) -> None:
    tree["router"]["workers"] = {"decode": ["elsewhere:1"]}
    router = ClusterConfig.from_tree(tree).section("router")
    assert list(router.workers.decode) == ["elsewhere:1"]


def test_workers_without_a_name_are_numbered(tree: dict[str, Any]) -> None:
    assert ClusterConfig.from_tree(tree).names() == ["prefill-0", "decode-0", "two"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"modell": {}}, "modell: unknown key; did you mean 'model'?"),
        ({"model": {"path": "x", "page": 3}}, "model.page: unknown key; did you mean 'page_size'?"),
        ({"model": {}}, "model.path: must be given"),
        ({"decode": []}, "decode: "),
        ({"decode": [{"name": "a"}, {"name": "a"}]}, "two processes are named 'a'"),
        ({"prefill": [{"listen": "h:1", "tpp": 2}]}, "prefill[0].tpp: unknown key"),
        ({"router": {"listen": "h:1", "routing": {"local_sufix_tokens": 1}}},
         "router.routing.local_sufix_tokens: unknown key; did you mean 'local_suffix_tokens'?"),
        ({"model": {"path": "x", "speculative": {"tokens": 0}}}, "model.speculative.tokens"),
        ({"model": {"path": "x", "speculative": {"method": "n"}}}, "model.speculative.method"),
        ({"router": {}}, "router.listen: must be given"),
        ({"kvstore": {"listen": "h:1", "capacity": 3}}, "kvstore.capacity: unknown key"),
    ],
)  # fmt: skip
def test_a_fault_names_its_place(
    tree: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    assert expected in faults({**tree, **change})


@pytest.mark.parametrize("role", ["router", "decode"])
def test_a_kvstore_without_an_address_is_not_left_out_silently(
    tree: dict[str, Any], role: Any
) -> None:
    config = ClusterConfig.from_tree({**tree, "kvstore": {}})
    with pytest.raises(ConfigError, match=f"kvstore.listen: must be given, the {role} dials it"):
        config.section(role, "two" if role == "decode" else None)


def test_the_faults_of_all_sections_come_together(tree: dict[str, Any]) -> None:
    tree["router"]["x"] = tree["decode"][1]["y"] = 1
    told = faults(tree)
    assert "router.x" in told
    assert "decode[1].y" in told


def test_a_cluster_without_a_kvstore(tree: dict[str, Any]) -> None:
    config = ClusterConfig.from_tree({**tree, "kvstore": None})
    assert config.section("router").kvstore == ()
    with pytest.raises(ConfigError, match="has none"):
        config.section("kvstore")


def test_a_cluster_without_prefill_workers(tree: dict[str, Any]) -> None:
    config = ClusterConfig.from_tree({**tree, "prefill": None})
    assert config.section("router").workers.prefill == ()


def test_free_addresses_are_different_and_kept(tree: dict[str, Any]) -> None:
    config = ClusterConfig.from_tree({**tree, "decode": [{}, {}, {"listen": "127.0.0.1:9"}]})
    config.choose_addresses()
    sections = [config.router, config.kvstore or {}, *config.prefill, *config.decode]
    addresses = [section[key] for section in sections for key in ("listen", "metrics")]
    assert len(set(addresses)) == len(addresses)
    assert config.decode[2]["listen"] == "127.0.0.1:9"


def test_the_tree_that_is_printed_is_the_tree_that_is_read(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    arguments = ["up", "--config", str(path), "--set", "decode.*.num_pages=64", "--print-config"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    path.write_text(printed)
    again = load(path, [])
    assert [worker["num_pages"] for worker in again.decode] == [64, 64]
    assert main(["up", "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_faults_are_exit_code_2_and_lines_on_stderr(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**tree, "rooter": {}}))
    assert main(["router", "--config", str(path)]) == 2
    assert "rooter: unknown key; did you mean 'router'?" in capsys.readouterr().err


def test_a_routers_process_loads_no_torch(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    code = (
        "import sys; from baton_cli.main import main\n"
        f"code = main(['router', '--config', {str(path)!r}, '--print-config'])\n"
        "import baton_router\n"
        "sys.exit(code or int('torch' in sys.modules or 'nixl' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("command", [[], ["up"], ["router"], ["chat"], ["demo"], ["doctor"]])
def test_help_says_something(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("arguments", [["up"], ["up", "--model", "/nowhere"]])
def test_up_without_a_model_says_what_to_do(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "--model" in capsys.readouterr().err
