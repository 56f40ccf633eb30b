"""Qwen2.5-VL and Qwen3-VL: positions by hand, videos with their times, packs, generation, limits of pixels."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from drive_vlm.config import ModelConfig
from drive_vlm.data.chat import to_messages
from drive_vlm.data.collate import Collator
from drive_vlm.data.encoder import Encoder
from drive_vlm.data.samples import BadRow, Sample, parse_row
from drive_vlm.models import family_spec, load_family, load_processor
from drive_vlm.models.qwen_vl.positions import lay_out
from drive_vlm.models.qwen_vl.tiling import STILL, Qwen2_5Tiling, Qwen3Tiling
from drive_vlm.sampling.local import left_padded

KINDS = ("qwen2_5_vl", "qwen3_vl")
NUMBERS = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
PUBLISHED = {"shortest_edge": 65536, "longest_edge": 16777216}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from drive_vlm.models.tiny import qwen_vl

    corpus = ["What is ahead? Describe the video. a red car stops on the left lane <0.5 seconds> user assistant"] * 20
    out = tmp_path_factory.mktemp("qwen")
    return {kind: getattr(qwen_vl, f"build_tiny_{kind}")(out / kind, corpus, vocab_size=400) for kind in KINDS}


@pytest.fixture
def load(paths: dict[str, Path]) -> Callable[..., Any]:
    return lambda kind, **flags: load_family(ModelConfig(model=str(paths[kind])), torch.float32, **flags)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture
def rows(tmp_path: Path) -> list[Sample]:
    """Two pictures of other sizes, a video of five frames, words alone, one picture."""
    for name, size in (("a.png", (61, 90)), ("b.png", (30, 28))):
        picture(*size).save(tmp_path / name)
    (tmp_path / "clip").mkdir()
    for i in range(5):
        picture(60, 45, i).save(tmp_path / "clip" / f"{i}.png")

    def row(question: str, **media: Any) -> Sample:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a red car"}]
        return parse_row({"id": question, "conversations": turns, **media}, "x:1", str(tmp_path), need_answer=True)

    return [
        row("<image>\nWhat is ahead? <image>\n", image=["a.png", "b.png"]),
        row("<video>\nDescribe the video.", video="clip"),
        row("What is ahead?"),
        row("<image>\nWhat is left?", image=["b.png"]),
    ]


def encoder_of(family: Any, **flags: Any) -> Encoder:
    return Encoder(family.tokenizer, family.template, family.vision, **flags)


# positions, by hand


def laid(tokens: str, starts: Sequence[int], pieces: Sequence[tuple[int, int, int, float]]) -> list[list[int]]:
    """`tokens`: "t" a word, "v" of a picture or video, "." padding."""
    seen, text = (np.array([token in kind for token in tokens]) for kind in ("v", "tv"))
    return lay_out(seen, np.array(starts), iter(pieces), text).tolist()


def test_positions_of_two_pictures() -> None:
    """Two words, a picture of 2 x 3 tokens, a word, one of 2 x 1, a word. A word behind a picture goes on behind its longer
    edge: 2 + 3 = 5; the second picture begins at 6, the last word is at 6 + 2 = 8."""
    assert laid("ttvvvvvvtvvt", [0], [(1, 2, 3, 0), (1, 2, 1, 0)]) == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 6, 8],
    ]


def test_positions_of_a_video() -> None:
    """Three pairs of frames of 1 x 2 tokens, 0.75 s apart at 2 positions a second: times 0, floor(1.5) = 1, 3. Words go on
    behind the longer edge, 1 + 2 = 3. Where words part the pairs (Qwen3-VL), each of them is a picture of its own."""
    assert laid("tvvvvvvt", [0], [(3, 1, 2, 2 * 0.75)]) == [
        [0, 1, 1, 2, 2, 4, 4, 3],
        [0, 1, 1, 1, 1, 1, 1, 3],
        [0, 1, 2, 1, 2, 1, 2, 3],
    ]
    assert laid("tvvtvvt", [0], [(1, 1, 2, 0), (1, 1, 2, 0)]) == [
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_positions_of_a_pack() -> None:
    """A row of words, one with a picture of 2 x 2, one with a video, and the padding: each begins at 0 again."""
    assert laid("tttvvvvttvvt..", [0, 2, 8, 12], [(1, 2, 2, 0), (2, 1, 1, 3)]) == [
        [0, 1, 0, 1, 1, 1, 1, 3, 0, 1, 4, 2, 0, 0],
        [0, 1, 0, 1, 1, 2, 2, 3, 0, 1, 1, 2, 0, 0],
        [0, 1, 0, 1, 2, 1, 2, 3, 0, 1, 1, 2, 0, 0],
    ]


def given_positions(family: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the language model is given when the family's model gets `inputs`."""
    seen = []
    hook = family.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        family.model(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_reaches_the_model_with_positions_from_0(kind: str, load: Callable, rows: list[Sample]) -> None:
    """The first axis says where rows begin; the others of each row are those that the row has alone."""
    family = load(kind)
    encoded = [encoder_of(family).encode(row) for row in rows]
    vision = Collator(family.tokenizer.pad_token_id, family.vision, packed=True)
    batch = {k: v for k, v in vision([encoded]).items() if k in ("input_ids", "position_ids", *family.vision.keys)}
    packed = given_positions(family, batch)
    assert packed.shape == (4, *batch["input_ids"].shape) and torch.equal(packed[0], batch["position_ids"])
    start = 0
    for row in encoded:
        ids = torch.from_numpy(row["input_ids"])[None]
        alone = given_positions(family, {"input_ids": ids, **row["vision"]})
        end = start + ids.shape[1]
        assert alone.shape == (3, 1, end - start) and torch.equal(packed[1:, :, start:end], alone)
        start = end


# videos


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_tokens_positions_and_logits_are_the_processors(
    kind: str, number: int, load: Callable, rows: list[Sample]
) -> None:
    """The same row through transformers' own processor and its own positions: pictures, and a video of 2 frames a second."""
    from transformers.video_utils import VideoMetadata

    family, row = load(kind), rows[number]
    encoder, native = encoder_of(family), load(kind)
    ours = encoder.encode(row)
    media: dict[str, Any] = {"images": [[Image.open(path) for path in row.images]]} if row.images else {}
    if row.video:
        frames = np.stack([np.asarray(Image.open(Path(row.video) / f"{i}.png")) for i in range(5)])
        about = VideoMetadata(total_num_frames=5, fps=2.0, duration=2.5, frames_indices=list(range(5)))
        media = {"videos": [torch.from_numpy(frames).permute(0, 3, 1, 2)], "video_metadata": [about]}
        media["do_sample_frames"] = False
    text = family.processor.apply_chat_template(to_messages(row.turns), tokenize=False)
    own = family.processor(text=[text], return_tensors="pt", add_special_tokens=False, **media)
    assert own["input_ids"][0].tolist() == ours["input_ids"].tolist()
    pixels = own["pixel_values"] if "pixel_values" in own else own["pixel_values_videos"]
    assert torch.equal(pixels, family.vision.decimals(ours["vision"]).flatten(0, 1))
    mask = own.pop("attention_mask")
    with torch.no_grad():
        expected = native.model(**own, attention_mask=mask).logits
        found = family.model(input_ids=own["input_ids"], **ours["vision"]).logits
    positions, _ = native.model.model.get_rope_index(
        own["input_ids"], **{k: own[k] for k in own if "grid" in k or k == "mm_token_type_ids"}
    )
    assert torch.equal(given_positions(family, {"input_ids": own["input_ids"], **ours["vision"]}), positions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_times_of_a_video_are_its_own() -> None:
    """Frames at 0, 0.5, 2 and 3.5 s of four seconds. Qwen3-VL reads 0.2 and 2.8 s (round half to even), Qwen2.5-VL one pair
    each 4 s / 2."""
    limits = {"image_processor": {**NUMBERS, "size": PUBLISHED}}
    times = [10.0, 10.5, 12.0, 13.5]
    assert [piece[-1] for piece in Qwen3Tiling.read(limits).video_layouts(64, 64, times, 4.0)] == [2, 28]
    (piece,) = Qwen2_5Tiling.read(limits).video_layouts(256, 256, times, 4.0)
    assert piece == (2 * 8 * 8, 2, 16, 16, 2_000_000)


def test_times_of_a_file_with_frames_that_stand_unevenly(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from drive_vlm.data.video_times import frame_size, times_of

    path = str(tmp_path / "a.mkv")
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height = 48, 32
        for i, pts in enumerate((0, 1, 2, 8, 9)):
            frame = av.VideoFrame.from_image(picture(32, 48, i)).reformat(format="yuv420p")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    times, duration = times_of(path, 8, "x:1")
    assert times == pytest.approx([0, 0.1, 0.2, 0.8, 0.9], abs=2e-3) and duration == pytest.approx(1.0, abs=2e-3)
    assert frame_size(path, "x:1") == (32, 48)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_videos_are_the_processors(kind: str, paths: dict[str, Path]) -> None:
    vision = load_processor(ModelConfig(model=str(paths[kind]))).vision
    processor = vision.processor.video_processor
    random = np.random.default_rng(0)
    for height, width, frames in random.integers((10, 10, 2), (700, 700, 24), (60, 3)).tolist():
        if frames % 2 and transformers.__version__.startswith("5.17."):
            # It forgets the last frame when it counts, though not when it makes patches.
            continue
        sized = vision.tiling.frame_size(height, width, frames)
        patches = -(-frames // 2) * sized[0] * sized[1] // 7**2
        assert patches == processor.get_num_of_video_patches(frames, height, width, {}), (height, width, frames)


# packs


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_with_a_video_has_the_loss_and_gradients_of_its_rows(
    kind: str, load: Callable, rows: list[Sample]
) -> None:
    family = load(kind, for_training=True)
    encoded = [encoder_of(family).encode(row) for row in rows]
    collate = Collator(family.tokenizer.pad_token_id, family.vision, packed=True)
    padded = Collator(family.tokenizer.pad_token_id, family.vision)

    def run(collator: Collator, sequences: list[list[Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        family.model.zero_grad()
        inputs = {k: v for k, v in collator(sequences).items() if k not in ("sample_ids", "bad_rows", "num_tokens")}
        loss = family.model(**inputs, num_items_in_batch=torch.tensor(1)).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in family.model.named_parameters()}

    loss, gradients = run(collate, [encoded[:3], encoded[3:]])
    alone = [run(collate, [[row]]) for row in encoded]
    batch = run(padded, [[row] for row in encoded])
    assert loss == pytest.approx(sum(one for one, _ in alone), rel=1e-5) == pytest.approx(batch[0], rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, sum(one[name] for _, one in alone), atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(gradient, batch[1][name], atol=2e-4, rtol=1e-3)
    # Also a layer that only DeepStack reads from.
    if kind == "qwen3_vl":
        assert gradients["model.visual.deepstack_merger_list.0.linear_fc1.weight"].abs().sum() > 0


# answers


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_batch_are_those_of_each_row(kind: str, load: Callable, rows: list[Sample]) -> None:
    """Left padding, pictures, a video and words in one batch; then greedy decoding by the whole model, token by token."""
    family = load(kind, for_training=True)
    family.model.eval()
    encoder = encoder_of(family)
    encoded = [encoder.encode(row, prompt=True) for row in rows]
    pad, settings = family.tokenizer.pad_token_id, {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}

    def answer(some: list[Any]) -> list[list[int]]:
        inputs = left_padded(some, pad, family.vision.collate_vision)
        said = family.model.generate(**inputs, pad_token_id=pad, **settings)
        return said[:, inputs["input_ids"].shape[1] :].tolist()

    together = answer(encoded)
    assert together == list(itertools.chain.from_iterable(answer([one]) for one in encoded))
    for one, said in zip(encoded, together, strict=True):
        ids = torch.from_numpy(one["input_ids"])[None]
        vision = family.vision.collate_vision([one["vision"]]) if one["vision"] else {}
        for token in said:
            with torch.no_grad():
                logits = family.model(input_ids=ids, **vision).logits[0, -1]
            # Neither the end, as asked for, nor a placeholder, for which there would be no picture.
            processor = family.processor
            logits[[family.tokenizer.eos_token_id, processor.image_token_id, processor.video_token_id]] = -torch.inf
            assert logits.argmax() == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


# limits of pixels


@pytest.mark.parametrize("kind", KINDS)
def test_limits_of_pixels_by_flag(kind: str, paths: dict[str, Path], rows: list[Sample]) -> None:
    def encoder(**limits: int) -> Encoder:
        parts = load_processor(ModelConfig(model=str(paths[kind]), **limits))
        return Encoder(parts.tokenizer, parts.template, parts.vision)

    free, small, large = encoder(), encoder(max_pixels=784), encoder(min_pixels=2500)
    assert [layout[0] for layout in free.layouts_of(rows[0])] == [12, 4]
    assert [layout[0] for layout in small.layouts_of(rows[0])] == [2, 4]
    assert [layout[0] for layout in large.layouts_of(rows[0])] == [12, 16]
    for one in (small, large):
        # The pixels themselves: load_vision refuses other counts than those of the headers.
        ids = one.encode(rows[0])["input_ids"]
        assert (ids == one.image_id).sum() == sum(layout[0] for layout in one.layouts_of(rows[0]))
        one.encode(rows[1])
    assert sum(layout[0] for layout in small.layouts_of(rows[1])) < sum(
        layout[0] for layout in free.layouts_of(rows[1])
    )
    assert len({one.fingerprint() for one in (free, small, large)}) == 3
    with pytest.raises(ValueError, match=r"--min_pixels 9000 is more than --max_pixels 3136, which is the processor"):
        encoder(min_pixels=9000)
    with pytest.raises(ValueError, match=r"--max_pixels 100: one token shows 14 x 14 pixels"):
        encoder(max_pixels=100)
    with pytest.raises(ValueError, match=r"--max_tiles 3: Qwen-VL sees a picture whole.*Give --max_pixels"):
        encoder(max_tiles=3)
    with pytest.raises(BadRow, match=r"max_dynamic_patch 3: Qwen-VL sees a picture whole"):
        free.layouts_of(rows[0], 3)


def test_limits_of_pixels_are_refused_by_families_of_tiles() -> None:
    numbers = {"image_processor": {"crop_size": {"height": 28}, "image_grid_pinpoints": [[28, 28]]}, "patch_size": 14}
    tiling = family_spec("llava_next").tiling.read(
        {**numbers, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    )
    with pytest.raises(ValueError, match=r"models that keep a picture's own resolution .* Give --max_tiles"):
        tiling.limit_pixels(None, 100)


def test_sizes_of_published_limits() -> None:
    """By hand, Qwen3-VL: 1080 x 1920 becomes 1088 x 1920, 34 x 60 tokens; the largest is 128 x 128."""
    tiling = Qwen3Tiling.read({"image_processor": {**NUMBERS, "size": PUBLISHED}})
    assert tiling.layout(1080, 1920) == (2040, 1, 68, 120, STILL)
    assert tiling.largest() == (16384, 1, 256, 256, STILL)
    # Older files name the limits themselves: 3,136 to 12,845,056 pixels of Qwen2.5-VL.
    older = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 12845056}
    assert Qwen2_5Tiling.read({"image_processor": older}).layout(1080, 1920)[0] == 39 * 69
