"""Template, labels, processor and the picture side of the data path."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow, parse_row
from drive_vlm.data.sources import open_sources
from drive_vlm.data.table import build_table
from drive_vlm.models import load_processor
from drive_vlm.models.family import Family
from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig

Rows = list[dict[str, Any]]


def test_template_and_labels_as_qwen3_has_them(family: Family, raw: Rows, encode: Callable) -> None:
    """The empty think block stands before the last answer only and is no word of the assistant."""
    turns = [("human", "<image>\nA?"), ("gpt", "one"), ("human", "B?"), ("gpt", "two")]
    words = [{"from": who, "value": text} for who, text in turns]
    (row,) = encode([{"id": "x", "image": raw[2]["image"], "conversations": words}])
    text = family.tokenizer.decode(row["input_ids"])
    pads = "<|image_pad|>" * 16
    assert text == (
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>A?<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\ntwo<|im_end|>\n"
    )
    assert family.tokenizer.decode(row["labels"][row["labels"] != -100]) == "one<|im_end|>two<|im_end|>"
    message = [{"role": "user", "content": "B?"}]
    ask = {"tokenize": False, "add_generation_prompt": True}
    empty, header = "<think>\n\n</think>\n\n", "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n"
    assert family.processor.apply_chat_template(message, **ask) == header + empty
    assert family.tokenizer.apply_chat_template(message, **ask, enable_thinking=False) == header + empty
    assert family.tokenizer.apply_chat_template(message, **ask, enable_thinking=True) == header


def test_the_processor_writes_what_the_data_path_writes(
    family: Family, raw: Rows, synthetic_data: Path, encode: Callable
) -> None:
    """GRPO gives a clip as its frames through the processor; SFT read it as a video."""
    from drive_vlm.data.vision import load_video

    (row,) = encode(raw[:1], prompt=True)
    frames = load_video(str(synthetic_data / raw[0]["video"]), 4, "here")
    question = raw[0]["conversations"][0]["value"].removeprefix("<video>\n")
    parts = [{"type": "image", "image": frame} for frame in frames] + [{"type": "text", "text": question}]
    found = family.processor.apply_chat_template(
        [[{"role": "user", "content": parts}]] * 2,
        tokenize=True, add_generation_prompt=True, return_dict=True, processor_kwargs={"return_tensors": "pt", "padding": True},
    )  # fmt: skip
    assert found["input_ids"][1].tolist() == row["input_ids"].tolist()
    assert torch.equal(found["pixel_values"][4:], family.vision.decimals(row["vision"]))
    with pytest.raises(ValueError, match=r"hold 1 <\|image_pad\|>, but 2 pictures are given"):
        family.processor(text="<|image_pad|>", images=frames[:2])
    with pytest.raises(ValueError, match="give a video as its frames"):
        family.processor(text="<|video_pad|>")


def test_too_many_frames_are_refused_before_training_and_by_the_model(
    family: Family, raw: Rows, synthetic_data: Path, tiny_video_model: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_video_model, short)
    for name in ("config.json", "processor_config.json"):
        (short / name).write_text((short / name).read_text().replace('"max_frames": 16', '"max_frames": 3'))
    vision = load_processor(ModelConfig(model=str(short))).vision
    encoder = Encoder(family.tokenizer, family.template, vision, 4)
    with pytest.raises(
        BadRow, match=r"rows.jsonl:1: .*has 4 frames, but the model has temporal embeddings for 3\. Lower --num_frames"
    ):
        encoder.encode(parse_row(raw[0], "rows.jsonl:1", str(synthetic_data)))
    mixed = tmp_path / "mixed.jsonl"  # one video is too long, a row without one is not
    turns = [{"from": "human", "value": "Which light?"}, {"from": "gpt", "value": "red"}]
    mixed.write_text(json.dumps(raw[0]) + "\n" + json.dumps({"id": "text", "conversations": turns}) + "\n")
    table = build_table(open_sources([str(mixed)], str(synthetic_data)), encoder, "skip")
    assert len(table) == 1 and [(row.reason, row.where) for row in table.bad] == [("too_many_frames", f"{mixed}:1")]
    pixels = torch.zeros(17, 3, 56, 56)
    ids = torch.full((1, 17 * 16), family.model.config.image_token_id)
    with pytest.raises(ValueError, match="has 17 frames, but the model has temporal embeddings for 16"):
        family.model(input_ids=ids, pixel_values=pixels)


@pytest.fixture(scope="module")
def qwen3(kit: Path) -> tuple[Any, str]:
    """The real tokenizer, prepared for pictures, which it has all tokens for, and its own template."""
    from transformers import AutoTokenizer

    from drive_vlm.models.siglip_qwen.compose import _prepare_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(kit / "models" / "qwen3-tokenizer")
    own, size = tokenizer.chat_template, len(tokenizer)
    tokenizer, thinks = _prepare_tokenizer(tokenizer, "qwen3")
    assert thinks and len(tokenizer) == size == 151_669
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == SiglipQwenConfig().image_token_id
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    return tokenizer, own


@pytest.mark.kit
@pytest.mark.parametrize("turns", ["u", "ua", "suau", "suaua", "uauaua"])
def test_text_is_written_as_qwen3_itself_writes_it(qwen3: tuple[Any, str], turns: str) -> None:
    """Its own template with thinking off writes the same."""
    from drive_vlm.models.siglip_qwen.processing import chat_template

    tokenizer, own = qwen3
    roles = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": roles[turn], "content": f"words {i}"} for i, turn in enumerate(turns)]
    how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": turns.endswith("u")}
    ours = chat_template(True)
    for thinking in (True, False):
        written = tokenizer.apply_chat_template(messages, chat_template=own, enable_thinking=thinking, **how)
        assert tokenizer.apply_chat_template(messages, chat_template=ours, enable_thinking=thinking, **how) == written
    assert tokenizer.apply_chat_template(messages, chat_template=ours, **how) == written
