"""Multi-token prediction of hybrids: the layer is transformers' own, put together by hand."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from baton_modeling import (
    CheckpointError,
    CompiledModel,
    CountingComm,
    Lockstep,
    Options,
    load_model,
    tensor_parallel_mesh,
)

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import check, tokens

VARIANTS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
FULL_LAYER = 3  # an attention layer of every variant, with its last layer's feed-forward
CHUNKS = [40, 1, 30, 1, 1, 17]
OPTIONS = Options(draft=True)


class Peer:
    """A checkpoint with a drafting layer, and what that layer should say (vLLM's order of parts).

    The embedding of the next token comes first, the model's normed hidden state second.
    """

    def __init__(self, source: Path, directory: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        config, trunk = self.model.config, self.model.model
        size, norm = config.hidden_size, type(trunk.norm)
        self.parts = torch.nn.ModuleDict(
            {
                "fc": torch.nn.Linear(2 * size, size, bias=False),
                "pre_fc_norm_embedding": norm(size, config.rms_norm_eps),
                "pre_fc_norm_hidden": norm(size, config.rms_norm_eps),
                "layers": torch.nn.ModuleList([type(trunk.layers[3])(config, FULL_LAYER)]),
                "norm": norm(size, config.rms_norm_eps),
            }
        ).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parts.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = 0.1 if parameter.dim() == 1 else 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_(noise * scale)
        self.checkpoint = shutil.copytree(source, directory / "drafting")
        tensors = load_file(source / "model.safetensors")
        tensors |= {f"mtp.{name}": tensor for name, tensor in self.parts.state_dict().items()}
        save_file(tensors, self.checkpoint / "model.safetensors")

    @torch.no_grad()
    def joined(self, following: list[int], hidden: Tensor) -> Tensor:
        embedded = self.model.model.embed_tokens(torch.tensor(following))
        e = self.parts["pre_fc_norm_embedding"](embedded)
        h = self.parts["pre_fc_norm_hidden"](hidden)
        joined: Tensor = self.parts["fc"](torch.cat([e, h], -1))
        return joined

    @torch.no_grad()
    def draft(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and hidden states of the layer over a whole sequence."""
        x, positions = joined[None], torch.arange(len(joined))[None]
        turns = self.model.model.rotary_emb(x, positions)
        layer: Any = self.parts["layers"]
        out = layer[0](x, position_embeddings=turns, attention_mask=None)
        hidden: Tensor = self.parts["norm"](out)[0]
        return self.model.lm_head(hidden), hidden

    @torch.no_grad()
    def hidden(self, prompt: list[int]) -> Tensor:
        hidden: Tensor = self.model.model(torch.tensor([prompt])).last_hidden_state[0]
        return hidden


@pytest.fixture(scope="module", params=VARIANTS)
def peer(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Peer:
    return Peer(make_checkpoint(request.param), tmp_path_factory.mktemp("draft"))


def run(
    model: CompiledModel, prompt: list[int], *, captured: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the model and of its drafter over all but the last token, and one draft further.

    The prompt comes in chunks; the last draft goes on from the drafter's own hidden state.
    """
    drafter = model.drafter
    assert drafter is not None
    driver, row = Driver(model), Row(prompt)
    if captured:  # some decoding step, for the types of buffers
        batch = driver.batch([(Row(prompt[:1]), 1)])
        drafter.forward(batch, model.forward_hidden(batch)[1])
        model.prepare(2, pages=16)
    own, guessed = [], []
    for count in CHUNKS:
        batch = driver.batch([(row, count)])
        logits, hidden = model.forward_hidden(batch)
        following = prompt[row.computed + 1 : row.computed + count + 1]
        drafts = dataclasses.replace(batch, token_ids=torch.tensor(following))
        guesses, last = drafter.forward(drafts, hidden)
        own.append(logits.clone())
        guessed.append(guesses.clone())
        row.computed += count
    row.tokens = [*prompt, 99]  # what the model may have said next
    batch = dataclasses.replace(driver.batch([(row, 1)]), token_ids=torch.tensor([99]))
    further, _ = drafter.forward(batch, last[-1:])
    return torch.cat(own), torch.cat(guessed), further


def test_drafts_are_those_of_the_layer(peer: Peer) -> None:
    prompt = tokens(3, sum(CHUNKS) + 1)
    own, guessed, further = run(
        load_model(peer.checkpoint, page_size=PAGE_SIZE, options=OPTIONS), prompt
    )
    plain = load_model(peer.checkpoint, page_size=PAGE_SIZE)  # leaves the layer out
    check(own, Driver(plain).prefill(Row(prompt[:-1]), CHUNKS))
    joined = peer.joined(prompt[1:], peer.hidden(prompt[:-1]))
    expected, hidden = peer.draft(joined)
    check(guessed, expected)
    then, _ = peer.draft(torch.cat([joined, peer.joined([99], hidden[-1:])]))
    check(further, then[-1:])


def test_two_ranks_draft_alike(peer: Peer) -> None:
    prompt, mesh = tokens(4, sum(CHUNKS) + 1), tensor_parallel_mesh(2)
    expected = run(load_model(peer.checkpoint, page_size=PAGE_SIZE, options=OPTIONS), prompt)
    group = Lockstep(mesh)

    def rank(index: int) -> tuple[Tensor, ...]:
        comm = CountingComm(group.comm(index))
        model = load_model(
            peer.checkpoint, mesh=mesh.at(index), comm=comm, page_size=PAGE_SIZE, options=OPTIONS
        )
        results = run(model, prompt)
        assert model.drafter is not None
        calls: Counter[tuple[str, str]] = Counter()
        for program, runs in ((model, len(CHUNKS)), (model.drafter, len(CHUNKS) + 1)):
            calls.update({k: n * runs for k, n in program.explain().collectives().items()})
        assert comm.calls == calls
        return results

    for results in group.run(rank):
        for actual, wanted in zip(results, expected, strict=True):
            check(actual, wanted)


def test_captured_steps_draft_alike(peer: Peer) -> None:
    """Hidden states go into replays and out of them."""
    prompt = tokens(3, sum(CHUNKS) + 1)
    options = dataclasses.replace(OPTIONS, execution="graphs")
    plain, graphs = (
        load_model(peer.checkpoint, page_size=PAGE_SIZE, options=each)
        for each in (OPTIONS, options)
    )
    for actual, wanted in zip(run(graphs, prompt, captured=True), run(plain, prompt), strict=True):
        check(actual, wanted)


def test_the_layers_entries_are_one_more_layer(peer: Peer) -> None:
    plain = load_model(peer.checkpoint, page_size=PAGE_SIZE).cache_layout
    drafting = load_model(peer.checkpoint, page_size=PAGE_SIZE, options=OPTIONS).cache_layout
    assert drafting.group("full").layers == plain.group("full").layers + 1
    assert drafting.group("state") == plain.group("state")


def test_models_without_the_layer_are_refused(
    make_checkpoint: Callable[..., Path], deepseek_checkpoint: Path
) -> None:
    with pytest.raises(CheckpointError, match="no multi-token-prediction layer"):
        load_model(deepseek_checkpoint, page_size=PAGE_SIZE, options=OPTIONS)
    with pytest.raises(CheckpointError, match=r"has no tensor .*mtp\."):
        load_model(make_checkpoint("qwen3_5"), page_size=PAGE_SIZE, options=OPTIONS)
    model = load_model(make_checkpoint("qwen3_5"), page_size=PAGE_SIZE)
    with pytest.raises(ValueError, match="keeps no hidden states"):
        model.forward_hidden(Driver(model).batch([(Row([5, 6]), 2)]))
