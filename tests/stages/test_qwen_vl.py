"""Qwen2.5-VL and Qwen3-VL through the real command line: rows of words, pictures and videos, on ranks that see different ones."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drive_vlm.config import ModelConfig

KINDS = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def mixed(world: Any) -> Path:
    """24 rows of `world` (words alone, one picture, two) and 12 videos of three to five frames, with a second answer each."""
    import shutil

    rows = [json.loads(line) for line in world.train.read_text().splitlines()]
    pictures = [row["image"] for row in rows if isinstance(row.get("image"), str)]
    made = rows[:24]
    for i in range(12):
        clip = world.train.parent / f"clip{i}"
        clip.mkdir()
        for j in range(3 + i % 3):
            shutil.copy(world.train.parent / pictures[(2 * i + j) % len(pictures)], clip / f"{j}.png")
        answer = rows[2 * i]["conversations"][-1]
        made.insert(
            3 * i,
            {
                "id": f"v{i}",
                "video": clip.name,
                "conversations": [{"from": "human", "value": "<video>\nWhat is ahead?"}, answer],
            },
        )
    for i, row in enumerate(made):
        others = (other["conversations"][-1]["value"] for other in made[i + 1 :] + made[:i])
        row["rejected"] = next(other for other in others if other != row["conversations"][-1]["value"])
    path = world.train.with_name("mixed.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


# One process, this one: it logs every step.
PLAIN = (
    "--logging_steps", 1, "--lr_scheduler_type", "constant", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true",
)  # fmt: skip


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.supports(
    "qwen2_5_vl sft", "qwen2_5_vl sft zero3", "qwen3_vl sft", "qwen3_vl sft zero2", "qwen3_vl sft zero3"
)
def test_ranks_with_words_pictures_and_videos_walk_the_curve_of_one(
    kind: str, sft: Callable, inside: Callable, world: Any, mixed: Path, tmp_path: Path
) -> None:
    """One row a rank and step, so that ranks see different kinds of rows; every weight but the projector's trains and, under
    ZeRO-3, is sharded. Qwen3-VL walks 50 steps under ZeRO-3, and some with ZeRO-2 and gradient checkpointing."""
    from drive_vlm.models.tiny import qwen_vl

    steps = 50 if kind == "qwen3_vl" else 4
    # Each module costs a gather: half as many are as good.
    sizes = {"hidden_size": 32, "vision_layers": 2, "text_layers": 2, "vocab_size": 400}
    model = getattr(qwen_vl, f"build_tiny_{kind}")(tmp_path / "model", mixed.read_text().splitlines(), **sizes)
    flags = (
        "--model", model, "--data", mixed, "--freeze", "projector", "--global_batch_size", 2, "--learning_rate", 1e-3,
        "--report_to", "none", "--max_steps",
    )  # fmt: skip
    whole = ("--per_device_train_batch_size", 2, "--save_strategy", "no", "--output_dir", tmp_path / "one")
    inside("sft", *flags, steps, *whole, *PLAIN)
    ranks = {"launcher": "torchrun", "timeout": 400}
    rest = ("--per_device_train_batch_size", 1, "--deepspeed")
    three = sft(tmp_path / "three", *flags, steps, *rest, world.zero3, **ranks)
    one = dataclasses.replace(three, out=tmp_path / "one")
    assert len(three.curve()) == steps
    assert three.curve() == pytest.approx(one.curve(), abs=1e-3)
    assert three.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-2)
    if kind == "qwen3_vl":
        two = sft(tmp_path / "two", *flags, 6, *rest, "zero2", "--gradient_checkpointing", "true", **ranks)
        assert two.curve() == pytest.approx(one.curve()[:6], abs=1e-4)
        assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm")[:6], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "spin"])
@pytest.mark.supports("qwen3_vl sft packing", "qwen3_vl spin")
def test_resumed_is_uninterrupted(
    stage: str, inside: Callable, mixed: Path, tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:
    """Packs of words, pictures and videos; SPIN with log-probabilities that `reference` has kept."""
    import shutil

    from safetensors.torch import load_file

    data = ("--model", tiny_families("qwen3_vl"), "--data", mixed)
    own: tuple[object, ...] = ("--packing", "true", "--max_length", 400, "--per_device_train_batch_size", 2)
    if stage == "spin":
        inside("reference", *data, "--out", tmp_path / "cache", "--batch_size", 6)
        own = ("--reference_cache", tmp_path / "cache", "--per_device_train_batch_size", 4)
    save = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, "--keep", 2, "--learning_rate", 1e-3)
    words = (stage, *data, *own, *save, *PLAIN, "--output_dir", tmp_path / "run")
    inside(*words)
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "model.safetensors").unlink()
    inside(*words, "--resume", tmp_path / "run" / "checkpoint-2")
    whole, resumed = ([row["loss"] for row in steps_of(tmp_path / name)] for name in ("whole", "run"))
    assert len(whole) == 4 and resumed == pytest.approx(whole, abs=1e-6)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run")]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=1e-5)
    if stage == "spin":
        assert whole[0] == pytest.approx(0.693147, abs=1e-5)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["reference"]["pairs"] == 36


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.supports(
    "qwen2_5_vl sft zero2 packing lora", "qwen3_vl sft zero2 packing lora", "qwen2_5_vl generate", "qwen3_vl generate"
)  # fmt: skip
def test_an_adapter_of_packs_is_merged_and_answers_in_plain_transformers(
    kind: str, sft: Callable, inside: Callable, mixed: Path, tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    flags = ("--packing", "true", "--max_length", 400, "--lora_rank", 4, "--learning_rate", 1e-2, "--max_steps", 4)
    run = sft(
        tmp_path / "run", "--model", tiny_families(kind), "--data", mixed, *flags, "--global_batch_size", 4,
        "--per_device_train_batch_size", 2, "--deepspeed", "zero2", launcher="torchrun", timeout=400,
    )  # fmt: skip
    assert run.curve()[-1] < run.curve()[0]
    inside("merge", "--checkpoint", run.out, "--out", tmp_path / "merged")
    said = []
    for model in (run.out, tmp_path / "merged"):
        out = tmp_path / f"{model.name}.jsonl"
        inside("generate", "--model", model, "--data", mixed, "--limit", 6, "--max_new_tokens", 6, "--out", out)
        said.append([json.loads(line)["prediction"] for line in out.read_text().splitlines()])
    assert said[0] == said[1] and len(set(said[0])) > 1
    rows = [json.loads(line) for line in mixed.read_text().splitlines()][:6]
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    for row, ours in zip(rows, said[1], strict=True):
        if isinstance(row.get("image"), str):
            words = row["conversations"][0]["value"].removeprefix("<image>\n")
            content = [{"type": "image"}, {"type": "text", "text": "\n" + words}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            batch = processor(text=[text], images=[Image.open(mixed.parent / row["image"])], return_tensors="pt")
            tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
            assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == ours


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.supports(
    "qwen2_5_vl dpo", "qwen3_vl dpo", "qwen2_5_vl grpo", "qwen3_vl grpo", "qwen2_5_vl a2c", "qwen3_vl a2c"
)
def test_two_steps_of_the_other_stages(
    kind: str, inside: Callable, mixed: Path, tiny_families: Callable[[str], Path],
    grpo_words: Callable, a2c_words: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    """DPO with its cached reference begins at ln 2; the probabilities that answers were drawn with are those that learn."""

    def steps(stage: str) -> list[dict[str, Any]]:
        return steps_of(tmp_path / stage)

    flags = ("--model", tiny_families(kind), "--data", mixed, "--max_steps", 2)
    plain = (*PLAIN, "--save_strategy", "no")
    inside("dpo", *flags, *plain, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "dpo")
    assert len(steps("dpo")) == 2 and steps("dpo")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    # Long enough to draw the placeholder of videos, were it not left out.
    inside("grpo", *grpo_words(tmp_path / "grpo", *flags, "--beta", 0.1, "--max_completion_length", 64))
    assert steps("grpo")[0]["kl"] == pytest.approx(0, abs=1e-6) and len(steps("grpo")) == 2
    inside("a2c", *a2c_words(tmp_path / "a2c", *flags))
    assert [row["sampling/log_prob_gap"] < 1e-4 for row in steps("a2c")] == [True, True]


@pytest.fixture(scope="module")
def cache(mixed: Path, tiny_families: Callable[[str], Path]) -> Callable[[str], Path]:
    """`cache(kind)`: features of `mixed` as tools/cache_features.py writes them, few pictures in a pass."""

    @functools.cache
    def build(kind: str) -> Path:
        out = mixed.with_name(f"features-{kind}")
        words = (
            "--model",
            tiny_families(kind),
            "--data",
            mixed,
            "--out",
            out,
            "--stored",
            "float32",
            "--batch_size",
            5,
        )
        tool = Path(__file__).resolve().parents[2] / "tools" / "cache_features.py"
        subprocess.run([sys.executable, *map(str, (tool, *words))], check=True, capture_output=True)
        return out

    return build


FROZEN = ("--freeze", "vision_tower", "projector")


def cached_media(rows: Path) -> list[str]:
    found = (json.loads(line) for line in rows.read_text().splitlines())
    return [json.dumps(media) for row in found if (media := row.get("video") or row.get("image"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.supports(
    "qwen2_5_vl sft features", "qwen3_vl sft features", "qwen2_5_vl sft packing features", "qwen3_vl sft packing features",
    "qwen2_5_vl generate features", "qwen3_vl generate features",
)  # fmt: skip
def test_features_train_and_answer_as_pixels_do(
    kind: str, inside: Callable, mixed: Path, cache: Callable[[str], Path], tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:  # fmt: skip
    """Losses, gradients, weights and answers of words, pictures, two pictures and videos; packed and not. The model is whole."""
    from safetensors.torch import load_file

    model = tiny_families(kind)
    features = ("--feature_cache", cache(kind))
    common = ("--model", model, "--data", mixed, *FROZEN, "--max_steps", 2, "--learning_rate", 1e-2, *PLAIN)
    for way, flags in (
        ("rows", ("--per_device_train_batch_size", 12)),
        ("packs", ("--packing", "true", "--max_length", 400, "--per_device_train_batch_size", 3)),
    ):
        runs = []
        for name, more in (("pixels", ()), ("features", features)):
            out = tmp_path / f"{way}-{name}"
            inside("sft", *common, *flags, *more, "--save_strategy", "no", "--output_dir", out)
            runs.append((steps_of(out), load_file(out / "model.safetensors")))
        entries = json.loads((out / "run.json").read_text())["features"]["entries"]
        assert entries == len(set(cached_media(mixed)))
        (pixels, weights), (cached, same) = runs
        for number in ("loss", "grad_norm"):
            assert [step[number] for step in cached] == pytest.approx([step[number] for step in pixels], abs=1e-5)
        torch.testing.assert_close(same, weights, atol=1e-5, rtol=1e-4)
        before = load_file(model / "model.safetensors")
        frozen = [name for name in before if "visual." in name]
        assert frozen and all(torch.equal(same[name], before[name]) for name in frozen)
    said = []
    for more in ((), features):
        out = tmp_path / f"answers{len(said)}.jsonl"
        words = ("--limit", 12, "--batch_size", 4, "--max_new_tokens", 6, "--out", out, *more)
        inside("generate", "--model", model, "--data", mixed, *words)
        said.append([json.loads(line)["prediction"] for line in out.read_text().splitlines()])
    assert said[0] == said[1] and len(set(said[0])) > 2


@pytest.mark.slow
@pytest.mark.supports("qwen3_vl sft zero2 lora features")
def test_two_ranks_train_from_features_as_one_does_from_pixels(
    sft: Callable, inside: Callable, mixed: Path, cache: Callable[[str], Path], tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:  # fmt: skip
    """A row a rank and step: one rank has words alone where the other has a picture."""
    model = ("--model", tiny_families("qwen3_vl"), "--data", mixed, *FROZEN)
    flags = (*model, "--lora_rank", 4, "--global_batch_size", 2, "--max_steps", 6, "--learning_rate", 1e-2)
    inside("sft", *flags, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "one", *PLAIN)
    rest = ("--per_device_train_batch_size", 1, "--deepspeed", "zero2", "--feature_cache", cache("qwen3_vl"))
    two = sft(tmp_path / "two", *flags, *rest, launcher="torchrun", timeout=400)
    one = dataclasses.replace(two, out=tmp_path / "one")
    assert two.curve() == pytest.approx(one.curve(), abs=1e-4)
    assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.supports("qwen3_vl grpo features", "qwen3_vl a2c features", "qwen3_vl dpo features")
def test_the_other_stages_from_features_do_the_same(
    inside: Callable, mixed: Path, cache: Callable[[str], Path], tiny_families: Callable[[str], Path],
    grpo_words: Callable, a2c_words: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    """Completions and losses of two steps. References of grpo and dpo are second models, which have no tower either."""
    flags = ("--model", tiny_families("qwen3_vl"), "--data", mixed, *FROZEN, "--max_steps", 2)

    def dpo_words(out: Path, *words: object) -> list[object]:
        plain = (*PLAIN, "--save_strategy", "no", "--per_device_train_batch_size", 4, "--learning_rate", 1e-3)
        return [*words, *plain, "--output_dir", out]

    kinds = (("grpo", grpo_words, ("--beta", 0.1)), ("a2c", a2c_words, ()), ("dpo", dpo_words, ("--reference", "live")))
    for stage, words, more in kinds:
        runs = []
        for name, given in (("pixels", ()), ("features", ("--feature_cache", cache("qwen3_vl")))):
            out = tmp_path / f"{stage}-{name}"
            inside(stage, *words(out, *flags, *more, *given))
            samples = out / "samples.jsonl"
            said = [json.loads(line) for line in samples.read_text().splitlines()] if samples.exists() else []
            runs.append(([(row["id"], row["completion"]) for row in said], [step["loss"] for step in steps_of(out)]))
        assert runs[0][0] == runs[1][0] and (stage == "dpo" or len(set(runs[0][0])) > 2)
        assert len(runs[1][1]) == 2 and runs[1][1] == pytest.approx(runs[0][1], abs=1e-5)


def test_features_of_something_else_are_refused(
    mixed: Path, cache: Callable[[str], Path], tiny_families: Callable[[str], Path], tmp_path: Path
) -> None:
    """Other limits of pixels, another tower, a projector that trains, frames in another order."""
    from types import SimpleNamespace

    from drive_vlm.config import DataConfig
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import freeze
    from drive_vlm.models.tiny.qwen_vl import build_tiny_qwen3_vl
    from drive_vlm.sampling.features import open_features

    def start(model: Path, frozen: tuple[str, ...] = FROZEN[1:], **pixels: int) -> tuple[Any, Any]:
        config = ModelConfig(model=str(model), **pixels)
        family = load_family(config, torch.float32, for_training=True)
        freeze(family.model, family.parts, frozen)
        data = DataConfig(data=[str(mixed)], feature_cache=str(cache("qwen3_vl")))
        return family, open_features(family, config, data, SimpleNamespace(should_save=True))[0]

    model = tiny_families("qwen3_vl")
    with pytest.raises(ValueError, match=r"pixels\.limits: \[196, 3136, .* now\).*--max_pixels 1568 --out"):
        start(model, max_pixels=1568)
    with pytest.raises(ValueError, match=r"pixels\.limits: .*--min_pixels 784 --out"):
        start(model, min_pixels=784)
    other = build_tiny_qwen3_vl(tmp_path / "other", mixed.read_text().splitlines(), seed=1)
    with pytest.raises(ValueError, match=r"tower\.weights"):
        start(other)
    with pytest.raises(ValueError, match=r"projector .*trains .*such as merger\..*--freeze vision_tower projector"):
        start(model, ("vision_tower",))
    family, features = start(model)
    with pytest.raises(ValueError, match=r"--shuffle_frames with --feature_cache"):
        Encoder(family.tokenizer, family.template, family.vision, features=features, shuffle_frames=True)


def test_a_flat_config_is_read(tiny_families: Callable[[str], Path], tmp_path: Path) -> None:
    """The published Qwen2.5-VL have their text's numbers at the top of config.json."""
    import shutil

    from drive_vlm.models import load_family

    path = shutil.copytree(tiny_families("qwen2_5_vl"), tmp_path / "flat")
    config = json.loads((path / "config.json").read_text())
    text = config.pop("text_config")
    (path / "config.json").write_text(json.dumps({**text, **config}))
    assert load_family(ModelConfig(model=str(path)), torch.float32).model.config.text_config.hidden_size == 64
