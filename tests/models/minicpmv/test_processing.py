"""Pictures and texts against what the published code made of them, and the way of a published directory to a processor."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from drive_vlm.config import ModelConfig
from drive_vlm.data.chat import ChatRenderer
from drive_vlm.data.turns import IMAGE, Turn
from drive_vlm.models import load_processor
from drive_vlm.models.minicpmv.processing import MiniCPMVImageProcessor, patchify, slice_text
from drive_vlm.models.minicpmv.tiling import MiniCPMVTiling, grid_of, sizes_of
from drive_vlm.models.minicpmv.versions import VERSIONS

NUMBERS = {"scale_resolution": 448, "patch_size": 14, "image_feature_size": 96, "max_slice_nums": 9, "version": "2.5"}


def drawn(width: int, height: int) -> Image.Image:
    """The picture that the golden data were made of (its README)."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red, green = 3 * x + 5 * y, 37 * (x // 16) + 91 * (y // 16)
    blue = x * x // 64 + y * y // 32 + x * y // 128
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def test_slices_are_the_published_ones(golden: Path, recorded: Callable) -> None:
    """Of four pictures: every pixel of every slice, the numbers of the tower, the text that stands for them."""
    processor, expected = MiniCPMVImageProcessor(), json.loads((golden / "preprocess.json").read_text())["images"]
    # Up to Pillow 12.1 its bicubic filter gives other values to some of these pixels.
    same_pixels = int(PIL.__version__.partition(".")[0]) >= 13
    for one in expected:
        picture = drawn(one["width"], one["height"])
        assert hashlib.sha256(picture.tobytes()).hexdigest() == one["input_sha256"]
        cells, layout = processor.cells(picture)
        if same_pixels:
            assert [hashlib.sha256(cell.tobytes()).hexdigest() for cell in cells] == one["cells_sha256"]
        assert [layout[2], layout[1]] == (one["grid_cols_rows"] or [0, 0])
        patches = [processor.patches(cell) for cell in cells]
        assert [list(size) for _, size in patches] == one["tgt_sizes_hw"]
        assert [list(tensor.shape) for tensor, _ in patches] == one["pixel_values_shapes"]
        decimals = [processor.normalised(tensor[None], torch.tensor([size]))[0] for tensor, size in patches]
        assert [tensor.mean().item() for tensor in decimals] == pytest.approx(
            one["pixel_values_mean"], abs=2e-6 if same_pixels else 1e-4
        )
        text = slice_text(VERSIONS["2.5"], layout, 96)
        assert text == one["placeholder"].replace("<unk>x96", "<unk>" * 96)
        tokens = one["query_tokens"] + one["special_tokens_without_newlines"] + one["newlines"]
        assert MiniCPMVTiling.read({"image_processor": NUMBERS}).tokens(layout) == tokens
        if one["width"] == 400 and same_pixels:
            first = recorded("preprocess")["pixel_values.1.0_first40patches"]
            torch.testing.assert_close(decimals[0][..., :560], first, atol=1e-6, rtol=0)
    tensors = recorded("preprocess")
    assert torch.equal(patchify(tensors["patchify_input_3x42x28"], 14)[0], tensors["patchify_output"])


def test_sizes_of_528_pictures(recorded: Callable) -> None:
    for width, height, *expected in recorded("preprocess")["grid_table"].tolist():
        grid = grid_of(width, height, 448, 9)
        whole, *cell = sizes_of(width, height, 448, 14, grid)
        refined = [cell[0][0] * grid[0], cell[0][1] * grid[1]] if cell else [0, 0]
        assert [*grid, *whole] == expected[:4], (width, height)
        assert not cell or refined == expected[4:], (width, height)


