"""Two tensor-parallel ranks. Each case is its own process: torch knows one world per process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .engine_worker import prompts
from .oracle import Reference
from .speculating import MODEL, spoken

# Every case imports torch twice or more; on a busy machine that alone takes many seconds.
pytestmark = pytest.mark.timeout(180)

_HEAD = """
import asyncio, json, logging, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.engine_worker import prompts, running
from baton_engine import *
CHECKPOINT = Path({checkpoint!r})
ASKED = json.loads({asked!r})
"""


def run(tmp_path: Path, checkpoint: Path, asked: list[list[int]], body: str) -> str:
    """Run a script in a fresh process; its output. The script's `main` is a coroutine."""
    tests = str(Path(__file__).parent.parent)
    head = _HEAD.format(tests=tests, checkpoint=str(checkpoint), asked=str(asked))
    script = tmp_path / "case.py"
    script.write_text(head + textwrap.dedent(body) + "\nasyncio.run(main())\n")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_ranks_give_the_tokens_of_one(
    tmp_path: Path, deepseek_checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, [1, 17, 64, 130, 300], seed=21)
    output = run(
        tmp_path,
        deepseek_checkpoint,
        asked,
        """
        async def main():
            async with running(CHECKPOINT, tp=2, num_pages=64) as worker:
                attempts = [worker.submit(f"t{i}", p, 8) for i, p in enumerate(ASKED)]
                for attempt in attempts:
                    assert isinstance(await attempt.ended(), Done)
                await worker.settled()
            async with running(CHECKPOINT, tp=2, num_pages=64) as worker:  # another, later
                attempts = [worker.submit(f"t{i}", p, 8) for i, p in enumerate(ASKED)]
                for attempt in attempts:
                    assert isinstance(await attempt.ended(), Done)
                print(json.dumps([a.tokens for a in attempts]))
        """,
    )
    expected = [reference.greedy(prompt, 8) for prompt in asked]
    assert output.strip() == str(expected)


def test_two_ranks_pull_the_pages_that_one_computed(
    tmp_path: Path, deepseek_checkpoint: Path, reference: Reference
) -> None:
    asked = prompts(reference.vocab_size, [5, 100, 250], seed=22)
    output = run(
        tmp_path,
        deepseek_checkpoint,
        asked,
        """
        async def main():
            async with (
                running(CHECKPOINT, "prefill") as prefill,
                running(CHECKPOINT, "decode", tp=2) as decode,
            ):
                attempts = []
                for i, prompt in enumerate(ASKED):
                    attempts.append(decode.submit(f"t{i}", prompt, 8, goal=Await(prefill.peer)))
                    prefill.submit(f"t{i}", prompt, 8, goal=HandOver(decode.peer.name))
                for attempt in attempts:
                    assert isinstance(await attempt.ended(), Done)
                assert decode.pool.computed_tokens == 0, decode.pool
                await decode.settled()
                await prefill.settled()
                print(json.dumps([a.tokens for a in attempts]))
        """,
    )
    expected = [reference.greedy(prompt, 8) for prompt in asked]
    assert output.strip() == str(expected)


def test_two_ranks_draft_as_one_does(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        MODEL,
        spoken(4),
        """
        from integration.speculating import ENDS
        async def main():
            told = []
            for fields in ({}, {"tp": 2, "speculative": {"tokens": 3}}):
                async with running(CHECKPOINT, max_chunk_tokens=100, **fields) as worker:
                    asked = [worker.submit(f"t{i}", p, 40) for i, p in enumerate(ASKED)]
                    asked += [worker.submit(f"e{i}", p, 40, stop=ENDS) for i, p in enumerate(ASKED)]
                    for attempt in asked:
                        assert isinstance(await attempt.ended(), Done)
                    await worker.settled()
                    told.append([attempt.tokens for attempt in asked])
                    pool = worker.pool
            assert told[0] == told[1]
            print(pool.accepted_draft_tokens, pool.draft_tokens)
        """,
    )
    accepted, proposed = map(int, output.split())
    assert accepted > proposed / 3


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_a_dead_rank_fails_the_worker_clearly(
    tmp_path: Path, deepseek_checkpoint: Path, reference: Reference, when: str
) -> None:
    run(
        tmp_path,
        deepseek_checkpoint,
        prompts(reference.vocab_size, [30], seed=23),
        f"""
        WHEN = {when!r}
        """
        """
        async def main():
            async with running(CHECKPOINT, tp=2) as worker:
                follower = worker.engine.rank_pids[0]
                attempt = worker.submit("x", ASKED[0], 2 if WHEN == "idle" else 1000)
                if WHEN == "idle":
                    await attempt.ended()
                else:
                    await attempt.until(TokensEmitted)
                os.kill(follower, signal.SIGKILL)
                reason = await asyncio.wait_for(worker.engine.failed(), 20)
                assert "rank 1" in reason and "signal 9" in reason, reason
                if WHEN == "busy":
                    end = await attempt.ended(1)
                    assert isinstance(end, Failed) and end.reason is FailReason.INTERNAL
                    assert end.message == reason
                try:
                    worker.submit("late", ASKED[0], 2)
                except EngineRefusal as refusal:
                    assert refusal.reason is FailReason.INTERNAL
                else:
                    raise AssertionError("accepted by a broken engine")
        """,
    )


def test_a_killed_worker_leaves_no_follower(tmp_path: Path, deepseek_checkpoint: Path) -> None:
    output = run(
        tmp_path,
        deepseek_checkpoint,
        [],
        """
        async def main():
            import subprocess, textwrap, time
            code = open(__file__).read().split("async def main")[0] + textwrap.dedent('''
                async def hold():
                    async with running(CHECKPOINT, tp=2) as worker:
                        print(worker.engine.rank_pids[0], flush=True)
                        await asyncio.sleep(60)
                asyncio.run(hold())
            ''')
            worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            follower = int(worker.stdout.readline())
            os.kill(follower, 0)
            worker.kill()
            worker.wait()
            for _ in range(200):
                try:
                    state = open(f"/proc/{follower}/stat").read().rsplit(")", 1)[1].split()[0]
                except FileNotFoundError:
                    break
                if state == "Z":
                    break
                time.sleep(0.05)
            else:
                raise AssertionError("the follower lives on")
            print("gone")
        """,
    )
    assert output.strip() == "gone"


@pytest.mark.slow
def test_a_rank_that_cannot_load_is_an_error_not_a_hang(
    tmp_path: Path, deepseek_checkpoint: Path
) -> None:
    output = run(
        tmp_path,
        deepseek_checkpoint,
        [],
        """
        async def main():
            try:
                async with running(CHECKPOINT, tp=3):
                    pass
            except (RuntimeError, ValueError) as error:
                print(type(error).__name__, error)
        """,
    )
    assert "3" in output or "rank" in output
