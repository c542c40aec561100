"""Keys, values and latents kept in float8 or bfloat16: close to the model's type, and smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton_modeling import CompiledModel, Lockstep, Options, load_model, tensor_parallel_mesh

from .driver import PAGE_SIZE, Driver, Row
from .test_parity import tokens

FP8 = Options(cache_dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("dtype", "cosine"), [(torch.bfloat16, 0.9999), (torch.float8_e4m3fn, 0.99)]
)
@pytest.mark.parametrize("variant", ["deepseek_v3_one_group", "llama", "qwen3", "gpt_oss"])
def test_close_to_the_models_own_type(
    make_checkpoint: Callable[..., Path], variant: str, dtype: torch.dtype, cosine: float
) -> None:
    """Prompt chunks and decode; the median token, since rounding may pick another expert."""
    checkpoint, prompt, chunks = make_checkpoint(variant), tokens(5, 120), [70, 30] + [1] * 20
    model = load_model(checkpoint, page_size=PAGE_SIZE)
    expected = Driver(model).prefill(Row(prompt), chunks)
    kept = load_model(checkpoint, page_size=PAGE_SIZE, options=Options(cache_dtype=dtype))
    actual = Driver(kept).prefill(Row(prompt), chunks)
    similar = torch.nn.functional.cosine_similarity(actual, expected, dim=-1)

    assert similar.median() >= cosine
    assert not torch.equal(actual, expected)
    assert kept.fingerprint != model.fingerprint


def layout_bytes(model: CompiledModel) -> int:
    return model.cache_layout.page_bytes(PAGE_SIZE)


def test_an_entry_is_its_elements_in_bytes_and_two_scales(
    make_checkpoint: Callable[..., Path],
) -> None:
    for variant, width in (("deepseek_v3", 64 + 16), ("llama", 2 * 2 * 32)):
        plain = load_model(make_checkpoint(variant), page_size=PAGE_SIZE, dtype=torch.bfloat16)
        packed = load_model(
            make_checkpoint(variant), page_size=PAGE_SIZE, dtype=torch.bfloat16, options=FP8
        )
        assert layout_bytes(plain) == 3 * PAGE_SIZE * width * 2
        assert layout_bytes(packed) == 3 * PAGE_SIZE * (width + 2 * 4)


def test_chunks_change_nothing_but_what_a_token_reads_of_itself(
    make_checkpoint: Callable[..., Path],
) -> None:
    """Every token reads kept entries, its own step's included, however the prompt was cut."""
    model = load_model(make_checkpoint("llama"), page_size=PAGE_SIZE, options=FP8)
    prompt = tokens(9, 60)
    whole = Driver(model).prefill(Row(prompt), [60])
    cut = Driver(model, seed=3).prefill(Row(prompt), [17, 20, 1, 1, 21])
    assert (whole - cut).abs().max() <= 2e-2


def test_ranks_keep_their_heads(make_checkpoint: Callable[..., Path]) -> None:
    checkpoint, mesh, prompt = make_checkpoint("qwen3"), tensor_parallel_mesh(2), tokens(4, 50)
    group = Lockstep(mesh)

    def rank(index: int) -> torch.Tensor:
        model = load_model(
            checkpoint,
            mesh=mesh.at(index),
            comm=group.comm(index),
            page_size=PAGE_SIZE,
            options=FP8,
        )
        return Driver(model).prefill(Row(prompt), [40, 10])

    alone = load_model(checkpoint, page_size=PAGE_SIZE)
    expected = Driver(alone).prefill(Row(prompt), [40, 10])
    for logits in group.run(rank):
        similar = torch.nn.functional.cosine_similarity(logits, expected, dim=-1)
        assert similar.median() >= 0.99


def test_other_types_are_refused(deepseek_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"a cache in torch.float16 is not supported"):
        load_model(deepseek_checkpoint, page_size=8, options=Options(cache_dtype=torch.float16))
