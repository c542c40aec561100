"""The commands that print and end: what they say, and their exit codes."""

from __future__ import annotations

import pytest

from baton_cli.main import main, parser
from baton_scheduler import fsm_mermaid, fsm_table


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["fsm"], fsm_table()),
        (["fsm", "--format", "table"], fsm_table()),
        (["fsm", "--format", "mermaid"], fsm_mermaid()),
    ],
)
def test_fsm_prints_the_compiled_machine(
    arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed


def test_an_unknown_format_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fsm", "--format", "dot"])
    assert ended.value.code == 2
    assert "'mermaid', 'table'" in capsys.readouterr().err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """A command without a description of its own would show an empty --help."""
    commands = next(a.choices for a in parser()._actions if isinstance(a.choices, dict))
    assert len(commands) >= 10
    for name, command in commands.items():
        assert command.description, name
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert command.description.split()[0] in capsys.readouterr().out
