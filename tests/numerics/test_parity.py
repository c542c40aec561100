"""Every family against transformers, float32: logits within 1e-4 and the same greedy tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton_modeling import (
    CompiledModel,
    CountingComm,
    Lockstep,
    Mesh,
    Options,
    load_model,
    tensor_parallel_mesh,
)

from .driver import PAGE_SIZE, Driver, Row

TOLERANCE = 1e-4
VARIANTS = [
    "deepseek_v3",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "minimax_m2",
    "gpt_oss",
    "deepseek_v2",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
]
# Other values of config fields: one mixed run and a greedy continuation each.
OPTIONS = [
    "deepseek_v2_greedy",
    "deepseek_v3_plain_queries",
    "deepseek_v3_one_group",
    "llama_linear",
    "llama_dynamic",
    "llama_yarn",
    "qwen2_windows",
    "qwen3_moe_windows",
]


def tokens(seed: int, count: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(16, 2048) for _ in range(count)]


def check(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max().item()
    assert worst <= TOLERANCE, f"logits differ by {worst:.2e}"


class Oracle:
    """transformers on the same checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def logits(self, prompt: list[int]) -> Tensor:
        logits: Tensor = self.model(torch.tensor([prompt])).logits[0]
        return logits

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        out = self.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
        )
        return list(map(int, out[0, len(prompt) :]))


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(request.param)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CompiledModel:
    return load_model(checkpoint, page_size=PAGE_SIZE)


def test_a_whole_prompt(model: CompiledModel, oracle: Oracle) -> None:
    for seed, count in enumerate((1, 2, 7, 8, 9, 64, 333)):
        prompt = tokens(seed, count)
        check(Driver(model).prefill(Row(prompt), [count]), oracle.logits(prompt))


def test_random_chunks(model: CompiledModel, oracle: Oracle) -> None:
    generator = random.Random(5)
    for seed in range(4):
        prompt = tokens(seed, 200)
        cuts = sorted(generator.sample(range(1, 200), 5))
        chunks = [b - a for a, b in zip([0, *cuts], [*cuts, 200], strict=True)]
        check(Driver(model, seed=seed).prefill(Row(prompt), chunks), oracle.logits(prompt))


def test_decode_token_by_token(model: CompiledModel, oracle: Oracle) -> None:
    prompt = tokens(3, 90)
    logits = Driver(model).prefill(Row(prompt), [30] + [1] * 60)
    check(logits, oracle.logits(prompt))


def check_mixed(model: CompiledModel, oracle: Oracle) -> None:
    """Decoding and prefilling rows of all lengths share steps, in random company."""
    generator = random.Random(11)
    driver = Driver(model, pages=300)
    rows = [Row(tokens(20 + i, n)) for i, n in enumerate((1, 5, 40, 63, 64, 65, 130, 9))]
    got: dict[int, list[Tensor]] = {id(row): [] for row in rows}
    while pending := [row for row in rows if row.computed < len(row.tokens)]:
        chosen = generator.sample(pending, generator.randint(1, len(pending)))
        work = []
        for row in chosen:
            left = len(row.tokens) - row.computed
            work.append((row, min(left, generator.choice((1, 1, 2, 17, 50)))))
        work.sort(key=lambda item: item[1] != 1)
        for (row, _), logits in zip(work, driver.step(work), strict=True):
            got[id(row)].append(logits)
    for row in rows:
        check(torch.cat(got[id(row)]), oracle.logits(row.tokens))


def test_mixed_ragged_batches(model: CompiledModel, oracle: Oracle) -> None:
    check_mixed(model, oracle)


def test_greedy_continuations(model: CompiledModel, oracle: Oracle) -> None:
    for seed, count in enumerate((1, 3, 50, 150)):
        prompt = tokens(seed, count)
        assert Driver(model).generate(prompt, 20, chunk=64) == oracle.greedy(prompt, 20)


