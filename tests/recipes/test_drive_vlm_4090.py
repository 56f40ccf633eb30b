"""recipes/drive_vlm_4090.sh with a tiny model on a CPU: killed within a stage and started again, it goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 6
FLAGS = ("--max_steps", str(STEPS), "--save_steps", "1", "--logging_steps", "1", "--global_batch_size", "4")
SMALL = ("--per_device_train_batch_size", "2", "--dataloader_num_workers", "0", "--report_to", "none")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_killed_chain_goes_on_within_the_stage(
    run: Callable, tiny_video_model: Path, spacy_model: str, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    build = ["--out", data, "--scenes", 0, "--clips", 8, "--num_frames", 16, "--size", 64, "--split_entry"]
    done = run([sys.executable, "tools/build_synthetic.py", *build, "--splits", "train:0.9", "test:0.1"])
    assert done.returncode == 0, done.stderr
    out.mkdir()
    (out / "base").symlink_to(tiny_video_model)
    (tmp_path / "en_core_web_sm").symlink_to(spacy_model)  # what the recipe names, found in the working directory
    detector = "from ultralytics import YOLO; YOLO('yolov8n.yaml').save('yolov8x.pt')"
    env = os.environ | {
        "DATA": str(data),
        "OUT": str(out),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "YOLO_CONFIG_DIR": str(tmp_path),
        "YOLO_OFFLINE": "true",
    }
    subprocess.run([sys.executable, "-c", detector], cwd=tmp_path, env=env, check=True, capture_output=True)
    command = ["bash", str(ROOT / "recipes/drive_vlm_4090.sh"), *FLAGS, *SMALL]
    log = tmp_path / "killed.log"
    with log.open("w") as file:
        chain = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 400
        while not any(out.glob("stage2/checkpoint-*/complete.json")) and time.monotonic() < deadline:
            assert chain.poll() is None, log.read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(chain.pid, signal.SIGKILL)
        chain.wait()
    assert read(out / "stage2/run.json").get("state") != "finished", log.read_text()[-3000:]
    first = (out / "stage1/run.json").read_bytes()
    at = max(int(path.parent.name.split("-")[1]) for path in out.glob("stage2/checkpoint-*/complete.json"))

    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout[-1500:] + again.stderr[-3000:]
    assert "stage 1: finished before" in again.stdout and (out / "stage1/run.json").read_bytes() == first
    assert "0 entries with 0 pictures or frames to do" in again.stdout  # the feature cache was whole
    steps = [line["step"] for line in map(json.loads, (out / "stage2/metrics.jsonl").open()) if "loss" in line]
    assert steps == list(range(1, STEPS + 1)), steps
    told = [line for line in again.stderr.splitlines() if line.startswith("step ")]
    assert told[0].startswith(f"step {at + 1}/{STEPS}:")
    for stage in (1, 2, 3):
        assert read(out / f"stage{stage}/run.json")["state"] == "finished"
    assert any("physics" in json.loads(line)["terms"] for line in (out / "stage3/samples.jsonl").open())
