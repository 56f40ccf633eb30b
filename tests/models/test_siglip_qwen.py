"""SigLIP2 + temporal embeddings + Qwen3: which frame is which in every kind of batch, generation, saving, refusals."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drive_vlm.config import ModelConfig
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import parse_row
from drive_vlm.generate import _left_padded
from drive_vlm.models import Family, load_family
from drive_vlm.models.siglip_qwen.configuration import SiglipQwenConfig
from drive_vlm.models.siglip_qwen.modeling import frame_numbers
from drive_vlm.models.siglip_qwen.projector import Resampler, pool_grid

IMAGE = 9
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def family(tiny_video_model: Path) -> Family:
    """Loaded once; tests that change weights copy them back."""
    loaded = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32)
    loaded.model.eval()
    return loaded


def encode(family: Family, root: Path, raw: Rows, prompt: bool = False, num_frames: int = 4) -> Rows:
    encoder = Encoder(family.tokenizer, family.template, family.vision, num_frames)
    return [encoder.encode(parse_row(row, "rows.jsonl:1", str(root)), prompt=prompt) for row in raw]


@pytest.fixture(scope="module")
def raw(synthetic_data: Path) -> Rows:
    """A clip of 4 frames, a text, one picture, two pictures, another clip."""
    clips = [json.loads(line) for line in (synthetic_data / "clips_train.jsonl").read_text().splitlines()]
    scenes = [json.loads(line) for line in (synthetic_data / "train.jsonl").read_text().splitlines()]
    text = {"id": "text", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "the car"}]}
    words = [{"from": "human", "value": "<image>\n<image>\nWhich?"}, {"from": "gpt", "value": "the second"}]
    images = sorted({row["image"] for row in scenes})[:2]
    other = next(row for row in clips if row["video"] != clips[0]["video"])
    return [clips[0], text, scenes[0], {"id": "two", "image": images, "conversations": words}, other]


@pytest.fixture(scope="module")
def rows(family: Family, raw: Rows, synthetic_data: Path) -> Rows:
    return encode(family, synthetic_data, raw)


def inputs_of(family: Family, sequences: list[Rows], packed: bool = False) -> dict[str, Any]:
    batch = Collator(family.tokenizer.pad_token_id, family.vision, packed)(sequences)
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}


def with_features(family: Family, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same batch with the tower's output in the place of pixels."""
    inputs = dict(inputs)
    with torch.no_grad():
        inputs["vision_features"] = family.model.model.tower_features(inputs.pop("pixel_values"))
    return inputs


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


@pytest.mark.parametrize(("side", "size"), [(3, 1), (4, 2), (3, 2), (27, 3), (27, 4), (8, 3), (2, 2)])
def test_pooling_by_hand(side: int, size: int) -> None:
    features = torch.randn(2, side * side, 5)
    grid = features.numpy().reshape(2, side, side, 5)
    steps = range(0, side, size)
    expected = [[grid[:, i : i + size, j : j + size].mean((1, 2)) for j in steps] for i in steps]
    flat = np.stack([cell for line in expected for cell in line], axis=1)
    np.testing.assert_allclose(pool_grid(features, size).numpy(), flat, atol=1e-5)
    tokens = SiglipQwenConfig({"image_size": side, "patch_size": 1}, {"model_type": "qwen3"}, pool_size=size)
    assert flat.shape[1] == tokens.image_seq_length


def test_frame_t_gets_embedding_t(family: Family, rows: Rows) -> None:
    """Clip, text, picture, two pictures, clip: frames 0-3, 0, 0-1, 0-3."""
    body, inputs = family.model.model, inputs_of(family, [[row] for row in rows])
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


