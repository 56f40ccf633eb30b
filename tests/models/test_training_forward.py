"""The chunked loss equals the full one, values and gradients; a batch without a picture still passes the vision tower."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drive_vlm.config import IGNORE_INDEX, ModelConfig
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.models import load_family
from drive_vlm.models.training_forward import chunked_cross_entropy


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 64, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_cross_entropy_equals_the_full_one(rows: int, chunk: int | None, with_bias: bool) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(rows, 8), torch.randn(50, 8), torch.randn(50)]
    labels = torch.randint(0, 50, (rows,))
    results = []
    for full in (True, False):
        hidden, weight, bias = (leaf.clone().requires_grad_() for leaf in leaves)
        bias = bias if with_bias else None
        if full:
            loss = F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")
        else:
            loss = chunked_cross_entropy(hidden, weight, bias, labels, chunk)
        loss.backward()
        results.append([loss, hidden.grad, weight.grad, *([bias.grad] if with_bias else [])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_more_logits_than_a_chunk_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, linear = [], F.linear
    monkeypatch.setattr(F, "linear", lambda h, *rest: (seen.append(len(h)), linear(h, *rest))[1])
    chunked_cross_entropy(
        torch.randn(100, 4, requires_grad=True), torch.randn(9, 4), None, torch.zeros(100).long(), 16
    ).backward()
    assert max(seen) == 16 and sum(seen) == 200  # forward, and again in the backward pass


@pytest.fixture(scope="module")
def rows(tiny_model: Path, synthetic_data: Path) -> list[dict[str, Any]]:
    """Encoded rows: two with a picture, one text only."""
    from drive_vlm.models import load_processor

    parts = load_processor(ModelConfig(model=str(tiny_model)))
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision)
    raw = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()[:3]]
    raw[2]["conversations"][0]["value"] = raw[2]["conversations"][0]["value"].removeprefix("<image>\n")
    del raw[2]["image"]
    return [encoder.encode(parse_row(row, "train.jsonl:1", str(synthetic_data))) for row in raw]


def forward(tiny_model: Path, rows: list[dict[str, Any]], for_training: bool, **arguments: Any) -> tuple[Any, Any]:
    """(model, loss) of one unpacked batch, after backward."""
    family = load_family(ModelConfig(model=str(tiny_model)), torch.float32, for_training=for_training, chunk_tokens=3)
    batch = Collator(family.tokenizer.pad_token_id, family.vision)([[row] for row in rows])
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "labels", "pixel_values")}
    loss = family.model(**inputs, **arguments).loss
    loss.backward()
    return family.model, loss


def test_loss_and_gradients_are_those_of_the_model_itself(tiny_model: Path, rows: list) -> None:
    own_model, own = forward(tiny_model, rows, for_training=False)
    our_model, ours = forward(tiny_model, rows, for_training=True)
    assert ours.item() == pytest.approx(own.item(), abs=1e-5)
    for (name, expected), (_, found) in zip(own_model.named_parameters(), our_model.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_the_loss_is_a_sum_over_the_labels_of_the_whole_step(tiny_model: Path, rows: list) -> None:
    labels = sum(int((row["labels"] != IGNORE_INDEX).sum()) for row in rows)
    mean = forward(tiny_model, rows, True)[1].item()
    assert forward(tiny_model, rows, True, num_items_in_batch=torch.tensor(4 * labels))[1].item() == pytest.approx(
        mean / 4, rel=1e-5
    )


def test_a_text_only_batch_passes_the_tower_with_gradients_of_zero(tiny_model: Path, rows: list) -> None:
    own_model, own = forward(tiny_model, rows[2:], for_training=False)
    our_model, ours = forward(tiny_model, rows[2:], for_training=True)
    assert ours.item() == pytest.approx(own.item(), abs=1e-5)
    assert own_model.model.multi_modal_projector.linear_1.weight.grad is None  # unconnected: ZeRO-3 would wait for it
    seen = 0
    for name, parameter in our_model.named_parameters():
        if "vision_tower" in name or "multi_modal_projector" in name:
            if "mask_token" in name:
                continue  # of masked pre-training; no forward pass reaches it
            assert parameter.grad is not None and not parameter.grad.any(), name
            seen += 1
    assert seen > 20
    torch.testing.assert_close(our_model.lm_head.weight.grad, own_model.lm_head.weight.grad, atol=1e-6, rtol=1e-5)


def test_a_batch_without_a_label_has_a_loss_of_zero_and_a_whole_graph(tiny_model: Path, rows: list) -> None:
    silent = [row | {"labels": np.full_like(row["labels"], IGNORE_INDEX)} for row in rows[:1]]
    model, loss = forward(tiny_model, silent, for_training=True)
    assert loss.item() == 0
    assert model.lm_head.weight.grad is not None and not model.lm_head.weight.grad.any()
    assert not model.model.language_model.embed_tokens.weight.grad.any()
    empty, loss = forward(tiny_model, [], for_training=True)
    assert loss.item() == 0 and not empty.model.multi_modal_projector.linear_1.weight.grad.any()


def test_without_labels_the_model_is_as_it_was(tiny_model: Path, rows: list) -> None:
    logits = []
    for for_training in (False, True):
        family = load_family(ModelConfig(model=str(tiny_model)), torch.float32, for_training=for_training)
        inputs = {
            "input_ids": torch.from_numpy(rows[0]["input_ids"])[None],
            "pixel_values": rows[0]["vision"]["pixel_values"],
        }
        with torch.no_grad():
            logits.append(family.model.eval()(**inputs).logits)
    torch.testing.assert_close(logits[0], logits[1])
