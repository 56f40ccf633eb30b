"""Tokens counted from a picture's header must be those that the model gets, for every family and over odd sizes.

A count that is off by one would stop a training after hours, at the first picture of an unlucky size.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drive_vlm.config import ModelConfig
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.models import MODELS, family_spec, load_family, load_processor
from drive_vlm.models.vision import tiles_in

# InternVL and SigLIP + Qwen have tests of their own (test_internvl.py, siglip_qwen/).
FAMILIES = [kind for kind in MODELS if family_spec(kind).adapter and kind not in ("internvl", "siglip_qwen")]

# They keep a picture's own shape and refuse slivers; their videos are tests of their own (qwen_vl/).
QWEN = ("qwen2_5_vl", "qwen3_vl")
TILED = [kind for kind in FAMILIES if kind not in QWEN]


def sizes(count: int, longest: int, seed: int = 0) -> list[tuple[int, int]]:
    """(height, width): squares, cameras, slivers, borders of the grids one pixel to either side, and random ones."""
    random = np.random.default_rng(seed)
    fixed = [(56, 56), (55, 57), (112, 56), (113, 56), (112, 111), (168, 56), (56, 169), (90, 160), (1, 300), (300, 1)]
    fixed += [
        (longest, longest // 3),
        (7, 7),
        (2, 1),
        (64, 63),
        (225, 337),
        (337, 225),
        (100, 101),
        (1080 // 8, 1920 // 8),
    ]
    return fixed + [(int(h), int(w)) for h, w in random.integers(2, longest, (count, 2))]


@pytest.fixture(scope="module")
def models(tiny_families: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda kind: load_family(ModelConfig(model=str(tiny_families(kind))), torch.float32)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height * 1000 + width).integers(0, 255, (height, width, 3), np.uint8))


def of_processor(processor: Any, images: list[Image.Image]) -> list[int]:
    """Token ids that the model's own processor writes for one row with these pictures."""
    text = "a" + "".join(f"{processor.image_token}b" for _ in images)
    return processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False)["input_ids"][
        0
    ].tolist()


@pytest.fixture
def tiny_of(tiny_model: Path, tiny_video_model: Path, tiny_families: Callable[[str], Path]) -> Callable[[str], Path]:
    """A tiny model of every family with pictures."""
    return lambda kind: {"internvl": tiny_model, "siglip_qwen": tiny_video_model}.get(kind) or tiny_families(kind)


SIX = [(336, 336), (720, 1280), (1080, 1920), (376, 1241), (600, 400), (57, 299)]


@pytest.mark.parametrize("kind", ["internvl", "siglip_qwen", *FAMILIES])
def test_the_plain_tiling_is_the_processors(kind: str, tiny_of: Callable[[str], Path]) -> None:
    """A tiling read from the files alone counts the tiles and the tokens that the real processor makes."""
    parts = load_processor(ModelConfig(model=str(tiny_of(kind))))
    stored = [json.loads((tiny_of(kind) / name).read_text()) for name in ("config.json", "processor_config.json")]
    spec, (config, numbers) = family_spec(kind), stored
    assert spec.tiling is not None and parts.vision is not None
    tiling = spec.tiling.read({"image_seq_length": spec.tile_tokens(config)[1], **numbers})
    for height, width in SIX:
        layout = tiling.layout(height, width)
        tensors, counted = parts.vision.load_pixels([picture(height, width)], None, False)
        assert counted == [layout], (height, width)
        tiles = tensors["pixel_values"]
        assert len(tiles) == tiles_in(layout)
        # Slices of MiniCPM-V have about as many pixels as a tile.
        assert tiles[0].numel() == 3 * math.prod(tiling.tile) or kind == "minicpmv"
        assert tiles.shape[-2:] == tiling.tile or kind in (*QWEN, "minicpmv")
        # The tiny tokenizer writes an empty line in two tokens; the adapter asks it, the files cannot say.
        assert parts.vision.tiling.tokens(layout) == len(parts.vision.image_ids(layout)), (height, width)
        assert parts.vision.tiling.tokens(layout) - tiling.tokens(layout) in (0, kind in ("idefics3", "smolvlm"))
        assert tiles_in(layout) <= tiles_in(tiling.largest())
    assert tiling.frame_layout() == parts.vision.frame_layout()


