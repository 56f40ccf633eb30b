"""recipes/clarify_4090.sh with a tiny model on a CPU: killed within GRPO and started again, it goes on where it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.builders.synthetic.rows import truth_of
from drive_vlm.builders.synthetic.sample import make_scene

ROOT = Path(__file__).parents[2]
STEPS = 3
FLAGS = ("--max_steps", str(STEPS), "--save_steps", "1", "--logging_steps", "1", "--global_batch_size", "8")
SMALL = ("--max_pixels", "3136", "--dataloader_num_workers", "0", "--report_to", "none")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def write_world(folder: Path, scenes: int) -> None:
    """Truths of the synthetic world; all pictures are one file, since what is learned does not matter here."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (224, 224)).save(folder / "one.png")
    with (folder / "scenes.jsonl").open("w") as file:
        for i in range(scenes):
            os.link(folder / "one.png", folder / "images" / f"{i:06d}.png")
            file.write(json.dumps({**truth_of(make_scene(0, i)), "image": f"images/{i:06d}.png"}) + "\n")


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.supports("qwen3_vl grpo zero2 lora")
def test_a_killed_chain_goes_on_within_the_stage(
    tiny_families: Callable[[str], Path], tmp_path: Path, kill_chain: Callable
) -> None:
    write_world(tmp_path / "world", 400)
    # The name that the recipe gives, found in the working directory.
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen/Qwen3-VL-2B-Instruct").symlink_to(tiny_families("qwen3_vl"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    source = {"SOURCE": "synthetic", "DATA": "world/scenes.jsonl", "SYSTEM": "accurate"}
    env = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": path, "CUDA_VISIBLE_DEVICES": "", **source}
    command, out = ["bash", str(ROOT / "recipes/clarify_4090.sh"), *FLAGS, *SMALL], tmp_path / "runs/clarify"
    said = kill_chain(command, tmp_path, env, out, "grpo/checkpoint-*/complete.json")
    assert read(out / "grpo/run.json").get("state") != "finished", said[-3000:]
    before = (out / "sft/run.json").read_bytes(), (out / "rows/train.jsonl").read_bytes()
    at = max(int(path.parent.name.split("-")[1]) for path in out.glob("grpo/checkpoint-*/complete.json"))

    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert again.returncode == 0, again.stdout[-1500:] + again.stderr[-3000:]
    assert "sft: finished before" in again.stdout
    assert before == ((out / "sft/run.json").read_bytes(), (out / "rows/train.jsonl").read_bytes())
    told = [line for line in again.stderr.splitlines() if line.startswith("step ")]
    assert told[0].startswith(f"step {at + 1}/{STEPS}:"), told
    assert read(out / "grpo/run.json")["state"] == "finished"
    lines = [json.loads(line) for line in (out / "grpo/metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    sample = json.loads((out / "grpo/samples.jsonl").read_text().splitlines()[-1])
    assert sample["terms"].keys() == {"clarify"}
    row = json.loads((out / "rows/train.jsonl").read_text().splitlines()[0])
    assert row["messages"][0]["role"] == "system"
    assert not any(out.glob("*/checkpoint-*.saving"))