def test_order_of_frames_matters_through_the_embeddings_only(family: Family, rows: Rows) -> None:
    """With the embeddings at zero a shuffled clip gives the shuffled tokens; with them it gives others."""
    body, inputs = family.model.model, inputs_of(family, [[rows[0]]])
    shuffled = dict(inputs, pixel_values=inputs["pixel_values"][[2, 0, 3, 1]])
    kept = body.temporal_embeddings.weight.detach().clone()
    with torch.no_grad():
        moved = (hidden_inputs(family, shuffled) - hidden_inputs(family, inputs)[[2, 0, 3, 1]]).abs()
        body.temporal_embeddings.weight.zero_()
        still = (hidden_inputs(family, shuffled) - hidden_inputs(family, inputs)[[2, 0, 3, 1]]).abs()
        body.temporal_embeddings.weight.copy_(kept)
    assert still.max() < 1e-5
    assert moved.amax((1, 2)).min() > 1e-2  # every frame came to another place


def test_only_embeddings_of_frames_that_are_there_learn(family: Family, rows: Rows) -> None:
    family.model(**inputs_of(family, [[rows[0]], [rows[2]]])).loss.backward()
    reached = family.model.model.temporal_embeddings.weight.grad.abs().sum(1) > 0
    family.model.zero_grad()
    assert reached.tolist() == [True] * 4 + [False] * 12


def test_batch_equals_single_rows_equals_pack(family: Family, rows: Rows) -> None:
    pad = family.tokenizer.pad_token_id
    with torch.no_grad():
        single = [family.model(**inputs_of(family, [[row]])).logits[0, : len(row["input_ids"])] for row in rows]
        batch = inputs_of(family, [[row] for row in rows])
        together = family.model(**batch).logits
        pack = inputs_of(family, [rows[:3], rows[3:]], packed=True)
        packed = family.model(**pack, use_cache=False).logits
        left = _left_padded(rows, pad, family.vision)
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


def test_cached_features_are_as_good_as_pixels(family: Family, rows: Rows) -> None:
    inputs = inputs_of(family, [[row] for row in rows])
    gradients = []
    for given in (inputs, with_features(family, inputs)):
        loss = family.model(**given).loss
        loss.backward()
        body = family.model.model
        gradients.append((loss.detach(), body.projector.linear_1.weight.grad, body.temporal_embeddings.weight.grad))
        family.model.zero_grad()
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_collate_takes_cached_features(family: Family, rows: Rows) -> None:
    cached = [dict(row, vision={"vision_features": np.ones((2, 64, 64), np.float32)}) for row in rows[:2]]
    assert inputs_of(family, [[row] for row in cached])["vision_features"].shape == (4, 64, 64)
    with pytest.raises(ValueError, match="a batch mixes pixel_values and vision_features"):
        inputs_of(family, [[cached[0]], [rows[0]]])
    vision = type(family.vision)(family.processor)
    assert vision.collate_vision([]) == {}
    vision.cached_shape = (64, 64)
    assert vision.collate_vision([])["vision_features"].shape == (0, 64, 64)


def test_a_text_beside_cached_rows_never_runs_the_tower(tiny_video_model: Path, rows: Rows) -> None:
    trained = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32, for_training=True)
    trained.vision.cached_shape = (64, 64)
    trained.model.model.vision_tower.register_forward_hook(lambda *_: pytest.fail("the tower ran"))
    trained.model(**inputs_of(trained, [[rows[1]]])).loss.backward()
    gradient = trained.model.model.projector.linear_1.weight.grad
    assert gradient is not None and not gradient.any()


def test_a_text_in_training_passes_the_tower(tiny_video_model: Path, family: Family, rows: Rows) -> None:
    trained = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32, for_training=True)
    inputs = inputs_of(trained, [[rows[1]]])
    ours = trained.model(**inputs).loss
    ours.backward()
    assert ours.item() == pytest.approx(family.model(**inputs).loss.item(), abs=1e-5)
    unreached = {name for name, p in trained.model.named_parameters() if p.grad is None}
    assert not unreached


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_generation_with_cache_equals_greedy_without(
    family: Family, raw: Rows, synthetic_data: Path, kind: str
) -> None:
    """Rows of four, no, one and two frames, padded left, against each row alone and every step from the start."""
    prompts = encode(family, synthetic_data, raw[:4], prompt=True)
    pad = family.tokenizer.pad_token_id
    inputs = _left_padded(prompts, pad, family.vision)
    inputs = inputs if kind == "pixels" else with_features(family, inputs)
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