@pytest.mark.parametrize("kind", ["internvl", "siglip_qwen", *FAMILIES])
def test_pixels_are_the_processors_to_the_last_bit(kind: str, tiny_of: Callable[[str], Path]) -> None:
    """They stay uint8 until the device, and what is normalised there equals the real processor's decimals: all levels of all
    channels, cameras and odd sizes, alone and together, upright and turned."""
    parts = load_processor(ModelConfig(model=str(tiny_of(kind))))
    vision = parts.vision
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pictures = [
        Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1)).resize((64, 64), Image.Resampling.NEAREST)
    ]
    # Slivers are refused by some families.
    pictures += [picture(*size) for size in sizes(12, 300) if max(size) < 20 * min(size) and min(size) > 20]
    for row in (*([one] for one in pictures), pictures[:3], pictures[3:5]):
        tensors, layouts = vision.load_pixels(row, None, False)
        assert tensors["pixel_values"].dtype == torch.uint8
        if vision.reads_levels:
            arrays, cut = vision.load_pixels([np.array(one) for one in row], None, False)
            assert torch.equal(arrays["pixel_values"], tensors["pixel_values"]) and cut == layouts
        ours = vision.decimals(tensors)
        assert ours.dtype == torch.float32
        alone = {} if kind != "internvl" else {
            "crop_to_patches": (limit := vision.tiling.share(len(row), None)) > 1, "min_patches": 1, "max_patches": limit
        }  # fmt: skip
        native = [parts.processor.image_processor(images=[one], return_tensors="pt", **alone) for one in row]
        if kind == "minicpmv":
            # Slices of several pictures are padded to the longest of all.
            native = [parts.processor.image_processor(images=row)]
        expected = torch.cat([one["pixel_values"].reshape(-1, *ours.shape[1:]) for one in native])
        assert torch.equal(ours, expected), [one.size for one in row]
        assert sum(tiles_in(layout) for layout in layouts) == len(ours)


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 12, 24])
def test_grids_of_internvl_are_the_processors(limit: int) -> None:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    from drive_vlm.models.internvl import best_grid

    for height, width in [*SIX, *sizes(200, 3000, seed=limit)]:
        canvas = get_optimal_tiled_canvas((height, width), (448, 448), 1, limit)
        assert best_grid(height, width, (448, 448), limit) == canvas, (height, width)


@pytest.mark.parametrize("kind", FAMILIES)
def test_layouts_from_headers_are_the_processors(kind: str, tiny_families: Callable[[str], Path]) -> None:
    parts = load_processor(ModelConfig(model=str(tiny_families(kind))))
    vision, tokenizer = parts.vision, parts.tokenizer
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "ab")
    for height, width in sizes(80, 400):
        image = picture(height, width)
        if kind in QWEN and max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="sliver"):
                vision.layout(height, width, 1, None)
            with pytest.raises(ValueError, match="aspect ratio"):
                of_processor(parts.processor, [image])
            continue
        layout = vision.layout(height, width, 1, None)
        assert of_processor(parts.processor, [image]) == a + vision.image_ids(layout) + b, (height, width)
        assert vision.load_pixels([image], None, False)[1] == [layout], (height, width)


@pytest.mark.parametrize(
    ("longest", "side"), [(1456, 364), (1536, 384), (2048, 512), (728, 364), (1000, 384), (4400, 400)]
)
def test_grids_of_published_sizes(longest: int, side: int, tiny_families: Callable[[str], Path]) -> None:
    """Real sizes without their pixels' cost: the processor's own steps on tensors of one channel."""
    from transformers import Idefics3ImageProcessor
    from transformers.image_utils import SizeDict

    from drive_vlm.models.smolvlm import split

    processor = Idefics3ImageProcessor(size={"longest_edge": longest}, max_image_size={"longest_edge": side})
    cases = [
        (height, width)
        for height, width in sizes(12, 3000, seed=longest)
        if max(height, width) / min(height, width) < 60
    ]
    cases += [
        (longest // 4, longest),
        (longest // 4 + 1, longest),
        (side + 1, longest),
        (longest, side + 1),
        (3, 4 * side),
    ]
    for height, width in cases[:: 1 if longest < 4096 else 5]:  # 4,400 pixels a side take their time
        image = processor.resize(torch.zeros(1, 1, height, width), SizeDict(longest_edge=longest))
        image = processor.resize_for_vision_encoder(image, side)
        _, rows, columns = processor.split_images(image, {"longest_edge": side})
        assert split(height, width, longest, side) == (rows[0], columns[0]), (height, width)


@pytest.mark.parametrize("pinpoints", [336, 384])
def test_crops_of_published_sizes(pinpoints: int) -> None:
    """The model's own unpadding of real grids gives as many tokens as the sizes alone."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    from drive_vlm.models.llava_next import LlavaNextTiling

    side, patch = pinpoints, 14
    grids = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    tiling = LlavaNextTiling(side, patch, grids, extra_tokens=0)
    for height, width in [*sizes(300, 4000), (900, 1600), (1080, 1920), (720, 1280), (376, 1241)]:
        rows, columns = get_anyres_image_grid_shape((height, width), grids, side)
        patches = side // patch
        kept = unpad_image(torch.zeros(1, rows * patches, columns * patches), (height, width))
        tokens = patches * patches + kept.shape[1] * (kept.shape[2] + 1)
        assert tiling.layout(height, width) == (rows * columns + 1, tokens), (height, width)


@pytest.mark.parametrize("kind", FAMILIES)
def test_encoded_rows_give_the_logits_of_the_processors_batch(kind: str, models: Callable, tmp_path: Path) -> None:
    """One row with two pictures of odd sizes, through our data path and through the model's own processor."""
    family = models(kind)
    for name, size in (("a.png", (61, 143)), ("b.png", (150, 40))):
        picture(*size).save(tmp_path / name)
    turns = [{"from": "human", "value": "<image>\nWhat is ahead? <image>\n"}, {"from": "gpt", "value": "a car"}]
    sample = parse_row({"id": "1", "image": ["a.png", "b.png"], "conversations": turns}, "x:1", str(tmp_path), True)
    encoder = Encoder(family.tokenizer, family.template, family.vision)
    features = encoder.encode(sample)
    layouts = encoder.layouts_of(sample)
    text = encoder.render(sample, layouts).text
    assert encoder.lengths([text], [layouts]) == [len(features["input_ids"])]
    images = [Image.open(path) for path in sample.images]
    own = family.processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False)
    assert own["input_ids"][0].tolist() == features["input_ids"].tolist()
    family.model.eval()
    with torch.no_grad():
        expected = family.model(**{key: value for key, value in own.items() if key != "attention_mask"}).logits
        ids = torch.from_numpy(features["input_ids"])[None]
        ours = family.model(input_ids=ids, **family.vision.collate_vision([features["vision"]])).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TILED)