def test_the_dialog_is_the_published_one(golden: Path, tiny_families: Callable[[str], Path]) -> None:
    """For generation and for training, and the labels cover each answer with its end of turn."""
    parts = load_processor(ModelConfig(model=str(tiny_families("minicpmv"))))
    chat = ChatRenderer(parts.tokenizer, parts.template, [])
    asked = Turn("user", (IMAGE, "What should the ego car do? ")), Turn("assistant", ("Slow down and keep right.",))
    turns = (*asked, Turn("user", ("Why?",)), Turn("assistant", (" A cone blocks the lane.\n",)))
    for case, layout in zip(
        json.loads((golden / "chat.json").read_text())["cases"], ((9, 2, 4), (1, 0, 0)), strict=True
    ):
        picture = slice_text(VERSIONS["2.5"], layout, 96)
        learned, prompt = chat.render(turns, "x:1"), chat.render(turns[:3], "x:1", prompt=True)
        texts = [one.text.replace("<unk>", picture) for one in (prompt, learned)]
        assert texts == [case[name].replace("<unk>x96", "<unk>" * 96) for name in ("generation", "training")]
        spoken = [learned.text[start:end] for start, end in learned.spans]
        assert spoken == ["Slow down and keep right.<|eot_id|>", "A cone blocks the lane.<|eot_id|>"]


def test_pictures_of_2_6_are_numbered(tiny_2_6: Path) -> None:
    """64 queries; slices have tags of their own and no outer ones; each picture has its number in the row in front."""
    parts = load_processor(ModelConfig(model=str(tiny_2_6)))
    version = VERSIONS["2.6"]
    cell = "<slice><unk><unk></slice>"
    assert slice_text(version, (1, 0, 0), 2) == "<image><unk><unk></image>"
    assert slice_text(version, (5, 2, 2), 2) == f"<image><unk><unk></image>{cell}{cell}\n{cell}{cell}"
    chat = ChatRenderer(parts.tokenizer, parts.template, [])
    text = chat.render((Turn("user", (IMAGE, IMAGE, "Go?")), Turn("assistant", ("No.",))), "x:1").text
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image_id>0</image_id><unk>\n"
        "<image_id>1</image_id><unk>\nGo?<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    )
    for layout in ((1, 0, 0), (5, 2, 2)):
        assert parts.vision is not None
        assert len(parts.vision.image_ids(layout)) == parts.vision.tiling.tokens(layout)


def test_max_tiles(tiny_families: Callable[[str], Path]) -> None:
    """Slices and the whole together; each of n pictures has its share, as the tensors have it."""
    path = str(tiny_families("minicpmv"))
    free, four = (load_processor(ModelConfig(model=path, max_tiles=most)).vision for most in (None, 4))
    assert free is not None and four is not None
    assert free.layout(112, 112, 1, None) == (5, 2, 2) and four.layout(112, 112, 1, None) == (3, 2, 1)
    assert four.layout(112, 112, 2, None) == (1, 0, 0)
    for height, width in ((112, 112), (60, 300), (20, 20), (1, 1)):
        for count, limit in ((1, None), (2, None), (1, 3), (3, 9)):
            picture = Image.new("RGB", (width, height))
            layouts = [four.layout(height, width, count, limit)] * count
            assert four.load_pixels([picture] * count, limit, False)[1] == layouts
            assert layouts[0][0] <= max(1, (limit or 4) // count)


def test_a_published_directory_needs_no_remote_code(tiny_families: Callable[[str], Path], tmp_path: Path) -> None:
    """With the hub's own files: names of code that is not loaded, "!" as padding, a template for text alone."""
    own = tiny_families("minicpmv")
    folder = tmp_path / "published"
    shutil.copytree(own, folder)
    numbers = json.loads((own / "processor_config.json").read_text())["image_processor"]
    numbers |= {
        "auto_map": {"AutoProcessor": "processing_minicpmv.MiniCPMVProcessor"},
        "im_start": "<image>",
        "version": 2.5,
    }
    numbers |= {"processor_class": "MiniCPMVProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words |= {"auto_map": {"AutoTokenizer": ["x.MiniCPMVTokenizerFast", None]}, "tokenizer_class": "MiniCPMVTokenizer"}
    words |= {"pad_token": "!", "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_minicpmv.MiniCPMV"}
    del config["image_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    found, expected = (load_processor(ModelConfig(model=str(path))) for path in (folder, own))
    assert found.template == expected.template and found.vision is not None and expected.vision is not None
    assert found.vision.fingerprint() == expected.vision.fingerprint()
    assert found.tokenizer.pad_token == "<|end_of_text|>" and found.tokenizer.eos_token == "<|eot_id|>"
    assert found.tokenizer.decode(found.tokenizer("Go!")["input_ids"], skip_special_tokens=True) == "Go!"
    found.processor.save_pretrained(tmp_path / "again")
    again: Any = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert again == json.loads((own / "processor_config.json").read_text())
