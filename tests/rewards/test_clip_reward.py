"""R1 on a small random open_clip saved as a directory: cosines by hand, prefixes, one encoding a row, real pictures, absent weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from drive_vlm.clip.encoder import ClipEncoder
from drive_vlm.evaluation.oia_labels import json_answer, read_answer, said_so_far, text_answer
from drive_vlm.rewards import build_reward, config_class
from drive_vlm.rewards.clip import ClipConfig
from drive_vlm.rewards.text import prefix_texts

JSON = json_answer("A wet road.", ["stop"], ["traffic light", "obstacle: car"])
TEXT = text_answer(["stop"], ["traffic light", "obstacle: car"])


@pytest.fixture
def reward(random_clip):
    return lambda **flags: build_reward("clip", ClipConfig(clip_model=str(random_clip), clip_device="cpu", **flags))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(draw.integers(0, 255, size=(24, 40, 3), dtype=np.uint8)).save(path)
    return list(map(str, paths))


def by_hand(encoder: ClipEncoder, text: str, paths: list[str]) -> float:
    """From open_clip's own forward passes: mean of unit features, then the cosine."""
    with torch.no_grad():
        said = encoder.model.encode_text(encoder.tokenizer([text]))[0].double()
        images = torch.stack([encoder.preprocess(Image.open(path).convert("RGB")) for path in paths])
        seen = torch.nn.functional.normalize(encoder.model.encode_image(images), dim=-1).double().mean(0)
    return float(said @ seen / said.norm() / seen.norm())


def test_the_cosine_by_hand_of_each_part(reward, pictures):
    """Neither cut at 0 nor scaled; frames are pooled as unit features; both forms give the same text."""
    columns = {"files": [pictures[:1], pictures], "video": [None, None]}
    parts = {
        "justification": ["traffic light; obstacle: car"] * 2,
        "description": ["A wet road.", ""],
        "whole": [JSON, TEXT],
    }
    found = []
    for part, texts in parts.items():
        one = reward(clip_text=part)
        values = one(["", ""], [JSON, [{"role": "assistant", "content": TEXT}]], **columns)
        expected = [
            by_hand(one.encoder, text, files) if text else 0
            for text, files in zip(texts, columns["files"], strict=True)
        ]
        assert values == pytest.approx(expected, abs=1e-5) and [term.text for term in one.last_terms] == texts
        found += values
    assert len({round(value, 4) for value in found}) == 6


def test_prefixes_are_paid_where_the_justification_is_said(reward, pictures):
    """0 before it begins; each text so far as if it were the whole; the last is the reward of a call; rows of any length."""
    one = reward()
    texts = [[JSON[:end] for end in range(1, len(JSON) + 1)], [TEXT[:20], TEXT], []]
    columns = {"files": [pictures[:1], pictures[1:], pictures], "video": None}
    found = one.prefixes(texts, **columns)
    assert [len(row) for row in found] == [len(JSON), 2, 0]
    begins = JSON.index("traffic light") + 1
    assert found[0][: begins - 1] == [0] * (begins - 1) and found[1][0] == 0
    assert found[0][begins - 1] == pytest.approx(by_hand(one.encoder, "t", pictures[:1]), abs=1e-5)
    assert found[0][begins + 3] == pytest.approx(by_hand(one.encoder, "traff", pictures[:1]), abs=1e-5)
    kept = one.last_terms
    whole = one(["", ""], [JSON, TEXT], files=columns["files"][:2])
    assert [term.text for term in kept] == [term.text for term in one.last_terms]
    assert [found[0][-1], found[1][-1]] == pytest.approx(whole, abs=1e-6)


def test_increments_behind_clips_context_are_0(reward, pictures):
    one = reward()
    words = "Action: stop; Reason: " + "a car brakes on a wet road " * 20
    [found] = one.prefixes([[words[:150], words[:500], words]], files=[pictures[:1]])
    assert found[1] == found[2] != found[0]
    logged = {}
    assert one([""], [words], files=[pictures[:1]], log_metric=lambda name, value: logged.update({name: value}))
    assert one.last_terms[0].truncated and logged == {"clip/truncated": 1, "clip/without_text": 0}