def test_a_video_becomes_its_frames(kind: str, models: Callable, tmp_path: Path) -> None:
    """The templates write nothing for a video: its frames stand as pictures, all of one layout whatever their size."""
    family = models(kind)
    (tmp_path / "clip").mkdir()
    for i, size in enumerate([(30, 90), (90, 30), (70, 70)]):
        picture(*size).save(tmp_path / "clip" / f"{i}.png")
    turns = [{"from": "human", "value": "<video>\nDescribe it."}, {"from": "gpt", "value": "a car"}]
    sample = parse_row({"id": "1", "video": "clip", "conversations": turns}, "x:1", str(tmp_path), True)
    encoder = Encoder(family.tokenizer, family.template, family.vision, num_frames=2)
    features = encoder.encode(sample)
    frame = family.vision.image_ids(family.vision.frame_layout())
    image_id = encoder.image_id
    assert (features["input_ids"] == image_id).sum() == 2 * frame.count(image_id)
    with torch.no_grad():
        family.model(
            input_ids=torch.from_numpy(features["input_ids"])[None],
            **family.vision.collate_vision([features["vision"]]),
        )


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_max_tiles_of_smolvlm(kind: str, tiny_families: Callable[[str], Path]) -> None:
    vision = load_processor(ModelConfig(model=str(tiny_families(kind)), max_tiles=4)).vision
    free = load_processor(ModelConfig(model=str(tiny_families(kind)))).vision
    assert free.layout(100, 100, 1, None) == (5, 2, 2)
    assert free.layout(100, 100, 3, None) == (5, 2, 2)  # without a limit as the processor does it
    assert vision.layout(100, 100, 1, None) == (1, 0, 0)
    assert vision.layout(50, 100, 1, None) == (3, 1, 2)
    assert vision.layout(50, 100, 2, None) == (1, 0, 0)  # two tiles for each of two pictures
    assert vision.layout(100, 100, 1, 5) == (5, 2, 2)  # a data file's own limit goes before
    for height, width in sizes(30, 300):
        for count, limit in ((1, None), (2, None), (1, 5), (3, 7)):
            layouts = [vision.layout(height, width, count, limit)] * count
            assert vision.load_pixels([picture(height, width)] * count, limit, False)[1] == layouts
            assert layouts[0][0] <= max(1, (limit or 4) // count)


def test_max_tiles_of_llava_next(tiny_families: Callable[[str], Path]) -> None:
    path = str(tiny_families("llava_next"))
    family = load_family(ModelConfig(model=path, max_tiles=3), torch.float32)
    assert family.vision.tiling.grids == family.model.config.image_grid_pinpoints == [[56, 112], [112, 56]]
    assert family.vision.layout(112, 112, 1, None)[0] == 3
    with pytest.raises(ValueError, match=r"--max_tiles 2: the smallest grid .* has 3 crops"):
        load_processor(ModelConfig(model=path, max_tiles=2))
    with pytest.raises(ValueError, match=r"max_dynamic_patch 2: a picture of 112 x 100 has 5 crops.*give --max_tiles"):
        load_processor(ModelConfig(model=path)).vision.layout(100, 112, 1, 2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_trains_gets_a_gradient(kind: str, tiny_families: Callable[[str], Path]) -> None:
    """DDP waits for every trained weight: one that a picture does not reach would hang a run. Also without a picture."""
    family = load_family(ModelConfig(model=str(tiny_families(kind))), torch.float32, for_training=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    family.model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in family.model.named_parameters() if p.requires_grad}
    reached = {name for name, p in family.model.named_parameters() if p.grad is not None}
    assert trained == reached
    frozen = {name for name, p in family.model.named_parameters() if not p.requires_grad}
    assert all("encoder.layers.2." in name or "post_layernorm" in name for name in frozen)
    assert bool(frozen) == (kind == "llava_next")
    parts = set(family.parts["language_model"] + family.parts["vision_tower"] + family.parts["projector"])
    others = {name for name in trained if not name.startswith(tuple(f"{part}." for part in parts))}
    assert others == ({"model.image_newline"} if kind == "llava_next" else set())
