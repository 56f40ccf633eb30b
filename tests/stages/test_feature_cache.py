"""Training from cached features is training from pixels, without the tower; what is saved is the whole model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--num_frames", 3, "--max_steps", 4, "--per_device_train_batch_size", 4, "--global_batch_size", 8)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """24 rows: videos, pictures, two pictures, no picture."""
    folder = tmp_path_factory.mktemp("rows")
    for name in ("clips", "images"):
        shutil.copytree(synthetic_data / name, folder / name)
    videos, pictures = (
        [json.loads(line) for line in (synthetic_data / name).read_text().splitlines()]
        for name in ("clips_train.jsonl", "train.jsonl")
    )
    mixed = (videos + pictures)[:4] + pictures[:20]
    for i, row in enumerate(mixed):
        if i % 6 == 5:
            del row["image"]
            row["conversations"][0]["value"] = "What is ahead?"
        elif i % 6 == 4:
            row["image"] = [row["image"], pictures[i + 1]["image"]] if "image" in row else row["image"]
            row["conversations"][0]["value"] = "<image>\n" + row["conversations"][0]["value"]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    return path


def cache_features(model: Path, rows: Path, out: Path, *flags: object) -> Path:
    words = ["--model", model, "--data", rows, "--num_frames", 3, "--out", out, "--stored", "float32", *flags]
    tool = ROOT / "tools" / "cache_features.py"
    subprocess.run([sys.executable, *map(str, [tool, *words])], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module", params=["tiny_model", "tiny_video_model"])
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def features(model: Path, rows: Path) -> Path:
    return cache_features(model, rows, rows.parent / f"features-{model.name}")


@pytest.fixture(scope="module")
def runs(model: Path, rows: Path, features: Path, fresh: Callable, sft: Callable) -> tuple[Any, Any]:
    """The same run from pixels and from features; the latter writes checkpoints."""
    common = ("--model", model, "--data", rows, *FLAGS)
    cached = ("--feature_cache", features, "--save_strategy", "steps", "--save_steps", 2)
    return sft(fresh("pixels"), *common), sft(fresh("features"), *common, *cached)


def tensors(model: Path) -> dict[str, Any]:
    """Weights by name, as from_pretrained of the class that config.json names reads them."""
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family

    return load_family(ModelConfig(model=str(model)), torch.float32).model.state_dict()


@pytest.mark.slow
@pytest.mark.supports("internvl sft features", "siglip_qwen sft features")
def test_losses_and_weights_are_those_of_pixels(runs: tuple[Any, Any]) -> None:
    pixels, features = runs
    assert len(pixels.curve()) == 4
    assert features.curve() == pytest.approx(pixels.curve(), abs=1e-5)
    assert features.curve("grad_norm") == pytest.approx(pixels.curve("grad_norm"), rel=1e-3)
    ours, theirs = tensors(features.out), tensors(pixels.out)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours)
    assert json.loads((features.out / "run.json").read_text())["features"]["entries"] > 4


@pytest.mark.slow
def test_models_and_checkpoints_are_whole(runs: tuple[Any, Any], model: Path, features: Path) -> None:
    """The tower comes out as it went in, from the final model and from a checkpoint, and the cache still belongs to it."""
    before, out = tensors(model), runs[1].out
    for saved in (out, out / "checkpoint-2"):
        after = tensors(saved)
        tower = [name for name in before if "vision_tower" in name]
        assert tower and after.keys() == before.keys()
        assert all((after[name] == before[name]).all() for name in tower), saved
        trained = [name for name in before if "projector" in name]
        assert trained and not all((after[name] == before[name]).all() for name in trained)
    links = {path.stat().st_nlink for path in out.glob("checkpoint-*/model-frozen*.safetensors")}
    assert links == {3}, "one copy of the frozen weights"


@pytest.mark.slow
@pytest.mark.supports("internvl sft lora features", "siglip_qwen sft lora features")
def test_a_resumed_run_and_the_next_stage_use_the_same_cache(
    runs: tuple[Any, Any], model: Path, rows: Path, features: Path, fresh: Callable, sft: Callable
) -> None:
    out = fresh("resumed")
    shutil.copytree(runs[1].out / "checkpoint-2", out / "checkpoint-2")
    common = ("--data", rows, *FLAGS, "--feature_cache", features)
    resumed = sft(out, "--model", model, *common, "--resume", "auto")
    assert resumed.curve() == pytest.approx(runs[0].curve()[2:], abs=1e-5)
    next_stage = sft(fresh("stage2"), "--model", runs[1].out, *common, "--lora_rank", 4)
    assert len(next_stage.curve()) == 4
    assert (next_stage.out / "adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.supports("siglip_qwen sft packing features")
def test_packed_rows_equal_too(tiny_video_model: Path, rows: Path, fresh: Callable, sft: Callable) -> None:
    features = cache_features(tiny_video_model, rows, rows.parent / f"features-{tiny_video_model.name}")
    common = (
        "--model",
        tiny_video_model,
        "--data",
        rows,
        *FLAGS,
        "--max_steps",
        2,
        "--packing",
        "true",
        "--max_length",
        400,
    )
    pixels, cached = sft(fresh("a"), *common), sft(fresh("b"), *common, "--feature_cache", features)
    assert cached.curve() == pytest.approx(pixels.curve(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.supports("internvl sft zero3 features", "siglip_qwen sft zero3 features")
def test_zero3_needs_no_tower(
    runs: tuple[Any, Any], model: Path, rows: Path, features: Path, world: Any, fresh: Callable, sft: Callable
) -> None:
    """Two ranks, one row each: some batches of a rank have no picture while the other's have one."""
    flags = ("--model", model, "--data", rows, *FLAGS, "--per_device_train_batch_size", 1)
    zero3 = sft(fresh("zero3"), *flags, "--feature_cache", features, "--deepspeed", world.zero3, launcher="torchrun")
    assert zero3.curve() == pytest.approx(runs[0].curve(), abs=1e-4)
    saved, before = tensors(zero3.out), tensors(model)
    assert all((saved[name] == before[name]).all() for name in before if "vision_tower" in name)


