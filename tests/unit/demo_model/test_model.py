"""The checkpoint that ships: its files, its parity with transformers, what it can do."""

import json
from pathlib import Path

import pytest
import torch
from demo_model.agent import attempt
from demo_model.batches import collate
from demo_model.chat import Encoder
from demo_model.checkpoint import load_checkpoint, save_checkpoint
from demo_model.evaluate import held_out, mtp_agreement, report
from demo_model.local import TransformersModel
from demo_model.model import DemoModel, Experts, Shape
from demo_model.optimizer import orthogonalize
from safetensors import safe_open
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

MEGABYTE = 1 << 20


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> DeepseekV3ForCausalLM:
    return DeepseekV3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> DemoModel:
    return load_checkpoint(checkpoint)


def test_it_is_small_and_stored_as_promised(checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 20 * MEGABYTE
    weights = weights_of(checkpoint)
    for name, weight in weights.items():
        bias = name.endswith("e_score_correction_bias")
        assert weight.dtype is (torch.float32 if bias else torch.bfloat16), name
        assert torch.isfinite(weight).all(), name
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "deepseek_v3"
    assert config["num_nextn_predict_layers"] == 1
    predictor = f"model.layers.{config['num_hidden_layers']}."
    shared = {
        "embed_tokens.weight": "model.embed_tokens.weight",
        "shared_head.head.weight": "lm_head.weight",
    }
    assert all(torch.equal(weights[predictor + a], weights[b]) for a, b in shared.items())
    own = {"eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"}
    assert own < {name.removeprefix(predictor) for name in weights}
    parameters = sum(
        w.numel() for n, w in weights.items() if n.removeprefix(predictor) not in shared
    )
    assert 3e6 <= parameters <= 10e6


@pytest.mark.timeout(300)
@torch.inference_mode()
def test_transformers_computes_the_same(
    checkpoint: Path, reference: DeepseekV3ForCausalLM, ours: DemoModel
) -> None:
    """Main logits, and the multi-token prediction layer as transformers reads it."""
    encoder = Encoder(checkpoint)
    prefix = torch.from_numpy(encoder.prefix)
    tokens = collate(encoder, [encoder.conversation(held_out(1)[0].reference())]).tokens
    hidden = ours(prefix, tokens)
    whole = torch.cat([prefix, tokens[0]])[None]
    expected = reference(whole, output_hidden_states=True)
    main = ours.lm_head(hidden.following)
    torch.testing.assert_close(main, expected.logits[:, len(prefix) :], rtol=1e-3, atol=1e-3)

    # transformers knows the MTP layer of the 61 layer model only, by this pattern.
    reference._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{ours.shape.layers}\."]
    predictor = MtpModel.from_pretrained(reference).float()
    states = predictor.forward_layer(
        0,
        expected.hidden_states[-1][:, :-1],
        torch.arange(1, whole.shape[1])[None],
        None,
        input_ids=whole[:, 1:],
    )
    second = predictor._project_to_logits(states)[:, len(prefix) :]
    torch.testing.assert_close(ours.lm_head(hidden.second)[:, :-1], second, rtol=1e-2, atol=1e-2)


@pytest.mark.timeout(300)
def test_it_solves_held_out_tasks(checkpoint: Path) -> None:
    figures = report(attempt(TransformersModel(checkpoint, "cpu"), held_out(20)), 0.0)
    assert figures["task_success"] >= 0.9
    assert figures["tool_call_validity"] >= 0.98


@pytest.mark.timeout(300)
def test_its_predictions_of_the_second_next_token_agree(checkpoint: Path) -> None:
    figures = mtp_agreement(checkpoint, held_out(12), "cpu")
    assert figures["mtp_agreement"] >= 0.6
    assert figures["next_token_accuracy"] >= 0.97


def small() -> Shape:
    return Shape(hidden=32, layers=2, heads=2, query_rank=16, latent=16, nope=8, rope=8, value=16,
                 dense_width=32, expert_width=16)  # fmt: skip


def test_a_shared_prefix_changes_nothing() -> None:
    torch.manual_seed(0)
    model = DemoModel(small()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(0, 2048, (3, 20))
    tokens[:, :6] = tokens[0, :6]
    apart = model(tokens[0, :0], tokens)
    together = model(tokens[0, :5], tokens[:, 5:])
    for a, b in ((apart.following, together.following), (apart.second, together.second)):
        torch.testing.assert_close(a[:, 5:-1], b[:, :-1], rtol=1e-4, atol=1e-5)


def test_experts_in_parts_and_all_at_once_agree() -> None:
    torch.manual_seed(0)
    experts = Experts(small())
    torch.nn.init.normal_(experts.down_proj, std=0.1)
    weights = torch.rand(30, 8) * (torch.rand(30, 8) < 0.3)
    weights[:, 3] = 0  # an expert that nobody chose
    x = torch.randn(30, 32)
    torch.testing.assert_close(experts(x, weights), experts._all(x, weights))


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    model = DemoModel(small())
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.shape == model.shape
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].bfloat16().float()), name


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (3, 12, 5)])
def test_orthogonalized_matrices_have_singular_values_of_about_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert (values > 0.5).all()
    assert (values < 1.3).all()
