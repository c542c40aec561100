"""The clients against a router that says what the test wants."""

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from baton.v1 import errors_pb2
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc as rpc
from baton_cli.addresses import free_ports
from baton_cli.demo_agent import MAX_CALLS_PER_TURN, Agent
from baton_cli.demo_report import print_report
from baton_cli.demo_story import ScriptedStory, story_for
from baton_cli.main import main
from baton_rpc import Refusal, Server, channel

USAGE = pb.Usage(
    prompt_tokens=100,
    cached_tokens=64,
    generated_tokens=3,
    route=pb.ROUTE_REMOTE,
    pages_moved=7,
    bytes_moved=7168,
    times=pb.PhaseTimes(ttft_us=12_000, decode_us=8_000, total_us=20_000),
)
Script = list[pb.ChatDelta]


@dataclass
class FakeRouter(rpc.InferenceServiceServicer):
    """Answers each Chat with the next script; remembers what it was asked."""

    scripts: list[Script] = field(default_factory=list)
    chats: list[pb.ChatRequest] = field(default_factory=list)
    generates: list[pb.GenerateRequest] = field(default_factory=list)
    address: str = ""

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.generates.append(request)
        if request.sampling.temperature < 0:
            raise Refusal(errors_pb2.ERROR_REASON_INVALID_SAMPLING, "temperature is -1, at least 0")
        yield pb.GenerateResponse(accepted=pb.Accepted())
        for text in ("once ", "upon"):
            yield pb.GenerateResponse(delta=pb.Delta(text=text))
        yield pb.GenerateResponse(finished=pb.Finished(usage=USAGE))

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:
        copy = pb.ChatRequest()
        copy.CopyFrom(request)
        self.chats.append(copy)
        for delta in self.scripts.pop(0) if self.scripts else [pb.ChatDelta(content="done")]:
            yield pb.ChatResponse(delta=delta)
        yield pb.ChatResponse(finished=pb.Finished(usage=USAGE))


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    """Runs on a loop of its own: the commands run theirs."""
    fake = FakeRouter()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server("127.0.0.1:0", [(fake, rpc.add_InferenceServiceServicer_to_server)])
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    fake.address = server.address
    yield fake
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def call(name: str, **arguments: str) -> pb.ToolCall:
    return pb.ToolCall(id="c1", name=name, arguments_json=json.dumps(arguments))


def test_generate_streams_text_and_says_what_it_cost(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--target", router.address, "--usage", "--seed", "5", "--stop", "x", "--top-k", "3"]
    assert main(["generate", "Tell", *flags]) == 0
    printed = capsys.readouterr()
    assert printed.out == "once upon\n"
    assert "100 prompt tokens (64 cached)" in printed.err
    assert "route remote" in printed.err
    request = router.generates[0]
    assert (request.text, request.sampling.seed, list(request.stop.stop)) == ("Tell", 5, ["x"])
    assert not request.sampling.HasField("temperature")


def test_generate_reads_stdin(router: FakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["generate", "--target", router.address]) == 0
    assert router.generates[0].text == "from a pipe"


def test_a_refusal_is_one_line_with_its_reason(
    router: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "x", "--target", router.address, "--temperature", "-1"]) == 1
    told = capsys.readouterr().err
    assert told == "baton: INVALID_ARGUMENT (INVALID_SAMPLING): temperature is -1, at least 0\n"


@pytest.mark.parametrize("flag", ["--top-k", "--seed", "--max-tokens"])
def test_a_negative_count_never_leaves(
    router: FakeRouter, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["generate", "x", "--target", router.address, flag, "-1"]) == 2
    assert flag in capsys.readouterr().err
    assert router.generates == []