@pytest.mark.slow
def test_no_picture_is_opened(tiny_video_model: Path, rows: Path, fresh: Callable, sft: Callable) -> None:
    """Files of the same size and time but without a picture in them: neither lengths nor batches look inside."""
    folder = fresh("blind")
    for name in ("clips", "images"):
        shutil.copytree(rows.parent / name, folder / name, copy_function=shutil.copy2)
    shutil.copy(rows, folder)
    features = cache_features(tiny_video_model, folder / "rows.jsonl", folder / "features")
    for path in [*(folder / "clips").iterdir(), *(folder / "images").iterdir()]:
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    flags = ("--model", tiny_video_model, "--data", folder / "rows.jsonl", *FLAGS, "--max_steps", 2)
    assert len(sft(folder / "run", *flags, "--feature_cache", features).curve()) == 2
    stopped = sft(folder / "pixels", *flags, code=2)
    assert "cannot be" in stopped.text


@pytest.mark.slow
def test_what_does_not_fit_stops_before_training(tiny_video_model: Path, tiny_model: Path, rows: Path) -> None:
    import torch

    from drive_vlm.config import DataConfig, ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.freezing import freeze
    from drive_vlm.sampling.features import open_features

    features = cache_features(tiny_video_model, rows, rows.parent / f"features-{tiny_video_model.name}")

    def start(path: Path, frozen: str = "vision_tower", num_frames: int = 3) -> None:
        model = ModelConfig(model=str(path))
        family = load_family(model, torch.float32, for_training=True)
        freeze(family.model, family.parts, [frozen])
        data = DataConfig(data=[str(rows)], num_frames=num_frames, feature_cache=str(features))
        open_features(family, model, data, SimpleNamespace(should_save=True))

    with pytest.raises(ValueError, match=r"the vision tower trains .*--freeze vision_tower"):
        start(tiny_video_model, "projector")
    with pytest.raises(ValueError, match=r"tower\.weights: .*python tools/cache_features.py --model"):
        start(tiny_model)
    with pytest.raises(ValueError, match=r"num_frames: 3 then, 4 now.*--num_frames 4 --out"):
        start(tiny_video_model, num_frames=4)
    start(tiny_video_model)


def test_adapters_in_the_tower_stop(tiny_video_model: Path) -> None:
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family
    from drive_vlm.models.lora import apply_lora
    from drive_vlm.models.vision_features import require_frozen_tower

    config = ModelConfig(model=str(tiny_video_model), lora_rank=2, lora_targets=r".*\.q_proj")
    family = load_family(config, torch.float32)
    family.model.requires_grad_(False)
    family.model = apply_lora(family, config, ["vision_tower"])
    with pytest.raises(ValueError, match=r"the vision tower trains .*lora_A"):
        require_frozen_tower(family)


@pytest.mark.slow
def test_a_changed_video_stops_the_run(tiny_video_model: Path, rows: Path, fresh: Callable, sft: Callable) -> None:
    features = cache_features(tiny_video_model, rows, rows.parent / f"features-{tiny_video_model.name}")
    path = next((rows.parent / "clips").iterdir())
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    flags = ("--model", tiny_video_model, "--data", rows, *FLAGS, "--feature_cache", features)
    try:
        text = sft(fresh("changed"), *flags, code=2).text
    finally:
        path.write_bytes(content)
    assert "has changed since its features were written" in text and "Renew what has changed" in text


@pytest.mark.slow
def test_grpo_from_features_says_and_is_rewarded_the_same(
    model: Path,
    rows: Path,
    features: Path,
    fresh: Callable,
    grpo_words: Callable,
    inside: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completions and rewards of policy steps are those of pixels, and neither policy nor reference calls a tower."""
    from transformers import InternVLVisionModel, SiglipVisionModel

    calls: list[str] = []
    for tower in (InternVLVisionModel, SiglipVisionModel):
        own = tower.forward

        def forward(*args: Any, own: Any = own, **kwargs: Any) -> Any:
            calls.append("tower")
            return own(*args, **kwargs)

        monkeypatch.setattr(tower, "forward", forward)
    adapter = (
        ("--lora_rank", 2) if model.name == "tiny_video_model" else ()
    )  # the reference: a copy of it, or a second model
    words = ("--model", model, "--data", rows, "--num_frames", 3, "--max_steps", 3, "--learning_rate", 1e-3, *adapter)

    def samples(name: str, *more: object) -> tuple[list[dict[str, Any]], int]:
        out, before = fresh(name), len(calls)
        inside("grpo", *grpo_words(out, *words, *more))
        return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()], len(calls) - before

    pixels, ran = samples("grpo-pixels")
    cached, idle = samples("grpo-features", "--feature_cache", features)
    assert ran > 0 and idle == 0
    assert len({line["prompt"] for line in cached}) > 1 and len(cached) == 3 * 8
    for name in ("id", "step", "completion", "rewards"):
        assert [line[name] for line in cached] == [line[name] for line in pixels], name
    assert len({line["rewards"]["letter_reward"] for line in cached}) > 1
