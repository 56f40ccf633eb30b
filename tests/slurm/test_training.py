"""Real training on two nodes of a real Slurm: the spine's recipe, ZeRO-2, a tiny model, through slurm/submit.sh."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HERE = Path(__file__).parent
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/internvl3_1b_sft.sh"
STEPS = 32


@pytest.fixture
def train(submit, synthetic_data, tiny_model, tmp_path):
    """`train(name, *options, **env)`: a submitted job of 32 steps on two nodes, a checkpoint every 4."""

    def start(name, *options, **env):
        flags = (
            "--model", tiny_model, "--data", synthetic_data / "train.jsonl", "--deepspeed", "zero2", "--bf16", "false",
            "--gradient_checkpointing", "false", "--global_batch_size", 8, "--learning_rate", "1e-3", "--max_length", 512,
            "--max_tiles", 1, "--max_steps", STEPS, "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 4, "--keep", 1,
            "--dataloader_num_workers", 0, "--disable_tqdm", "true", "--output_dir", tmp_path / name,
        )  # fmt: skip
        limit = ("--nodes", 2, "--cpus-per-task", 8, "--time", 10, "--name", name)
        env = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)} | env
        return submit(RECIPE, *limit, *options, flags=flags, **env)

    return start


def curve(out):
    """Loss by step; a step that was made again after a checkpoint counts as it was made last."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_step(out, step, seconds=120):
    end = time.monotonic() + seconds
    while not ((out / "metrics.jsonl").exists() and max(curve(out), default=0) >= step):
        assert time.monotonic() < end, "the training does not move"
        time.sleep(0.05)


def a_rank_of(out):
    """Process id of a rank that trains into `out`, and not of its launcher."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ranked = b"\0RANK=1\0" in b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue
        if ranked and str(out).encode() in words and b"drive_vlm" in words:
            return int(entry.name)
    raise AssertionError("no rank found")


@pytest.fixture
def uninterrupted(train, cluster, log, tmp_path):
    job = train("whole")
    end = cluster.wait(job, 150)
    assert (end["JobState"], end["NumNodes"], end["Restarts"]) == ("COMPLETED", "2", "0"), log(job)
    losses = curve(tmp_path / "whole")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert json.loads((tmp_path / "whole/run.json").read_text())["recipe"] == "recipes/internvl3_1b_sft.sh"
    return losses


def status_of(tmp_path, job):
    return json.loads((tmp_path / f"runs/slurm/control/{job}/status.json").read_text())


def test_time_limit_killed_rank_and_preemption_leave_the_loss_curve_as_it_is(
    train, submit, cluster, log, tmp_path, uninterrupted
):
    job = train("stopped")
    wait_for_step(tmp_path / "stopped", 6)
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(job)], check=True, env=cluster.env)
    end = cluster.wait(job, 150)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log(job)
    assert curve(tmp_path / "stopped") == pytest.approx(uninterrupted, rel=1e-4)
    assert (status_of(tmp_path, job)["state"], status_of(tmp_path, job)["step"]) == ("finished", STEPS)

    # A second job loses a rank, which starts all ranks again in place, and is then preempted.
    job = train("killed", "--max-restarts", 2)
    wait_for_step(tmp_path / "killed", 5)
    os.kill(a_rank_of(tmp_path / "killed"), signal.SIGKILL)
    wait_for_step(tmp_path / "killed", 7)
    assert "exitcode: -9" in log(job) and cluster.show("job", job)["Restarts"] == "0"
    urgent = ("--nodes", 2, "--partition", "urgent", "--time", 10)
    first = submit(HERE / "pretend.sh", *urgent, flags=("--out", tmp_path / "urgent", "--steps", 2))
    assert cluster.wait(first)["JobState"] == "COMPLETED"
    end = cluster.wait(job, 150)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log(job)
    assert "preempted: requeued" in log(job)
    assert curve(tmp_path / "killed") == pytest.approx(uninterrupted, rel=1e-4)
