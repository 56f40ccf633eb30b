"""Which frame is which in every kind of batch; batches, packs and cached features; what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.family import Family
from drive_vlm.models.siglip_qwen.modeling import frame_numbers
from drive_vlm.sampling.local import left_padded

Rows = list[dict[str, Any]]

IMAGE = 9


@pytest.mark.parametrize(
    ("input_ids", "position_ids", "expected"),
    [
        ([[IMAGE] * 4 + [1, 2]], None, [0, 1]),
        ([[1, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3]], None, [0, 1]),
        # rows of one, no and two frames, padded right and left
        ([[IMAGE, IMAGE, 1, 0, 0], [1, 2, 3, 4, 5], [0, IMAGE, IMAGE, IMAGE, IMAGE]], None, [0, 0, 1]),
        # left padding as generate writes it: positions of padding are 0 or 1
        ([[0, 0, 5, IMAGE, IMAGE, IMAGE, IMAGE]], [[0, 0, 0, 1, 2, 3, 4]], [0, 1]),
        ([[0, 0, 5, IMAGE, IMAGE, IMAGE, IMAGE]], [[1, 1, 0, 1, 2, 3, 4]], [0, 1]),
        # a pack of a video of two frames, a text, a picture and a video; padding is a segment of its own
        (
            [[IMAGE, IMAGE, IMAGE, IMAGE, 1, 2, 3, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 0, 0]],
            [[0, 1, 2, 3, 4, 0, 1, 0, 1, 0, 1, 2, 3, 0, 1]],
            [0, 1, 0, 0, 1],
        ),
        # positions [1, T] that all rows share
        ([[1, IMAGE, IMAGE], [2, IMAGE, IMAGE]], [[0, 1, 2]], [0, 0]),
        ([[1, 2, 3]], None, []),
    ],
)
def test_frame_numbers_by_hand(input_ids: list, position_ids: list | None, expected: list[int]) -> None:
    positions = None if position_ids is None else torch.tensor(position_ids)
    assert frame_numbers(torch.tensor(input_ids), positions, IMAGE, 2).tolist() == expected


def test_a_row_that_was_cut_off_is_refused_even_when_the_total_is_right() -> None:
    """Three tokens in one row and one in the other are as many as two frames have."""
    with pytest.raises(ValueError, match="no whole frames of 2 tokens: 4 tokens in the batch begin 3 frames"):
        frame_numbers(torch.tensor([[IMAGE] * 3, [1, 1, IMAGE]]), None, IMAGE, 2)


def test_frame_t_gets_embedding_t(family: Family, rows: Rows, batch_of: Callable) -> None:
    """Clip, text, picture, two pictures, clip: frames 0-3, 0, 0-1, 0-3."""
    body, inputs = family.model.model, batch_of([[row] for row in rows])
    with torch.no_grad():
        features = body.tower_features(inputs["pixel_values"])
        times = body.temporal_embeddings.weight[torch.tensor([0, 1, 2, 3, 0, 0, 1, 0, 1, 2, 3])]
        expected = body.projector(features + times[:, None])
        found = hidden_inputs(family, inputs)
    assert found.shape == (11, 16, 64) and torch.equal(found, expected)


def hidden_inputs(family: Family, inputs: dict[str, Any]) -> torch.Tensor:
    """What the language model is given at the image tokens: float[P, L', D]."""
    body, seen = family.model.model, []
    hook = body.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    family.model(**{key: value for key, value in inputs.items() if key not in ("labels", "num_tokens")})
    hook.remove()
    places = inputs["input_ids"] == body.config.image_token_id
    return seen[0][places].reshape(-1, body.config.image_seq_length, seen[0].shape[-1])


def test_order_of_frames_matters_through_the_embeddings_only(family: Family, rows: Rows, batch_of: Callable) -> None:
    """With the embeddings at zero a shuffled clip gives the shuffled tokens; with them it gives others."""
    body, inputs = family.model.model, batch_of([[rows[0]]])
    shuffled = dict(inputs, pixel_values=inputs["pixel_values"][[2, 0, 3, 1]])
    kept = body.temporal_embeddings.weight.detach().clone()
    with torch.no_grad():
        moved = (hidden_inputs(family, shuffled) - hidden_inputs(family, inputs)[[2, 0, 3, 1]]).abs()
        body.temporal_embeddings.weight.zero_()
        still = (hidden_inputs(family, shuffled) - hidden_inputs(family, inputs)[[2, 0, 3, 1]]).abs()
        body.temporal_embeddings.weight.copy_(kept)
    assert still.max() < 1e-5
    assert moved.amax((1, 2)).min() > 1e-2  # every frame came to another place


def test_only_embeddings_of_frames_that_are_there_learn(family: Family, rows: Rows, batch_of: Callable) -> None:
    family.model(**batch_of([[rows[0]], [rows[2]]])).loss.backward()
    reached = family.model.model.temporal_embeddings.weight.grad.abs().sum(1) > 0
    family.model.zero_grad()
    assert reached.tolist() == [True] * 4 + [False] * 12


def test_batch_equals_single_rows_equals_pack(family: Family, rows: Rows, batch_of: Callable) -> None:
    pad = family.tokenizer.pad_token_id
    with torch.no_grad():
        single = [family.model(**batch_of([[row]])).logits[0, : len(row["input_ids"])] for row in rows]
        batch = batch_of([[row] for row in rows])
        together = family.model(**batch).logits
        pack = batch_of([rows[:3], rows[3:]], packed=True)
        packed = family.model(**pack, use_cache=False).logits
        left = left_padded(rows, pad, family.vision.collate_vision)
        width = left["input_ids"].shape[1]
        # padded on the left: positions as generate derives them
        positions = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
        left_logits = family.model(**left, position_ids=positions).logits
    ends = (
        np.cumsum([0, *(len(row["input_ids"]) for row in rows[:3])]),
        np.cumsum([0, *(len(row["input_ids"]) for row in rows[3:])]),
    )
    places = [(0, i) for i in ends[0][:-1]] + [(1, i) for i in ends[1][:-1]]
    for i, expected in enumerate(single):
        b, start = places[i]
        torch.testing.assert_close(together[i, : len(expected)], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(packed[b, start : start + len(expected)], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(left_logits[i, width - len(expected) :], expected, atol=1e-5, rtol=1e-4)


def test_cached_features_are_as_good_as_pixels(
    family: Family, rows: Rows, batch_of: Callable, with_features: Callable
) -> None:
    inputs = batch_of([[row] for row in rows])
    gradients = []
    for given in (inputs, with_features(inputs)):
        loss = family.model(**given).loss
        loss.backward()
        body = family.model.model
        gradients.append((loss.detach(), body.projector.linear_1.weight.grad, body.temporal_embeddings.weight.grad))
        family.model.zero_grad()
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_text_in_training_passes_the_tower(
    tiny_video_model: Path, family: Family, rows: Rows, batch_of: Callable
) -> None:
    trained = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32, for_training=True)
    inputs = batch_of([[rows[1]]])
    ours = trained.model(**inputs).loss
    ours.backward()
    assert ours.item() == pytest.approx(family.model(**inputs).loss.item(), abs=1e-5)
    unreached = {name for name, p in trained.model.named_parameters() if p.grad is None}
    assert not unreached


@pytest.mark.parametrize("change", [{"pixel_values": 5}, {"pixel_values": 3}])
def test_counts_that_differ_are_refused(family: Family, rows: Rows, change: dict[str, int], batch_of: Callable) -> None:
    inputs = batch_of([[rows[0]]])
    inputs["pixel_values"] = torch.zeros(change["pixel_values"], 3, 56, 56)
    needed = change["pixel_values"] * 16
    message = rf"hold 64 image tokens \(4 frames of 16\), but {change['pixel_values']} pictures .* need {needed}"
    with pytest.raises(ValueError, match=message):
        family.model(**inputs)


def test_pictures_in_two_forms_or_without_words_are_refused(
    family: Family, rows: Rows, batch_of: Callable, with_features: Callable
) -> None:
    inputs = batch_of([[rows[0]]])
    both = dict(with_features(inputs), pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="exactly one of pixel_values and vision_features"):
        family.model(**both)
    with pytest.raises(ValueError, match="Pictures need input_ids"):
        family.model(inputs_embeds=torch.zeros(1, 4, 64), pixel_values=inputs["pixel_values"])


def test_a_frozen_tower_keeps_nothing_for_the_backward_pass(
    tiny_video_model: Path, rows: Rows, batch_of: Callable
) -> None:
    """Gradient checkpointing lets gradients into the tower's patch embeddings: without care all of it would run backward."""
    family = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32, for_training=True)
    family.model.train()
    family.model.gradient_checkpointing_enable({"use_reentrant": False})
    family.model.enable_input_require_grads()
    pixels = batch_of([[rows[0]]])["pixel_values"]
    assert family.model.model.tower_features(pixels).requires_grad
    family.model.model.vision_tower.requires_grad_(False)
    assert not family.model.model.tower_features(pixels).requires_grad
    family.model(**batch_of([[rows[0]]])).loss.backward()
    assert family.model.model.temporal_embeddings.weight.grad.abs().sum() > 0