def test_after_retraction(model: CompiledModel, oracle: Oracle) -> None:
    """A request that lost its pages while decoding computes its tokens again, in other pages."""
    prompt = tokens(12, 40)
    expected = oracle.greedy(prompt, 10)
    driver, row = Driver(model), Row(list(prompt))
    (logits,) = driver.step([(row, len(prompt))], False)
    for _ in range(4):
        row.tokens.append(int(logits[-1].argmax()))
        (logits,) = driver.step([(row, 1)], False)
    again = Row([*row.tokens, int(logits[-1].argmax())])
    driver.step([(Row(tokens(13, 30)), 30)], False)  # somebody else's, in between
    for count in (17, len(again.tokens) - 17):
        (logits,) = driver.step([(again, count)], False)
    while len(again.tokens) < len(prompt) + 10:
        again.tokens.append(int(logits[-1].argmax()))
        (logits,) = driver.step([(again, 1)], False)
    assert again.tokens[len(prompt) :] == expected


@pytest.mark.parametrize("variant", OPTIONS)
def test_other_values_of_config_fields(make_checkpoint: Callable[..., Path], variant: str) -> None:
    checkpoint = make_checkpoint(variant)
    model, oracle = load_model(checkpoint, page_size=PAGE_SIZE), Oracle(checkpoint)
    prompt = tokens(2, 50)
    check_mixed(model, oracle)
    assert Driver(model).generate(prompt, 8, chunk=32) == oracle.greedy(prompt, 8)


def test_a_prefix_in_the_cache(model: CompiledModel, oracle: Oracle) -> None:
    """A second request reads the first one's pages and computes only what differs."""
    driver = Driver(model)
    shared = tokens(1, 6 * PAGE_SIZE)
    first, second = Row(shared + tokens(2, 20)), Row(shared + tokens(3, 33))
    driver.prefill(first, [len(shared)])
    first.kept.add(first.state)
    second.pages, second.state, second.kept = first.pages[:6], first.state, first.kept
    second.computed = len(shared)
    driver.prefill(first, [20])
    logits = driver.prefill(second, [20, 13])
    check(logits, oracle.logits(second.tokens)[len(shared) :])


def test_pages_moved_to_another_pool(model: CompiledModel, checkpoint: Path) -> None:
    """Hand-over: pages computed by one model, copied bytewise, decoded by another."""
    prompt = tokens(8, 77)
    expected = Driver(model).generate(prompt, 12)
    source, row = Driver(model), Row(prompt)
    (logits,) = source.step([(row, 77)], False)
    other = load_model(checkpoint, page_size=PAGE_SIZE)
    target = Driver(other, seed=9)
    moved = Row([*prompt, int(logits[-1].argmax())], computed=77)
    for page in row.pages:
        moved.pages.append(target.free.pop())
        target.arenas["full"][moved.pages[-1]] = source.arenas["full"][page]
    for group in target.stateful:
        moved.state = target.free_states.pop()
        target.arenas[group][moved.state] = source.arenas[group][row.state]
    while len(moved.tokens) < len(prompt) + 12:
        (logits,) = target.step([(moved, 1)], False)
        moved.tokens.append(int(logits[-1].argmax()))
    assert moved.tokens[len(prompt) :] == expected


def test_steps_without_logits(model: CompiledModel, oracle: Oracle) -> None:
    driver, row = Driver(model), Row(tokens(4, 60))
    batch = driver.batch([(row, 40)])
    empty = model.forward(type(batch)(**{**batch.__dict__, "logit_rows": batch.logit_rows[:0]}))
    assert empty.shape == (0, 2048)
    row.computed = 40
    check(driver.prefill(row, [20]), oracle.logits(row.tokens)[40:])