def test_a_row_is_embedded_once_whatever_is_asked(reward, pictures):
    one = reward()
    for _ in range(2):
        one([""] * 4, [TEXT] * 4, files=[pictures[:1]] * 2 + [pictures] * 2)
        one.prefixes([[TEXT], [JSON]], files=[pictures, pictures[:1]])
    # The first picture is of two rows: encoded with each of them when they are new together, here once.
    assert one.encoder.encoded_images == 3


def test_frames_of_a_video(reward, synthetic_data):
    """The frames that the flag says, spread over the video."""
    from drive_vlm.data.vision import load_video

    clip = str(sorted((synthetic_data / "clips").iterdir())[0])
    one = reward(clip_frames=2)
    values = one([""], [TEXT], files=[[clip]], video=["clips/x"])
    assert one.encoder.encoded_images == len(load_video(clip, 2, "")) == 2 and -1 <= values[0] <= 1


def test_rows_without_a_picture_are_known_before_the_training(reward, pictures):
    found = reward().check(id=["a", "b"], files=[pictures, []])
    assert found[0] is None and "no picture and no video" in found[1]


def test_absent_weights_are_one_line_before_the_training(tmp_path):
    """Neither random weights nor a traceback: the seed's own model without the hub, a folder that is none."""
    assert config_class("clip") is ClipConfig
    with pytest.raises(
        ValueError, match=r"^CLIP ViT-B-32-quickgelu \(openai\) cannot be loaded: .*--clip_pretrained FILE"
    ) as told:
        build_reward("clip", ClipConfig())
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="is not a CLIP directory: it needs open_clip_config"):
        build_reward("clip", ClipConfig(clip_model=str(tmp_path)))


@pytest.mark.parametrize("part", ["description", "justification"])
def test_what_is_said_so_far(part):
    """It grows to what read_answer finds in the whole answer, in both forms, and stays within it."""
    words = ['say "hi"\\', "a\u00e9\U0001f6a6 b"]
    for whole in (
        json_answer("x {y} \n z", ["stop"], words),
        json.dumps(json.loads(json_answer("q", ["stop"], words)), indent=1),
        TEXT,
    ):
        answer = read_answer(whole)
        final = answer.description if part == "description" else "; ".join(answer.reasons)
        seen = [said_so_far(whole[:end], part) for end in range(len(whole) + 1)]
        assert seen[0] == "" and seen[-1] == final
        if whole.startswith("{"):
            assert all(final.startswith(text) for text in seen)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"description": "x \\"justification\\": \\"no\\"", "a', ""),
        ('{"more": {"justification": "no"}, "justification": "yes', "yes"),
        ('{"justification": {"because": "no"}}', ""),
        ('{"justification": [3, "yes", ["no"', "yes"),
        ('```json\n{"justification": "a\\u00', "a"),
        ('{"justification": "a \\ud83d', "a"),
        ("Reason: no", ""),
        ("Action: stop; Reason: a; ; b;", "a; b"),
        ("{" * 5000, ""),
        ('{"justification": ' + "[" * 5000, ""),
    ],
    ids=lambda text: text[:20],
)
def test_odd_beginnings(text, said):
    assert said_so_far(text, "justification") == said


def test_prefix_texts_of_tokens(tiny_model):
    """Special tokens are left out, and half a character is not there yet."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("a \U0001f6a6 road", add_special_tokens=False)["input_ids"]
    texts = prefix_texts(tokenizer, [*ids, tokenizer.eos_token_id])
    assert len(texts) == len(ids) + 1 and texts[-1] == texts[-2] == "a \U0001f6a6 road"
    assert all("\ufffd" not in text and texts[-1].startswith(text) for text in texts)


def test_real_pictures(reward, kit):
    """Seven pictures of BDD100K through the weights at hand: each picture and each text counts, a row of all is no single one."""
    paths = sorted(map(str, (kit / "noncommercial" / "bddoia" / "pictures_without_labels").glob("*.jpg")))
    assert len(paths) == 7
    one = reward()
    texts = [text_answer(["stop"], [reason]) for reason in ("traffic light", "road is clear")]
    rows = [[path] for path in paths] + [paths]
    found = np.array([one([""] * 8, [text] * 8, files=rows) for text in texts])
    assert one.encoder.encoded_images == 7 and (np.abs(found) < 1).all()
    assert all(len(set(row.round(6))) == 8 for row in found) and (found[0] != found[1]).all()
    assert found[0][7] == pytest.approx(by_hand(one.encoder, "traffic light", paths), abs=1e-5)
