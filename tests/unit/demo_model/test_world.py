"""The tools: what they do, and that no call of a model can break them."""

import pytest
from demo_model.world import PARAMETERS, TOOLS, World, invalid_call
from hypothesis import given, settings
from hypothesis import strategies as st


def a_world() -> World:
    files = {"/a/x.toml": 'owner = "blue-owl"\nport = 42', "/a/y.toml": "port = 7", "/b/z": "42"}
    return World(files, {"red-lamp": "blue-owl"})


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("list_dir", {"path": "/a"}, "x.toml\ny.toml"),
        ("list_dir", {"path": "/a/"}, "x.toml\ny.toml"),
        ("list_dir", {"path": "/"}, "a/\nb/"),
        ("list_dir", {"path": "/c"}, "error: no such directory"),
        ("read_file", {"path": "/a/y.toml"}, "port = 7"),
        ("read_file", {"path": "/a"}, "error: no such file"),
        ("search", {"query": "42"}, "/a/x.toml\n/b/z"),
        ("search", {"query": "43"}, "error: nothing found"),
        ("calc", {"expression": "12 * 34"}, "408"),
        ("calc", {"expression": "12 - 34"}, "-22"),
        ("calc", {"expression": "__import__('os')"}, "error: cannot calculate that"),
        ("read_note", {"key": "red-lamp"}, "blue-owl"),
        ("read_note", {"key": "lamp"}, "error: no such note"),
        ("format_disk", {}, "error: there is no tool format_disk"),
        ("calc", {}, "error: calc takes expression"),
        ("calc", {"expression": 12}, "error: calc takes strings"),
        ("calc", {"expression": "1 + 1", "base": "2"}, "error: calc takes expression"),
    ],
)
def test_a_call_has_this_result(name: str, arguments: dict[str, object], result: str) -> None:
    assert a_world().call(name, arguments) == result


def test_a_note_that_was_written_can_be_read() -> None:
    world = a_world()
    assert world.call("write_note", {"key": "k", "text": "t"}) == "saved"
    assert world.call("read_note", {"key": "k"}) == "t"
    assert world.notes == {"red-lamp": "blue-owl", "k": "t"}


json_values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from([*PARAMETERS, "", "rm"]),
    arguments=st.dictionaries(
        st.sampled_from(["path", "query", "expression", "key", "text", "x"]), json_values
    ),
)
def test_whatever_is_called_the_answer_is_a_text(name: str, arguments: dict[str, object]) -> None:
    answer = a_world().call(name, arguments)
    assert isinstance(answer, str)
    assert answer
    assert invalid_call(name, arguments) is None or answer.startswith("error: ")


def test_schemas_and_executor_agree() -> None:
    for tool in TOOLS:
        function = tool["function"]
        parameters = function["parameters"]
        assert set(parameters["required"]) == set(parameters["properties"])
        arguments = dict.fromkeys(parameters["required"], "1")
        assert invalid_call(function["name"], arguments) is None