def test_several_answers_to_a_row_see_the_row_s_own_frames(family: Family, raw: Rows, synthetic_data: Path) -> None:
    prompts = encode(family, synthetic_data, [raw[0], raw[3]], prompt=True)
    inputs = _left_padded(prompts, family.tokenizer.pad_token_id, family.vision)
    ids, expanded = family.model._expand_inputs_for_generation(2, input_ids=inputs.pop("input_ids"), **inputs)
    pixels = inputs["pixel_values"]
    assert torch.equal(expanded["pixel_values"], torch.cat([pixels[:4], pixels[:4], pixels[4:], pixels[4:]]))
    assert len(ids) == len(expanded["attention_mask"]) == 4
    settings = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    assert len(family.model.generate(input_ids=ids[::2], **inputs, **settings)) == 4


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


def test_saved_and_loaded_in_a_fresh_process(family: Family, rows: Rows, tmp_path: Path, run: Callable) -> None:
    kept = family.model.model.temporal_embeddings.weight.detach().clone()
    with torch.no_grad():
        family.model.model.temporal_embeddings.weight[0, 0] += 1
    family.model.save_pretrained(tmp_path / "saved")
    family.processor.save_pretrained(tmp_path / "saved")
    inputs = inputs_of(family, [[rows[0]], [rows[1]]])
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


@pytest.mark.parametrize("change", [{"pixel_values": 5}, {"pixel_values": 3}])
def test_counts_that_differ_are_refused(family: Family, rows: Rows, change: dict[str, int]) -> None:
    inputs = inputs_of(family, [[rows[0]]])
    inputs["pixel_values"] = torch.zeros(change["pixel_values"], 3, 56, 56)
    needed = change["pixel_values"] * 16
    message = rf"hold 64 image tokens \(4 frames of 16\), but {change['pixel_values']} pictures .* need {needed}"
    with pytest.raises(ValueError, match=message):
        family.model(**inputs)


def test_too_many_frames_are_refused_before_training_and_by_the_model(
    family: Family, raw: Rows, synthetic_data: Path, tiny_video_model: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_video_model, short)
    for name in ("config.json", "processor_config.json"):
        (short / name).write_text((short / name).read_text().replace('"max_frames": 16', '"max_frames": 3'))
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(short)
    vision = type(family.vision)(processor)
    encoder = Encoder(family.tokenizer, family.template, vision, 4)
    with pytest.raises(
        ValueError, match=r"has 4 frames, but the model has temporal embeddings for 3\. Lower --num_frames"
    ):
        encoder.encode(parse_row(raw[0], "rows.jsonl:1", str(synthetic_data)))
    pixels = torch.zeros(17, 3, 56, 56)
    ids = torch.full((1, 17 * 16), family.model.config.image_token_id)
    with pytest.raises(ValueError, match="has 17 frames, but the model has temporal embeddings for 16"):
        family.model(input_ids=ids, pixel_values=pixels)


def test_pictures_in_two_forms_or_without_words_are_refused(family: Family, rows: Rows) -> None:
    inputs = inputs_of(family, [[rows[0]]])
    both = dict(with_features(family, inputs), pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="exactly one of pixel_values and vision_features"):
        family.model(**both)
    with pytest.raises(ValueError, match="Pictures need input_ids"):
        family.model(inputs_embeds=torch.zeros(1, 4, 64), pixel_values=inputs["pixel_values"])


def test_template_and_labels_as_qwen3_has_them(family: Family, synthetic_data: Path, raw: Rows) -> None:
    """The empty think block stands before the last answer only and is no word of the assistant."""
    turns = [("human", "<image>\nA?"), ("gpt", "one"), ("human", "B?"), ("gpt", "two")]
    words = [{"from": who, "value": text} for who, text in turns]
    (row,) = encode(family, synthetic_data, [{"id": "x", "image": raw[2]["image"], "conversations": words}])
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


