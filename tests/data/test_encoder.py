"""Token ids and pixels equal those of the native processor; lengths equal what is encoded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drive_vlm.data.encoder import Encoder, shuffled_order
from drive_vlm.data.samples import BadRow, Sample, parse_row
from drive_vlm.data.vision import frame_indices


def sample_of(pictures: Path, names: list[str], **more: Any) -> Sample:
    text = "".join("<image>\n" for _ in names) + "What is ahead?"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "a truck"}]
    return parse_row({"image": names, "conversations": turns} | more, "rows.jsonl:1", str(pictures))


def native_messages(count: int, kind: str = "image") -> list[dict[str, Any]]:
    content = [{"type": kind}] * count + [{"type": "text", "text": "What is ahead?"}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a truck"}]},
    ]


@pytest.mark.parametrize("max_tiles", [None, 1, 2, 3, 9])
@pytest.mark.parametrize(
    "names",
    [["wide.png"], ["tall.jpg"], ["square.png"], ["wide.png", "tall.jpg"], ["wide.png", "wide.png", "tall.jpg"]],
)
def test_pictures_equal_the_native_processor(
    names: list[str], max_tiles: int | None, parts: Any, encoder: Encoder, pictures: Path
) -> None:
    """n pictures of a row share the tiles: max_tiles // n for each, at least one (InternVL's own training code)."""
    sample = sample_of(pictures, names)
    ours = encoder.encode(sample, max_tiles)
    limit = max(1, (max_tiles or 4) // len(names))
    text = parts.processor.apply_chat_template(native_messages(len(names)), tokenize=False)
    images = [Image.open(pictures / name).convert("RGB") for name in names]
    native = parts.processor(
        images=images, text=[text], crop_to_patches=limit > 1, min_patches=1, max_patches=limit, return_tensors="pt"
    )
    assert ours["input_ids"].tolist() == native["input_ids"][0].tolist()
    assert ours["vision"]["pixel_values"].shape == native["pixel_values"].shape
    assert (parts.vision.decimals(ours["vision"]) == native["pixel_values"]).all()
    tiles = encoder.layouts_of(sample, max_tiles)
    assert sum(tiles) == len(native["pixel_values"])
    assert encoder.lengths([encoder.render(sample, tiles).text], [tiles]) == [len(ours["input_ids"])]


def test_a_wide_picture_has_several_tiles_and_a_thumbnail(encoder: Encoder, pictures: Path) -> None:
    assert encoder.layouts_of(sample_of(pictures, ["wide.png"])) == [3]  # 2 x 1 and the thumbnail
    assert encoder.layouts_of(sample_of(pictures, ["square.png"])) == [1]
    assert encoder.layouts_of(sample_of(pictures, ["wide.png"] * 3)) == [1, 1, 1]


def test_video_frames_equal_the_native_processor(parts: Any, encoder: Encoder, pictures: Path) -> None:
    turns = [{"from": "human", "value": "<video>\nWhat is ahead?"}, {"from": "gpt", "value": "a truck"}]
    sample = parse_row({"video": "clip", "conversations": turns}, "rows.jsonl:1", str(pictures))
    ours = encoder.encode(sample)
    frames = [np.asarray(Image.open(pictures / "clip" / f"{i}.png")) for i in frame_indices(6, 4)]
    text = parts.processor.apply_chat_template(native_messages(1, "video"), tokenize=False)
    native = parts.processor(videos=[np.stack(frames)], text=[text], do_sample_frames=False, return_tensors="pt")
    assert ours["input_ids"].tolist() == native["input_ids"][0].tolist()
    # The native processor resizes videos as tensors and pictures as pictures: the same up to rounding.
    assert ours["vision"]["pixel_values"].shape == native["pixel_values"].shape == (4, 3, 56, 56)
    assert (parts.vision.decimals(ours["vision"]) - native["pixel_values"]).abs().max() < 0.05


def test_blank_pictures_keep_the_tokens(parts: Any, encoder: Encoder, pictures: Path) -> None:
    blank = Encoder(parts.tokenizer, parts.template, parts.vision, blank_images=True)
    seen, unseen = (one.encode(sample_of(pictures, ["wide.png"])) for one in (encoder, blank))
    assert seen["input_ids"].tolist() == unseen["input_ids"].tolist()
    flat = parts.vision.decimals(unseen["vision"])
    assert flat.shape == seen["vision"]["pixel_values"].shape
    assert (flat.amax((0, 2, 3)) - flat.amin((0, 2, 3))).abs().max() < 1e-6


def test_shuffled_frames_are_the_same_frames_in_an_order_of_the_rows_id(parts: Any, pictures: Path) -> None:
    turns = [{"from": "human", "value": "<video>\nWhat first?"}, {"from": "gpt", "value": "a truck"}]
    rows = [
        parse_row({"id": i, "video": "clip", "conversations": turns}, "rows.jsonl:1", str(pictures)) for i in "abcd"
    ]
    plain, shuffled = (
        Encoder(parts.tokenizer, parts.template, parts.vision, num_frames=6, shuffle_frames=s) for s in (False, True)
    )
    true = plain.encode(rows[0])
    seen = [shuffled.encode(row) for row in rows]
    orders = [shuffled_order(row.id, 6) for row in rows]
    assert len({tuple(order) for order in orders}) > 2 and orders != [list(range(6))] * 4
    for one, order in zip(seen, orders, strict=True):
        assert one["input_ids"].tolist() == true["input_ids"].tolist()
        assert torch.equal(one["vision"]["pixel_values"], true["vision"]["pixel_values"][order])
    assert torch.equal(shuffled.encode(rows[1])["vision"]["pixel_values"], seen[1]["vision"]["pixel_values"])


def test_a_row_longer_than_max_length(parts: Any, pictures: Path) -> None:
    encoder = Encoder(parts.tokenizer, parts.template, parts.vision, max_length=20)
    with pytest.raises(BadRow, match=r"rows\.jsonl:1: the row has \d+ tokens, more than --max_length 20") as caught:
        encoder.encode(sample_of(pictures, ["wide.png"]))
    assert caught.value.reason == "too_long"


def test_pictures_for_a_plain_language_model(parts: Any, pictures: Path) -> None:
    encoder = Encoder(parts.tokenizer, parts.template, None)
    with pytest.raises(BadRow, match="the model is a plain language model"):
        encoder.encode(sample_of(pictures, ["wide.png"]))


def test_a_template_that_writes_no_image_token(parts: Any, pictures: Path) -> None:
    encoder = Encoder(parts.tokenizer, parts.template.replace("<IMG_CONTEXT>\n", ""), parts.vision)
    with pytest.raises(ValueError, match="wrote 0 image tokens for 1 pictures"):
        encoder.encode(sample_of(pictures, ["wide.png"]))


def test_the_fingerprint_follows_whatever_changes_a_length(parts: Any, tiny_model: Path, encoder: Encoder) -> None:
    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_processor

    fewer = load_processor(ModelConfig(model=str(tiny_model), max_tiles=2))
    others: list[Callable[[], Encoder]] = [
        lambda: Encoder(parts.tokenizer, parts.template + "{# another #}", parts.vision, 4),
        lambda: Encoder(parts.tokenizer, parts.template, parts.vision, 5),
        lambda: Encoder(parts.tokenizer, parts.template, fewer.vision, 4),
        lambda: Encoder(parts.tokenizer, parts.template, None, 4),
    ]
    prints = [encoder.fingerprint(), *(make().fingerprint() for make in others)]
    assert len(set(prints)) == len(prints)
    assert Encoder(parts.tokenizer, parts.template, parts.vision, 4, max_length=9).fingerprint() == prints[0]