def test_nobody_there_says_how_to_start_somebody(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert main(["generate", "x", "--target", f"127.0.0.1:{port}"]) == 1
    assert "baton up" in capsys.readouterr().err


def test_chat_keeps_the_conversation(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [[pb.ChatDelta(content="hel"), pb.ChatDelta(content="lo")]]
    monkeypatch.setattr("sys.stdin", io.StringIO("first\n\nsecond\n"))
    assert main(["chat", "--target", router.address, "--system", "be brief"]) == 0
    assert capsys.readouterr().out == "hello\ndone\n"
    said = [(m.role, m.content) for m in router.chats[1].messages]
    assert said == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "hello"),
        ("user", "second"),
    ]
    assert router.chats[0].session_id == router.chats[1].session_id != ""


def test_chat_asks_for_the_results_of_tool_calls(
    router: FakeRouter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "search"}}]))
    router.scripts = [[pb.ChatDelta(tool_calls=[call("search", query="q")])]]
    monkeypatch.setattr("sys.stdin", io.StringIO("the result\n"))
    arguments = ["chat", "find q", "--target", router.address, "--tools", str(tools)]
    assert main(arguments) == 0
    assert [tool.name for tool in router.chats[0].tools] == ["search"]
    answer = router.chats[1].messages[-1]
    assert (answer.role, answer.tool_call_id, answer.content) == ("tool", "c1", "the result")


@pytest.mark.parametrize("text", ["{", '[{"description": "nameless"}]', "[1]"])
def test_tools_that_are_none_are_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tools.json").write_text(text)
    assert main(["chat", "x", "--tools", str(tmp_path / "tools.json")]) == 2
    assert "--tools" in capsys.readouterr().err


# ---- the demonstration's agent


class LiveStory(ScriptedStory):
    """The scripted story, but the model's own calls are executed."""

    live = True

    def scripted_call(self, turn: int) -> Any:
        return None


async def perform(router: FakeRouter, story: Any) -> tuple[Agent, str]:
    console = Console(file=io.StringIO(), width=160)
    async with channel(router.address) as dialled:
        agent = Agent(dialled, story, console)
        await agent.run()
    print_report(agent.calls, story, console)
    assert isinstance(console.file, io.StringIO)
    return agent, console.file.getvalue()


async def test_the_scripted_agent_extends_one_conversation(router: FakeRouter) -> None:
    agent, shown = await perform(router, ScriptedStory())
    assert [(c.turn, c.step) for c in agent.calls] == [
        (turn, step) for turn in range(3) for step in range(2)
    ]
    for earlier, later in zip(router.chats, router.chats[1:], strict=False):
        assert list(later.messages)[: len(earlier.messages)] == list(earlier.messages)
    assert "1008" in shown
    assert "random" in shown


async def test_the_live_agent_executes_what_the_model_calls(router: FakeRouter) -> None:
    router.scripts = [[pb.ChatDelta(tool_calls=[call("calc", expression="84 * 12")])]]
    agent, shown = await perform(router, LiveStory())
    assert [(c.turn, c.step) for c in agent.calls] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert router.chats[1].messages[-1].content == "1008"
    assert "+ calc" in shown
    row = next(line for line in shown.splitlines() if line.startswith("1.2"))
    for cell in ("remote", "100", "64", "7", "12 ms", "4.0 ms"):
        assert cell in row.split("+ calc")[1]


async def test_a_model_that_calls_for_ever_is_stopped(router: FakeRouter) -> None:
    router.scripts = [[pb.ChatDelta(tool_calls=[call("search", query="x")])]] * 100
    agent, _ = await perform(router, LiveStory())
    assert len(agent.calls) == 3 * MAX_CALLS_PER_TURN


def test_the_trained_models_world_is_used_when_it_lies_beside_the_checkpoint() -> None:
    example = Path(__file__).parents[3] / "examples" / "demo_model"
    story = story_for(example / "model", None)
    assert story.live
    assert len(story.questions) == 3
    assert story.call("nonsense", "{}").startswith("error")
    assert story.call("calc", "not JSON").startswith("error")
    assert story.call("calc", json.dumps({"expression": "2 + 3"})) == "5"


def test_another_checkpoint_gets_the_scripted_story(tmp_path: Path) -> None:
    assert not story_for(tmp_path / "model", None).live
