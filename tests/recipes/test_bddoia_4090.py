"""recipes/bddoia_4090.sh with a tiny model on a CPU: killed within a stage of A2C and started again, it goes on where it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STEPS = 3
FLAGS = ("--max_steps", str(STEPS), "--save_steps", "1", "--logging_steps", "1", "--global_batch_size", "4")
SMALL = ("--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--report_to", "none")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def write_split(folder: Path, split: str, first: int, count: int) -> None:
    """BDD-OIA's two files and the pictures that they name; a row is a video of its own."""
    names = [f"{first + i:08x}-{first + i:08x}.jpg" for i in range(count)]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (48, 32), (16 * (first + i) % 256, 200 - 9 * i, 40)).save(folder / "data" / name)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    categories = [{"category": [i % 2, 1 - i % 2, 0, 0]} for i in range(count)]
    reasons = [{"file_name": name, "reason": [int(k == 7 * (1 - i % 2)) for k in range(21)]} for i, name in enumerate(names)]  # fmt: skip
    (folder / f"{split}_25k_images_actions.json").write_text(json.dumps({"images": images, "annotations": categories}))
    (folder / f"{split}_25k_images_reasons.json").write_text(json.dumps(reasons))


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.supports("smolvlm sft zero2 lora", "smolvlm a2c zero2 lora")
def test_a_killed_chain_goes_on_within_the_stage(
    tiny_families: Callable[[str], Path], random_clip: Path, tmp_path: Path, kill_chain: Callable
) -> None:
    for split, first, count in (("train", 1, 12), ("val", 20, 2), ("test", 30, 2)):
        write_split(tmp_path / "data/lastframe", split, first, count)
    # The names that the recipe gives, found in the working directory.
    (tmp_path / "HuggingFaceTB").mkdir()
    (tmp_path / "HuggingFaceTB/SmolVLM-Instruct").symlink_to(tiny_families("idefics3"))
    (tmp_path / "ViT-B-32-quickgelu").symlink_to(random_clip)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command, out = ["bash", str(ROOT / "recipes/bddoia_4090.sh"), *FLAGS, *SMALL], tmp_path / "runs/bddoia"
    said = kill_chain(command, tmp_path, env, out, "stage2/checkpoint-*/complete.json")
    assert read(out / "stage2/run.json").get("state") != "finished", said[-3000:]
    before = {name: (out / name / "run.json").read_bytes() for name in ("sft", "stage1")}
    at = max(int(path.parent.name.split("-")[1]) for path in out.glob("stage2/checkpoint-*/complete.json"))

    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert again.returncode == 0, again.stdout[-1500:] + again.stderr[-3000:]
    assert "sft: finished before" in again.stdout and "stage 1: finished before" in again.stdout
    assert before == {name: (out / name / "run.json").read_bytes() for name in before}
    told = [line for line in again.stderr.splitlines() if line.startswith("step ")]
    assert told[0].startswith(f"step {at + 1}/{STEPS}:"), told
    for name, terms in (
        ("stage1", {"clip"}),
        ("stage2", {"clip", "action_reason"}),
        ("stage3", {"clip", "action_reason", "structure"}),
    ):
        assert read(out / name / "run.json")["state"] == "finished"
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").open()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
        assert terms == json.loads((out / name / "samples.jsonl").read_text().splitlines()[-1])["terms"].keys()
    assert not any(out.glob("*/checkpoint-*.saving"))
