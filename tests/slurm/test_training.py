"""Real training on two nodes of a real Slurm: the spine's recipe, ZeRO-2, a tiny model, through slurm/submit.sh."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HERE = Path(__file__).parent
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/internvl3_1b_sft.sh"
STEPS = 32
# Of the CPUs of both nodes, so that two jobs run at a time.
HALF = ("--cpus-per-task", 4)


ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def flags_of(data, model, out, more=()):
    """Flags of the recipe: 32 steps with a checkpoint every 4; `more` wins."""
    return (
        "--model", model, "--data", data / "train.jsonl", "--deepspeed", "zero2", "--bf16", "false",
        "--gradient_checkpointing", "false", "--global_batch_size", 8, "--learning_rate", "1e-3", "--max_length", 512,
        "--max_tiles", 1, "--max_steps", STEPS, "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 4, "--keep", 1,
        "--dataloader_num_workers", 0, "--disable_tqdm", "true", "--output_dir", out, *more,
    )  # fmt: skip


@pytest.fixture
def train(submit, synthetic_data, tiny_model, tmp_path):
    """`train(name, *options, more=())`: a submitted job on two nodes; `more` are flags of the recipe."""

    def start(name, *options, more=()):
        limit = ("--nodes", 2, "--cpus-per-task", 8, "--time", 10, "--name", name)
        flags = flags_of(synthetic_data, tiny_model, tmp_path / name, more)
        return submit(RECIPE, *limit, *options, flags=flags, **ENVIRONMENT)

    return start


def curve(out):
    """Loss by step; a step that was made again after a checkpoint counts as it was made last."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_step(out, step, seconds=450):
    end = time.monotonic() + seconds
    while not ((out / "metrics.jsonl").exists() and max(curve(out), default=0) >= step):
        assert time.monotonic() < end, "the training does not move"
        time.sleep(0.05)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.1)


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
    end = cluster.wait(job, 450)
    assert (end["JobState"], end["NumNodes"], end["Restarts"]) == ("COMPLETED", "2", "0"), log(job)
    losses = curve(tmp_path / "whole")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert json.loads((tmp_path / "whole/run.json").read_text())["recipe"] == "recipes/internvl3_1b_sft.sh"
    return losses


def status_of(tmp_path, job):
    return json.loads((tmp_path / f"runs/slurm/control/{job}/status.json").read_text())


@pytest.fixture
def launchers_train_alike(train, cluster, log, tmp_path, synthetic_data, tiny_model):
    """`launchers_train_alike()`: two ranks one a node under the deepspeed launcher, and two as tasks of one srun step on one node."""

    def check():
        short = ("--max_steps", 6, "--save_strategy", "no")
        deepspeed = train("deepspeed", "--launcher", "deepspeed", *HALF, more=short)
        end = cluster.wait(deepspeed, 450)
        assert (end["JobState"], end["NumNodes"]) == ("COMPLETED", "2"), log(deepspeed)

        flags = " ".join(map(str, flags_of(synthetic_data, tiny_model, tmp_path / "tasks", short)))
        script = tmp_path / "tasks.sbatch"
        script.write_text(f"#!/usr/bin/env bash\nsrun --kill-on-bad-exit=1 bash {RECIPE} {flags}\n")
        options = (
            "--parsable",
            "--nodes=1",
            "--ntasks-per-node=2",
            "--cpus-per-task=2",
            "--time=10",
            f"--output={tmp_path}/tasks-%j.out",
        )
        env = cluster.env | ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{cluster.env['PATH']}"}
        done = subprocess.run(
            ["sbatch", *options, script], check=True, capture_output=True, text=True, env=env, cwd=tmp_path
        )
        tasks = int(done.stdout)
        end = cluster.wait(tasks, 450)
        assert end["JobState"] == "COMPLETED", (tmp_path / f"tasks-{tasks}.out").read_text()
        assert json.loads((tmp_path / "tasks/run.json").read_text())["world_size"] == 2
        losses = curve(tmp_path / "tasks")
        assert sorted(losses) == list(range(1, 7))
        assert losses == pytest.approx(curve(tmp_path / "deepspeed"), rel=1e-4)

    return check


def test_time_limit_killed_rank_and_preemption_leave_the_loss_curve_as_it_is(
    train, submit, cluster, log, tmp_path, uninterrupted, launchers_train_alike
):
    # Slurm looks at time limits every 30 s and warns up to 30 s early: of these 3 minutes, 90 to 120 s pass before it asks to save,
    # which is also what a start has to come further than the one before.
    job = train("stopped", "--time", 3, "--requeue-margin", 60, *HALF)
    wait_for_step(tmp_path / "stopped", 6)
    rank = a_rank_of(tmp_path / "stopped")
    # The training would be over before its time is.
    os.kill(rank, signal.SIGSTOP)

    def go_on_when_asked():
        try:
            wait_for(lambda: "USR1: asking the ranks to save" in log(job), 160)
        finally:
            os.kill(rank, signal.SIGCONT)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(go_on_when_asked)
        # Meanwhile the other half of the nodes is free.
        launchers_train_alike()
        waiting.result()
    end = cluster.wait(job, 450)
    assert end["JobState"] == "COMPLETED" and int(end["Restarts"]) >= 1 and "time limit: requeued" in log(job), log(job)
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
    end = cluster.wait(job, 450)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log(job)
    assert "preempted: requeued" in log(job)
    assert curve(tmp_path / "killed") == pytest.approx(uninterrupted, rel=1e-4)
