"""`baton explain` and `baton tune-comm`, as their users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baton_cli.main import main
from baton_modeling.compiler.costs import COLLECTIVES
from baton_modeling.compiler.tuning import load_costs


def explained(checkpoint: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, int]:
    """Collectives by name and axis, from the JSON."""
    assert main(["explain", "--model", str(checkpoint), "--json", *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    return {f"{each['collective']} {each['axis']}": each["count"] for each in facts["collectives"]}


def test_the_least_communication_of_a_mesh(
    deepseek_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand, for three layers of which the first is dense and the others have experts.

    attn_tp=4, ep=4: one all-reduce after each attention, one after each mixture; the dense layer,
    the embedding and the head are whole on every rank. With everything cut four ways: two a layer,
    one for the embedding, and the logits are gathered.
    """
    found = explained(deepseek_checkpoint, capsys, "--mesh", "attn_tp=4,ep=4")
    assert found == {"all_reduce attn_tp": 3, "all_reduce ep": 2}
    found = explained(deepseek_checkpoint, capsys, "--tp", "4")
    assert sum(found.values()) == 3 * 2 + 1 + 1
    assert found["all_gather vocab"] == 1


def test_both_all_reduces_of_a_dense_layer_are_fused(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint("llama")
    assert main(["explain", "--model", str(checkpoint), "--tp", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    for layer in range(3):
        total = facts["totals"][f"layers.{layer}"]
        assert total["collectives"] == 2
    inside = [line for line in facts["lines"] if line["layer"]]
    assert all("all-reduce + add + norm" in line["rules"] for line in inside)
    # Hidden size 128, float32: two ranks send half of 2 x 512 bytes each, twice.
    assert facts["totals"]["layers.0"]["bytes_sent_per"] == {"token": 2 * 512}
    assert facts["totals"]["step"]["collectives"] == 3 * 2 + 2


def test_the_text_names_placements_bytes_rules_and_totals(
    deepseek_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--model", str(deepseek_checkpoint), "--mesh", "dp=2,ep=2"]) == 0
    text = capsys.readouterr().out
    assert "mesh: dp=2, ep=2" in text
    assert "all_gather over dp (2 ranks), 512 B/own token" in text
    assert "[computed after the gather]" in text
    assert "layers.1: 2 collectives; bytes sent by each rank: 512 per own token" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh", "tensor=2"], "mesh axis 'tensor' is unknown; the axes are dp, attn_tp"),
        (["--mesh", "attn_tp"], "mesh axis 'attn_tp' is not of the form axis=ranks"),
        (["--mesh", "ep=2,ep=4"], "mesh axis 'ep' is given twice"),
        (["--mesh", "attn_tp=3"], "cannot be cut evenly over the 3 ranks of mesh axis attn_tp"),
        (["--mesh", "dp=2,vocab=2"], "model.embed_tokens places one tensor over mesh axes"),
        (["--cost-table", "nowhere.json"], "nowhere.json is not a table of collective costs"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    deepseek_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert main(["explain", "--model", str(deepseek_checkpoint), *flags]) == 1
    assert message in capsys.readouterr().err


def test_heads_that_cannot_be_cut_are_refused(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--model", str(make_checkpoint("llama")), "--tp", "4"]) == 1
    message = "the number of key/value heads is 2, which cannot be cut evenly over the 4 ranks"
    assert message in capsys.readouterr().err


def test_a_measured_table_is_written_and_used(
    deepseek_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "costs.yaml"
    assert main(["tune-comm", "--ranks", "2", "--repeats", "2", "--out", str(out)]) == 0
    table = load_costs(out)
    assert set(table.costs) == set(COLLECTIVES)
    assert "latency_us:" in out.read_text()
    assert f"wrote {out}" in capsys.readouterr().out
    assert explained(deepseek_checkpoint, capsys, "--tp", "2", "--cost-table", str(out))


def test_a_table_decides_what_is_explained(
    deepseek_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "costs.json"
    costs = {name: {"latency_us": 1.0, "gigabytes_per_s": 1.0} for name in COLLECTIVES}
    costs["all_reduce"]["latency_us"] = 1e6
    table.write_text(json.dumps({"tokens": 64, "costs": costs}))
    flags = ("--tp", "2", "--cost-table", str(table))
    assert not any("all_reduce" in name for name in explained(deepseek_checkpoint, capsys, *flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "1"], "--ranks is 1; a collective needs at least 2"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--device", "cuda", "--ranks", "4096"], "needs a GPU for each"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["tune-comm", *flags]) == 1
    assert message in capsys.readouterr().err
