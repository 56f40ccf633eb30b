"""The value head: values of the states that predict the tokens, in float32, in every family; others read a model without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from drive_vlm.config import IGNORE_INDEX, ModelConfig
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.models import load_family
from drive_vlm.models.training_forward import chunked_policy
from drive_vlm.models.value_head import ValueHead, add_value_head

TAU = 0.7


def extended(directory: Path) -> Any:
    """The family with a head whose values are not zero."""
    family = load_family(
        ModelConfig(model=str(directory)), torch.float32, for_training=True, extend=lambda f: add_value_head(f, 16, 3)
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(family.model.value_head.last.weight)
    return family


def batch_of(family: Any, synthetic_data: Path) -> dict[str, torch.Tensor]:
    """Two rows, one with a picture, padded to one length: the last four words of each are labelled."""
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    raw = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:2]]
    raw[1]["conversations"][0]["value"] = "Go on."
    del raw[1]["image"]
    rows = [encoder.encode(parse_row(row, "train.jsonl:1", str(synthetic_data))) for row in raw]
    for row in rows:
        learned = (row["labels"] != IGNORE_INDEX).nonzero()[0]
        row["labels"][learned[:-4]] = IGNORE_INDEX
    batch = Collator(family.tokenizer.pad_token_id, family.vision)([[row] for row in rows])
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("kind", ["internvl", "siglip_qwen", "llava_next", "smolvlm"])
def test_a_value_is_that_of_the_state_before_the_token(
    kind: str,
    tiny_model: Path,
    tiny_video_model: Path,
    tiny_families: Callable[[str], Path],
    synthetic_data: Path,
) -> None:
    """Each value once more from a text that ends before its token: a head that reads one place further has seen the token."""
    family = extended({"internvl": tiny_model, "siglip_qwen": tiny_video_model}.get(kind) or tiny_families(kind))
    model, batch = family.model, batch_of(family, synthetic_data)
    model.eval()
    with torch.no_grad():
        found = model(**batch, token_log_probs=True, temperature=TAU, value_gradient=False)
        places = (batch["labels"][:, 1:] != IGNORE_INDEX).nonzero().tolist()
        assert len(found.state_values) == len(places) >= 4 and found.state_values.dtype == torch.float32
        for i, (row, place) in enumerate(places):
            # Everything up to the place that predicts; the token itself lies behind it.
            cut = {"input_ids": batch["input_ids"][row : row + 1, : place + 1]}
            cut["attention_mask"] = torch.ones_like(cut["input_ids"])
            # The picture is the first row's.
            pictures = {name: batch[name] for name in family.vision.keys} if row == 0 else {"tower_pass": True}
            state = model.model(**cut, **pictures, use_cache=False)[0][:, -1]
            torch.testing.assert_close(found.state_values[i], model.value_head(state)[0], atol=2e-5, rtol=1e-4)
            log_probs = (model.lm_head(state)[0].float() / TAU).log_softmax(0)
            token = batch["input_ids"][row, place + 1]
            torch.testing.assert_close(found.log_probs[i], log_probs[token], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(found.entropies[i], -(log_probs.exp() * log_probs).sum(), atol=2e-5, rtol=1e-4)


def test_a_detached_value_leaves_the_body_alone(tiny_model: Path, synthetic_data: Path) -> None:
    family = extended(tiny_model)
    batch = batch_of(family, synthetic_data)
    norm = family.model.model.language_model.norm.weight
    for gradient in (False, True):
        family.model.zero_grad()
        values = family.model(**batch, token_log_probs=True, temperature=1.0, value_gradient=gradient).state_values
        values.sum().backward()
        assert family.model.value_head.first.weight.grad.abs().sum() > 0
        assert (norm.grad is not None and norm.grad.abs().sum() > 0) == gradient


@pytest.mark.parametrize("autocast", [False, True])
def test_a_thousandth_survives_half_precision(autocast: bool) -> None:
    """.25 and .251, which bfloat16 rounds to one number: from weights and states in bfloat16, and under autocast."""
    head = ValueHead(2, 2)
    with torch.no_grad():
        head.first.weight.copy_(torch.eye(2))
        head.first.bias.zero_()
        head.last.weight.copy_(torch.tensor([[0.0025, 0.0001]]))
    assert torch.tensor(0.25).bfloat16() == torch.tensor(0.2509).bfloat16()
    head = head if autocast else head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = head(torch.tensor([[100.0, 0.0], [100.0, 10.0]], dtype=torch.bfloat16))
    assert values.dtype == torch.float32
    assert (values[1] - values[0]).item() == pytest.approx(0.001, rel=0.01)


def test_it_begins_at_zero_and_alike_whatever_was_drawn_before() -> None:
    torch.rand(5)
    one = ValueHead(6, 4, seed=2)
    torch.rand(7)
    two = ValueHead(6, 4, seed=2)
    assert torch.equal(one.first.weight, two.first.weight) and one.first.weight.abs().sum() > 0
    assert not torch.equal(one.first.weight, ValueHead(6, 4, seed=3).first.weight)
    assert one(torch.randn(3, 6)).tolist() == [0, 0, 0] and one(torch.empty(0, 6)).shape == (0,)


@pytest.mark.parametrize("rows", [0, 5])
def test_chunked_policy_equals_the_full_one(rows: int) -> None:
    """Log-probabilities, entropies and gradients at a temperature; also of a batch without a labelled token."""
    torch.manual_seed(0)
    leaves = [torch.randn(rows, 8), torch.randn(50, 8), torch.randn(50)]
    labels, found = torch.randint(0, 48, (rows,)), []
    for chunk in (None, 2):
        hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
        if chunk:
            log_probs, entropies = chunked_policy(hidden, weight, bias, labels, TAU, chunk, never=[48, 49])
        else:
            # The last two words are no part of the distribution.
            everything = (F.linear(hidden, weight, bias) / TAU)[:, :48].log_softmax(1)
            log_probs = everything.gather(1, labels[:, None])[:, 0]
            entropies = -(everything.exp() * everything).sum(1)
        (log_probs.sum() + 2 * entropies.square().sum()).backward()
        found.append([log_probs, entropies, hidden.grad, weight.grad, bias.grad])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_others_read_the_model_without_it_and_say_so(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    family = extended(tiny_model)
    family.model.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)
    capsys.readouterr()
    plain = load_family(ModelConfig(model=str(tmp_path)), torch.float32)
    assert not hasattr(plain.model, "value_head")
    assert f"{tmp_path}: its value head is left out" in capsys.readouterr().err
    load_family(ModelConfig(model=str(tiny_model)), torch.float32)
    assert "left out" not in capsys.readouterr().err
    again = load_family(
        ModelConfig(model=str(tmp_path)), torch.float32, for_training=True, extend=lambda f: add_value_head(f, 16)
    )
    assert torch.equal(again.model.value_head.last.weight, family.model.value_head.last.weight)
