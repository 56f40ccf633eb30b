"""What a reward may be made of: a file with a builder, a judge, CLIP."""

import dataclasses
import re
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm import rewards
from drive_vlm.clip.encoder import ClipEncoder
from drive_vlm.clip.score import clip_scores
from drive_vlm.config import field
from drive_vlm.judges import open_judge
from drive_vlm.judges.judge import JudgeConfig, Request, judge_all
from drive_vlm.judges.verdicts import fill, parse_rating
from drive_vlm.rewards import build_reward, config_class, reward_name

CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"size": 32, "resize_mode": "squash"},
}


def test_the_example_of_adding_md_can_be_pasted(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", Path(rewards.__file__).with_name("ADDING.md").read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    file = tmp_path / "length.py"
    file.write_text(example)
    name = f"{file}:build"
    config = config_class(name)
    assert reward_name(name) == "length" and [item.name for item in dataclasses.fields(config)] == ["length_words"]
    reward = build_reward(name, config(length_words=4))
    assert reward.__name__ == "length"
    assert reward(["p", "p"], ["a red car brakes", [{"role": "assistant", "content": "a car"}]], id=["1", "2"]) == [
        0,
        -0.5,
    ]


@dataclasses.dataclass
class TasteConfig(JudgeConfig):
    """Flags of the judge, as a reward of one's own would have them."""


def build_taste(config: TasteConfig):
    """A reward that asks a judge: its rating from 1 to 10 as 0..1, None where no reply can be read."""
    judge, prompt = open_judge(config), (("user", "Rate {prediction} against {reference}."),)

    def taste(prompts, completions, reference, **columns):
        requests = [
            Request(fill(prompt, {"prediction": text, "reference": answer}))
            for text, answer in zip(completions, reference, strict=True)
        ]
        blocks = judge_all(judge, requests, parse_rating, config.judge_attempts)
        return [None if item.value is None else item.value / 10 for block in blocks for item in block]

    return taste


def test_a_reward_may_ask_a_judge(chat_server, tmp_path):
    chat_server.answer = lambda body: "Rating: [[8]]" if "a red car" in str(body) else "I cannot say."
    reward = build_taste(
        TasteConfig(judge_model="m", judge_url=chat_server.url, cache=str(tmp_path / "cache"), judge_attempts=2)
    )
    assert reward(["p", "p"], ["a red car", "a bus"], reference=["car", "truck"]) == [0.8, None]
    assert len(chat_server.requests) == 3


@dataclasses.dataclass
class AlikeConfig:
    alike_batch: int = field(2, help="texts and pictures at a time")


def build_alike(config: AlikeConfig):
    """A reward from CLIP: the cosine of text and picture."""
    encoder = ClipEncoder.from_config(CLIP)

    def alike(prompts, completions, reference, files, **columns):
        return clip_scores(encoder, completions, reference, files, config.alike_batch, workers=1).text_image.tolist()

    return alike


def test_a_reward_may_use_clip(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(path)
    reward = build_alike(AlikeConfig())
    scores = reward(["p"] * 3, ["a red car", "a bus", "a red car"], reference=["car"] * 3, files=[[path]] * 3)
    assert all(-1 <= score <= 1 for score in scores) and scores[0] == pytest.approx(scores[2]) != scores[1]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def build(:\n    pass", r"cannot be imported \(SyntaxError: .*, line 1\)\. Fix it"),
        ("x = 1\nimport nowhere_at_all", r"cannot be imported \(ModuleNotFoundError: No module named .*, line 2\)"),
        ("x = 1\n\ny = [][0]", r"cannot be imported \(IndexError: list index out of range, line 3\)"),
        (
            "def build():\n    return 1 / 0",
            r"r\.py:build cannot be built \(ZeroDivisionError: division by zero, line 2\)",
        ),
        ("def build(first, second): ...", r"cannot be built \(TypeError: build\(\) missing 2 required"),
        ("def build(): ...", r"the builder returned NoneType\. It must return the reward"),
        ("def build(): return [1.0]", "the builder returned list"),
        ("def build(config): ...", "its `config` must be annotated with a dataclass"),
        ("def build(config: int): ...", r"must be annotated with a dataclass, .* got <class 'int'>"),
        ("def build(config: 'Nowhere'): ...", r"annotations that cannot be read \(NameError: name 'Nowhere'"),
        ("build = 3", "has no function 'build'"),
    ],
)
def test_a_reward_that_cannot_be_had_is_one_line(source, told, tmp_path):
    file = tmp_path / "r.py"
    file.write_text(source)
    with pytest.raises(ValueError, match=told) as stopped:
        build_reward(f"{file}:build", config_class(f"{file}:build"))
    assert "\n" not in str(stopped.value) and str(file) in str(stopped.value)


def test_a_function_as_trl_takes_it_needs_no_builder(tmp_path):
    file = tmp_path / "direct.py"
    file.write_text("def short(prompts, completions, **columns): return [-len(text) for text in completions]")
    name = f"{file}:short"
    assert config_class(name) is None and build_reward(name, None)(["p"], ["abc"]) == [-3]
    file = tmp_path / "bare.py"
    file.write_text("def short(completions, **columns): return [0.0 for _ in completions]")
    assert build_reward(f"{file}:short", None)(prompts=["p"], completions=["abc"]) == [0]
