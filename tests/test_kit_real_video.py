"""Real road videos, a real small language model, the real command lines: frames, feature cache, one step from it, texts.

Three CamVid clips (folders of frames) and two dashcam videos go through a SigLIP of random weights and SmolLM2-135M in the
siglip_qwen class. It cannot describe them; what is proved is that real footage of three sizes goes through every part.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drive_vlm.data.videos import MODES
from drive_vlm.data.vision import frame_indices, load_video, video_length

pytestmark = [pytest.mark.slow, pytest.mark.kit]

CLIPS = ("0001TP_test", "0001TP_train", "0006R0_train")
FILES = {"solidWhiteRight.mp4": (221, (960, 540)), "test_video.mp4": (38, (1280, 720))}
FRAMES = 4


@pytest.fixture(scope="module")
def videos(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five videos in one folder with rows.jsonl; CamVid's class masks, which lie beside its frames, stay out."""
    out = tmp_path_factory.mktemp("videos")
    for name in CLIPS:
        (out / name).mkdir()
        for frame in (kit / "noncommercial" / "camvid" / name).glob("[!m]*.png"):
            shutil.copyfile(frame, out / name / frame.name)
    for name in FILES:
        shutil.copyfile(kit / "permissive" / "udacity" / name, out / name)
    rows = [
        {
            "id": f"{name}-concise",
            "video": name,
            "group": name,
            "mode": "concise",
            "conversations": [
                {"from": "human", "value": f"<video>\n{MODES['concise']}"},
                {"from": "gpt", "value": "The ego vehicle drives along a road behind other cars."},
            ],
        }
        for name in (*CLIPS, *FILES)
    ]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


@pytest.fixture(scope="module")
def model(run: Callable, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of 2 layers with random weights, 64 pixels a side, and SmolLM2-135M: 4 tokens a frame."""
    import torch
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    size = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    SiglipVisionModel(SiglipVisionConfig(**size, image_size=64, patch_size=16)).save_pretrained(folder / "tower")
    SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "tower")
    words = [
        "tools/build_siglip_qwen.py",
        "--vision_tower",
        folder / "tower",
        "--language_model",
        smollm2,
        "--out",
        folder / "model",
    ]
    done = run([sys.executable, *words, "--pool_size", 2, "--max_frames", 8, "--dtype", "float32"])
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "model"


@pytest.fixture(scope="module")
def cache(run: Callable, model: Path, videos: Path) -> Path:
    words = ["--model", model, "--data", videos / "rows.jsonl", "--num_frames", FRAMES, "--stored", "float32"]
    report = videos / "report.json"
    done = run([sys.executable, "tools/cache_features.py", *words, "--out", videos / "features", "--json", report])
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(report.read_text())
    assert (counts["written"], counts["pictures"], counts["bad"]) == (5, 5 * FRAMES, [])
    return videos / "features"


def test_frames_are_sampled_evenly(videos: Path) -> None:
    for name in CLIPS:
        path = str(videos / name)
        assert video_length(path, "test") == 8
        frames = load_video(path, FRAMES, "test")
        assert [frame.size for frame in frames] == [(480, 360)] * FRAMES
        whole = load_video(path, 8, "test")
        assert [frame.tobytes() for frame in frames] == [whole[i].tobytes() for i in (1, 3, 5, 7)]
    for name, (length, size) in FILES.items():
        path = str(videos / name)
        assert video_length(path, "test") == length
        frames = load_video(path, FRAMES, "test")
        assert [frame.size for frame in frames] == [size] * FRAMES
        every = load_video(path, length, "test")
        assert len(every) == length and len({frame.tobytes() for frame in every[:5]}) == 5, "the car moves"
        picked = [every[i].tobytes() for i in frame_indices(length, FRAMES)]
        assert [frame.tobytes() for frame in frames] == picked


def test_the_cache_holds_what_the_tower_says(model: Path, videos: Path, cache: Path) -> None:
    import torch

    from drive_vlm.config import ModelConfig
    from drive_vlm.data.caches.feature_cache import FeatureCache, cache_settings
    from drive_vlm.data.encoder import Encoder
    from drive_vlm.data.sources import open_sources
    from drive_vlm.data.table import read_sample
    from drive_vlm.models import load_family
    from drive_vlm.models.vision_features import tower_identity

    family = load_family(ModelConfig(str(model)), torch.float32)
    features = FeatureCache(cache, cache_settings(tower_identity(family), family.vision.fingerprint(), FRAMES), "")
    encoder = Encoder(family.tokenizer, family.template, family.vision, FRAMES)
    [source] = open_sources([str(videos / "rows.jsonl")], None)
    before = torch.zeros(FRAMES, 16, 48)
    for i, name in enumerate((*CLIPS, *FILES)):
        sample = read_sample(source, i)
        pixels = family.vision.decimals(encoder.load_vision(sample, None)[0])
        pictures = load_video(str(videos / name), FRAMES, "test")
        assert pixels.shape == (len(pictures), 3, 64, 64)
        with torch.inference_mode():
            told = family.model.model.vision_tower(pixel_values=pixels).last_hidden_state
        kept = features.load(sample)
        assert kept.shape == (FRAMES, 16, 48) and kept.dtype == torch.float32
        torch.testing.assert_close(kept, told, atol=1e-5, rtol=1e-4)
        assert (kept - before).abs().max() > 1e-3, "each video has features of its own"
        before = kept


@pytest.mark.supports("siglip_qwen sft lora features optional")
def test_a_step_from_the_cache_and_a_text_for_every_video(
    run: Callable, model: Path, videos: Path, cache: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "run"
    words = ["--model", model, "--data", videos / "rows.jsonl", "--feature_cache", cache, "--num_frames", FRAMES]
    words += ["--freeze", "vision_tower", "--lora_rank", 4, "--output_dir", trained, "--max_steps", 1]
    words += ["--per_device_train_batch_size", 5, "--logging_steps", 1, "--disable_tqdm", "true"]
    done = run([sys.executable, "-m", "drive_vlm", "sft", *words])
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    [loss] = [row["loss"] for row in rows if "loss" in row]
    assert 0 < loss < 12, "SmolLM2 knows English: far below ln 49,152 = 10.8 a token for words at random"
    assert json.loads((trained / "run.json").read_text())["parameters"]["vision_tower"]["trainable"] == 0

    texts = tmp_path / "texts.jsonl"
    words = ["--model", trained, "--mode", "concise", "--data", *(videos / name for name in (*CLIPS, *FILES))]
    words += ["--out", texts, "--num_frames", FRAMES, "--max_new_tokens", 16]
    done = run([sys.executable, "-m", "drive_vlm", "generate", *words])
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in texts.read_text().splitlines()]
    assert [row["video"] for row in answers] == [str(videos / name) for name in (*CLIPS, *FILES)]
    for row in answers:
        assert row["mode"] == "concise" and row["question"] == MODES["concise"]
        assert row["prediction"].strip(), row
