"""recipes/drive_vlm_4090.sh with a tiny model on a CPU: killed within a stage and started again, it goes on where it was."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drive_vlm.store.secrets import HIDDEN

ROOT = Path(__file__).parents[2]
STEPS = 6
FLAGS = ("--max_steps", str(STEPS), "--save_steps", "1", "--logging_steps", "1", "--global_batch_size", "4")
SMALL = ("--per_device_train_batch_size", "2", "--dataloader_num_workers", "0", "--report_to", "none")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def chain(run: Callable, tmp_path: Path) -> Callable:
    """`chain(*words, **env)`: the recipe in an environment that it only checks, as on the nodes of a job."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    fixed = {"OUT": str(tmp_path / "out"), "VIRTUAL_ENV": sys.prefix, "PATH": path, "SLURM_JOB_ID": "7"}
    return lambda *words, **env: run(["bash", "recipes/drive_vlm_4090.sh", *words], **fixed | env)


def finish(stage: Path, *words: str) -> None:
    """What a finished stage says of itself, begun by its recipe with `words` behind two of the recipe's own."""
    stage.mkdir(parents=True)
    run = {"state": "finished", "environment": {"DRIVE_VLM_USER_WORDS": str(len(words))}}
    (stage / "run.json").write_text(json.dumps(run | {"words": ["sft", "--max_steps", "9", *words]}, indent=2))


def test_a_stage_that_finished_with_other_flags_stops_the_chain(chain: Callable, tmp_path: Path) -> None:
    """A trial of two steps is not the run."""
    out = tmp_path / "out"
    own = (
        "--model",
        f"{out}/base",
        "--data",
        "data/bdd/raw_captions_train.jsonl",
        "--feature_cache",
        f"{out}/features",
    )
    own += ("--num_frames", "16")
    tail = ("--quantize", "none", "--output_dir", f"{out}/stage1")
    finish(out / "stage1", *own, "--max_steps", "2", "--hub_token", HIDDEN, *tail)
    done = chain("--hub_token", "hf_0123456789")
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert "stage 1 finished with other flags: then --max_steps 2; now without. Remove" in done.stderr
    assert f"Remove {out}/stage1 and the later stages, or give another OUT" in done.stderr
    done = chain("--max_steps", "3", NUM_FRAMES="8")
    assert "then --num_frames 16 --max_steps 2" in done.stderr and "now --num_frames 8 --max_steps 3" in done.stderr


def test_later_stages_are_not_those_of_an_earlier_one_that_is_run_anew(chain: Callable, tmp_path: Path) -> None:
    finish(tmp_path / "out" / "stage3")
    done = chain()
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert "stage 1 is not finished, but stage 3 is there" in done.stderr


def test_caches_and_stages_take_the_same_number_of_frames(dry: Callable) -> None:
    done = dry("recipes/drive_vlm_4090.sh", NUM_FRAMES="8")
    assert done.returncode == 0, done.stderr
    commands = done.stdout.split("\npython")
    last = [re.findall(r"--num_frames (\d+)", command)[-1:] for command in commands]
    assert last == [[], ["8"], ["8"], ["8"], ["8"], ["8"]]  # the model, two caches, three stages
    for words in (("--num_frames", "8"), ("--num_frames=8",)):
        done = dry("recipes/drive_vlm_4090.sh", *words)
        assert done.returncode == 2 and "give NUM_FRAMES=N" in done.stderr
    assert "1 to 16 frames" in dry("recipes/drive_vlm_4090.sh", NUM_FRAMES="17").stderr


@pytest.mark.slow
def test_a_killed_chain_goes_on_within_the_stage(
    run: Callable, tiny_video_model: Path, spacy_model: str, tmp_path: Path, kill_chain: Callable
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
    said = kill_chain(command, tmp_path, env, out, "stage2/checkpoint-*/complete.json")
    assert read(out / "stage2/run.json").get("state") != "finished", said[-3000:]
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

    def refused(*words: str) -> str:
        done = subprocess.run([*command, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and not done.stdout, done.stdout
        return done.stderr

    assert f"stage 1 finished with other flags: then --max_steps {STEPS}; now --max_steps 7." in refused(
        "--max_steps", "7"
    )
    (out / "stage1/run.json").unlink()
    assert "stage 1 is not finished, but stage 2 is there" in refused()