def test_a_poisoned_request_stays_alone(model: CompiledModel, oracle: Oracle) -> None:
    """NaN in one request's pages reaches its own logits and nobody else's."""
    driver = Driver(model)
    sick, well, chunk = Row(tokens(1, 30)), Row(tokens(2, 41)), Row(tokens(3, 25))
    driver.prefill(sick, [29])
    driver.prefill(well, [40])
    driver.arenas["full"][sick.pages[1]] = float("nan")
    for group in driver.stateful:
        driver.arenas[group][sick.state] = float("nan")
    poisoned, decoded, prefilled = driver.step([(sick, 1), (well, 1), (chunk, 25)])
    assert poisoned.isnan().all()
    check(decoded, oracle.logits(well.tokens)[40:])
    check(prefilled, oracle.logits(chunk.tokens))


MESHES = {
    "tp2": tensor_parallel_mesh(2),
    "tp4": tensor_parallel_mesh(4),
    "ep2": Mesh({"attn_tp": 2, "dense_tp": 2, "ep": 2, "vocab": 2}),
    "moe-tp2-ep2": Mesh({"attn_tp": 4, "dense_tp": 4, "ep": 2, "moe_tp": 2, "vocab": 4}),
    "moe-tp2-ep2-attn-tp2": Mesh({"attn_tp": 2, "ep": 2, "moe_tp": 2}),
    "attention-whole": Mesh({"dense_tp": 2, "ep": 2}),
}


CASES = [
    *(pytest.param("deepseek_v3", mesh, id=f"deepseek_v3-{name}") for name, mesh in MESHES.items()),
    *(pytest.param("qwen3_next", mesh, id=f"qwen3_next-{name}") for name, mesh in MESHES.items()),
    *(
        pytest.param(variant, MESHES["tp2"], id=f"{variant}-tp2")
        for variant in ("llama", "qwen2", "qwen3", "qwen3_moe", "minimax_m2", "deepseek_v2")
    ),
    pytest.param("gpt_oss", MESHES["moe-tp2-ep2-attn-tp2"], id="gpt_oss-moe-tp2-ep2"),
    pytest.param("qwen3_5", MESHES["tp2"], id="qwen3_5-tp2"),
    pytest.param("qwen3_5_moe", MESHES["ep2"], id="qwen3_5_moe-ep2"),
]


@pytest.mark.parametrize(("variant", "mesh"), CASES)
def test_ranks_in_lockstep(make_checkpoint: Callable[..., Path], variant: str, mesh: Mesh) -> None:
    """Every mesh gives what one rank gives, with exactly the collectives that explain() says."""
    checkpoint = make_checkpoint(variant)
    prompt = tokens(6, 100)
    expected = Driver(load_model(checkpoint, page_size=PAGE_SIZE)).prefill(
        Row(prompt), [64, 33, 1, 1, 1]
    )
    group = Lockstep(mesh)

    def rank(index: int) -> tuple[Tensor, CountingComm, CompiledModel]:
        comm = CountingComm(group.comm(index))
        model = load_model(checkpoint, mesh=mesh.at(index), comm=comm, page_size=PAGE_SIZE)
        logits = Driver(model).prefill(Row(prompt), [64, 33, 1, 1, 1])
        return logits, comm, model

    for logits, comm, model in group.run(rank):
        check(logits, expected)
        explanation = model.explain()
        steps = 5
        assert comm.calls == {k: n * steps for k, n in explanation.collectives().items()}
        assert comm.bytes == explanation.bytes(tokens=100, logit_rows=100)


def test_declared_replicas_are_equal(deepseek_checkpoint: Path) -> None:
    mesh = tensor_parallel_mesh(2)
    group = Lockstep(mesh)

    def rank(index: int) -> None:
        model = load_model(
            deepseek_checkpoint,
            mesh=mesh.at(index),
            comm=group.comm(index),
            page_size=PAGE_SIZE,
            options=Options(verify=True),
        )
        Driver(model).prefill(Row(tokens(1, 20)), [17, 1, 2])

    group.run(rank)
