"""The README's code runs as it is printed, against a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .cluster import Shape
from .conftest import StartCluster

README = Path(__file__).parents[2] / "README.md"
PRINTED_TARGET = "127.0.0.1:7000"


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readme_shows_python() -> None:
    assert len(snippets()) == 1
    assert PRINTED_TARGET in snippets()[0]


def test_the_readmes_code_runs(
    start_cluster: StartCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_cluster(Shape()) as cluster:
        code = snippets()[0].replace(PRINTED_TARGET, cluster.config["router"]["listen"])
        exec(compile(code, str(README), "exec"), {})
    assert re.search(r"\d+ prompt tokens, \d+ cached\n$", capsys.readouterr().out)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text()))
def test_the_readmes_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (README.parent / link).exists()
