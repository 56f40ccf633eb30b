"""Generation from prompts of every kind, and saving and loading."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
from drive_vlm.models.family import Family
from drive_vlm.sampling.local import left_padded

Rows = list[dict[str, Any]]


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_generation_with_cache_equals_greedy_without(
    family: Family, raw: Rows, kind: str, with_features: Callable, encode: Callable
) -> None:
    """Rows of four, no, one and two frames, padded left, against each row alone and every step from the start."""
    prompts = encode(raw[:4], prompt=True)
    pad = family.tokenizer.pad_token_id
    inputs = left_padded(prompts, pad, family.vision.collate_vision)
    inputs = inputs if kind == "pixels" else with_features(inputs)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": pad, "eos_token_id": None}
    with torch.inference_mode():
        out = family.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        for prompt, found in zip(prompts, out, strict=True):
            ids = torch.from_numpy(prompt["input_ids"])[None]
            for _ in range(6):
                logits = family.model(input_ids=ids, pixel_values=prompt["vision"].get("pixel_values")).logits
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            assert ids[0, -6:].tolist() == found.tolist()
        uncached = family.model.generate(**inputs, **settings, use_cache=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(uncached, out)


def test_several_answers_to_a_row_see_the_row_s_own_frames(family: Family, raw: Rows, encode: Callable) -> None:
    prompts = encode([raw[0], raw[3]], prompt=True)
    inputs = left_padded(prompts, family.tokenizer.pad_token_id, family.vision.collate_vision)
    ids, expanded = family.model._expand_inputs_for_generation(2, input_ids=inputs.pop("input_ids"), **inputs)
    pixels = inputs["pixel_values"]
    assert torch.equal(expanded["pixel_values"], torch.cat([pixels[:4], pixels[:4], pixels[4:], pixels[4:]]))
    assert len(ids) == len(expanded["attention_mask"]) == 4
    settings = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    assert len(family.model.generate(input_ids=ids[::2], **inputs, **settings)) == 4


@pytest.mark.parametrize("sample", [False, True])
def test_an_answer_never_holds_an_image_token(family: Family, sample: bool) -> None:
    """Not even under another generation config, as TRL gives one: read again, the answer would have half a frame too many."""
    from transformers import GenerationConfig

    image = family.model.config.image_token_id
    hook = family.model.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([image]), 100.0)
    )
    config = GenerationConfig(max_new_tokens=4, do_sample=sample, temperature=0.9, pad_token_id=0)
    out = family.model.generate(torch.tensor([[20, 21, 22]]), generation_config=config)
    hook.remove()
    assert out.shape[1] > 3 and image not in out[0].tolist()


FRESH = """
import sys, torch
from drive_vlm.config import ModelConfig
from drive_vlm.models import load_family
family = load_family(ModelConfig(model=sys.argv[1]), torch.float32)
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    logits = family.model.eval()(**inputs).logits
words = family.processor(text="<|image_pad|>go", images=torch.zeros(3, 56, 56, dtype=torch.uint8), return_tensors="pt")
torch.save((logits, dict(words), family.processor.chat_template, family.tokenizer.padding_side), sys.argv[3])
"""


@pytest.mark.slow
def test_saved_and_loaded_in_a_fresh_process(
    family: Family, rows: Rows, tmp_path: Path, run: Callable, batch_of: Callable
) -> None:
    kept = family.model.model.temporal_embeddings.weight.detach().clone()
    with torch.no_grad():
        family.model.model.temporal_embeddings.weight[0, 0] += 1
    family.model.save_pretrained(tmp_path / "saved")
    family.processor.save_pretrained(tmp_path / "saved")
    inputs = batch_of([[rows[0]], [rows[1]]])
    inputs.pop("labels")
    torch.save(inputs, tmp_path / "inputs.pt")
    with torch.no_grad():
        expected = family.model(**inputs).logits
        family.model.model.temporal_embeddings.weight.copy_(kept)
    code = [sys.executable, "-c", FRESH, tmp_path / "saved", tmp_path / "inputs.pt", tmp_path / "out.pt"]
    done = run(code)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, words, template, side = torch.load(tmp_path / "out.pt")
    assert torch.equal(logits, expected) and template == family.template and side == "left"
    own = family.processor(
        text="<|image_pad|>go", images=torch.zeros(3, 56, 56, dtype=torch.uint8), return_tensors="pt"
    )
    assert words.keys() == own.keys() and all(torch.equal(words[key], own[key]) for key in own)


def test_the_auto_classes_know_it(family: Family, tiny_video_model: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    assert AutoConfig.from_pretrained(tiny_video_model).max_frames == 16
    model = AutoModelForImageTextToText.from_pretrained(tiny_video_model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), family.model.parameters(), strict=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert AutoProcessor.from_pretrained(tiny_video_model).image_seq_length == 16
    assert model.base_model is model.model and model.config.get_text_config().model_type == "qwen3"


def test_attention_and_dtype_are_as_asked(tiny_video_model: Path) -> None:
    model = load_family(ModelConfig(model=str(tiny_video_model), attn_implementation="eager"), torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == "eager"