def test_the_processor_writes_what_the_data_path_writes(family: Family, raw: Rows, synthetic_data: Path) -> None:
    """GRPO gives a clip as its frames through the processor; SFT read it as a video."""
    from drive_vlm.data.vision import load_video

    (row,) = encode(family, synthetic_data, raw[:1], prompt=True)
    frames = load_video(str(synthetic_data / raw[0]["video"]), 4, "here")
    question = raw[0]["conversations"][0]["value"].removeprefix("<video>\n")
    parts = [{"type": "image", "image": frame} for frame in frames] + [{"type": "text", "text": question}]
    found = family.processor.apply_chat_template(
        [[{"role": "user", "content": parts}]] * 2,
        tokenize=True, add_generation_prompt=True, return_dict=True, processor_kwargs={"return_tensors": "pt", "padding": True},
    )  # fmt: skip
    assert found["input_ids"][1].tolist() == row["input_ids"].tolist()
    assert torch.equal(found["pixel_values"][4:], row["vision"]["pixel_values"])
    with pytest.raises(ValueError, match=r"hold 1 <\|image_pad\|>, but 2 pictures are given"):
        family.processor(text="<|image_pad|>", images=frames[:2])
    with pytest.raises(ValueError, match="give a video as its frames"):
        family.processor(text="<|video_pad|>")


def test_resampler(tmp_path: Path) -> None:
    from drive_vlm.models.tiny import build_tiny_siglip_qwen

    out = build_tiny_siglip_qwen(tmp_path / "tiny", ["a car"], projector_type="resampler", num_queries=5, max_frames=2)
    family = load_family(ModelConfig(model=str(out)), torch.float32)
    projector = family.model.model.projector
    assert isinstance(projector, Resampler) and family.processor.image_seq_length == 5
    assert projector.queries.std().item() == pytest.approx(0.125, rel=0.2)  # drawn, not left empty
    features = torch.randn(3, 64, 64)
    together = projector(features)
    assert together.shape == (3, 5, 64)
    torch.testing.assert_close(together[1:2], projector(features[1:2]))  # a frame sees itself only
    assert not torch.allclose(together[0, 0], together[0, 1])
    by_hand = by_hand_attention(projector.layers[0], projector.queries, features[0])
    layer = projector.layers[0](projector.queries[None], features[:1])[0]
    torch.testing.assert_close(layer, by_hand, atol=1e-5, rtol=1e-4)


def by_hand_attention(layer: Any, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """One resampler layer, head by head."""
    q, k = layer.q_proj(layer.query_norm(queries)), layer.k_proj(layer.feature_norm(features))
    v, width = layer.v_proj(layer.feature_norm(features)), q.shape[1] // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        part = slice(h * width, (h + 1) * width)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1) @ v[:, part])
    queries = queries + layer.out_proj(torch.cat(heads, 1))
    return queries + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.mlp_norm(queries))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_type": "mpl"}, "projector_type 'mpl' is unknown. Use one of mlp, resampler"),
        ({"pool_size": 9}, "pool_size 9 must be from 1 to 8"),
        ({"max_frames": 0}, "max_frames 0, num_queries 64 and resampler_layers 2 must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiglipQwenConfig({"image_size": 56, "patch_size": 7}, {"model_type": "qwen3"}, **settings)


def test_a_frozen_tower_keeps_nothing_for_the_backward_pass(tiny_video_model: Path, rows: Rows) -> None:
    """Gradient checkpointing lets gradients into the tower's patch embeddings: without care all of it would run backward."""
    family = load_family(ModelConfig(model=str(tiny_video_model)), torch.float32, for_training=True)
    family.model.train()
    family.model.gradient_checkpointing_enable({"use_reentrant": False})
    family.model.enable_input_require_grads()
    pixels = inputs_of(family, [[rows[0]]])["pixel_values"]
    assert family.model.model.tower_features(pixels).requires_grad
    family.model.model.vision_tower.requires_grad_(False)
    assert not family.model.model.tower_features(pixels).requires_grad
    family.model(**inputs_of(family, [[rows[0]]])).loss.backward()
    assert family.model.model.temporal_embeddings.weight.grad.abs().sum() > 0
