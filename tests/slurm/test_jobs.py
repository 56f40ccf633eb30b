"""What the scripts in slurm/ do on a real Slurm, with a recipe that only pretends to train."""

import os
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PRETEND = HERE / "pretend.sh"


def steps(out):
    """Steps in the order they were made, and the attempts that made them."""
    pairs = [tuple(map(int, line.split())) for line in (out / "steps").read_text().splitlines()]
    return [step for step, _ in pairs], sorted({attempt for _, attempt in pairs})


def poll(condition, seconds):
    """Whether the condition comes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def reaches(out, step):
    """Wait until the pretended training has made so many steps."""
    made = out / "steps"
    assert poll(lambda: made.exists() and len(made.read_text().splitlines()) >= step, 40), "the job does not move"


def signal_batch(cluster, job):
    """What the time limit does to the batch script, without the half minute Slurm takes to look at limits."""
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(job)], check=True, env=cluster.env)


def test_the_time_limit_saves_requeues_and_goes_on(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    job = submit(PRETEND, "--nodes", 2, "--time", 10, flags=("--out", out, "--steps", 30))
    for step in (5, 15):
        reaches(out, step)
        signal_batch(cluster, job)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "2"), log(job)
    assert steps(out) == (list(range(1, 31)), [0, 1, 2])
    text = log(job)
    assert text.count("time limit: requeued") == 2 and "start 1, 2 node(s)" in text and "start 3" in text


def test_a_job_that_makes_no_progress_is_not_requeued_for_ever(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    job = submit(PRETEND, "--time", 10, flags=("--out", out, "--steps", 100, "--never_saves"))
    reaches(out, 3)
    signal_batch(cluster, job)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0")
    assert "--requeue-margin" in log(job)


def answers(out, least, seconds=40):
    """Wait until so many answers are there."""
    file = out / "answers"
    assert poll(lambda: file.exists() and len(file.read_text().splitlines()) >= least, seconds), "no answers"


def test_the_time_limit_in_what_follows_the_training_requeues_as_well(cluster, submit, log, tmp_path):
    """The run is `finished`, and its checkpoint as old as at the last requeue: what counts is that answers were kept."""
    out = tmp_path / "out"
    flags = ("--out", out, "--steps", 3, "--answers", 40)
    job = submit(PRETEND, "--time", 10, flags=flags, PYTHONPATH=str(ROOT))
    for least in (5, 20):
        answers(out, least)
        signal_batch(cluster, job)
        assert poll(lambda: "srun ended" in log(job), 20)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "2"), log(job)
    pairs = [line.split() for line in (out / "answers").read_text().splitlines()]
    assert [number for number, _ in pairs] == [str(i) for i in range(40)]
    assert sorted({attempt for _, attempt in pairs}) == ["0", "1", "2"] and log(job).count("time limit: requeued") == 2


def test_what_keeps_nothing_is_not_started_without_end(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    flags = ("--out", out, "--steps", 3, "--never_saves", "--answers", 200, "--keeps_nothing")
    job = submit(PRETEND, "--time", 10, flags=flags, PYTHONPATH=str(ROOT))
    answers(out, 3)
    signal_batch(cluster, job)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("FAILED", "0"), log(job)
    assert "nothing else was kept" in log(job)


def test_preemption_requeues_and_goes_on(cluster, submit, log, tmp_path):
    """Slurm sends SIGTERM to the step only, and takes a script that then ends for a failed one."""
    out = tmp_path / "out"
    job = submit(PRETEND, "--nodes", 2, "--cpus-per-task", 8, "--time", 10, flags=("--out", out, "--steps", 20))
    reaches(out, 5)
    urgent = tmp_path / "urgent"
    other = submit(PRETEND, "--nodes", 2, "--partition", "urgent", "--time", 10, flags=("--out", urgent, "--steps", 3))
    assert cluster.wait(other)["JobState"] == "COMPLETED", log(other)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), log(job)
    assert steps(out) == (list(range(1, 21)), [0, 1])
    assert "preempted: requeued" in log(job)


def test_a_cancelled_job_stays_cancelled(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    job = submit(PRETEND, "--time", 10, flags=("--out", out, "--steps", 500))
    reaches(out, 3)
    subprocess.run(["scancel", str(job)], check=True, env=cluster.env)
    end = cluster.wait(job)
    assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0"), log(job)
    assert poll(lambda: "cancelled or out of time" in log(job), 10)


def test_a_stop_file_by_hand_ends_the_job_without_success(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    job = submit(PRETEND, "--time", 10, flags=("--out", out, "--steps", 500))
    reaches(out, 3)
    (tmp_path / f"runs/slurm/control/{job}/stop").touch()
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert "stopped on request, not finished" in log(job)


def test_a_node_that_loses_its_power_requeues_the_job(cluster, submit, log, tmp_path):
    out = tmp_path / "out"
    job = submit(PRETEND, "--nodes", 2, "--time", 10, flags=("--out", out, "--steps", 40))
    reaches(out, 4)
    signal_batch(cluster, job)  # so that there is a checkpoint to go on from
    reaches(out, 10)
    cluster.power_off("node1")
    try:  # the batch script died with its node: only Slurm itself can requeue
        requeued = poll(lambda: cluster.show("job", job)["Restarts"] == "2", 80)
    finally:
        cluster.power_on("node1")
    assert requeued, log(job)
    end = cluster.wait(job, 450)
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "2"), log(job)
    made, attempts = steps(out)
    assert attempts == [0, 1, 2] and sorted(set(made)) == list(range(1, 41))


def test_a_chain_runs_in_order_and_a_failing_parent_kills_its_children(cluster, submit, tmp_path):
    outs = [tmp_path / name for name in ("generate", "train", "evaluate")]
    first = submit(PRETEND, "--time", 10, "--name", "generate", flags=("--out", outs[0], "--steps", 5))
    second = submit(PRETEND, "--time", 10, "--after", first, flags=("--out", outs[1], "--steps", 5))
    third = submit(PRETEND, "--time", 10, "--after", second, flags=("--out", outs[2], "--steps", 5))
    assert cluster.wait(third)["JobState"] == "COMPLETED"
    times = [(out / "steps").stat().st_mtime for out in outs]
    assert times == sorted(times)

    bad = submit(PRETEND, "--time", 10, flags=("--out", tmp_path / "bad", "--fails_at", 2))
    child = submit(PRETEND, "--time", 10, "--after", bad, flags=("--out", tmp_path / "child"))
    grandchild = submit(PRETEND, "--time", 10, "--after", child, flags=("--out", tmp_path / "grandchild"))
    assert cluster.wait(bad)["JobState"] == "FAILED"
    assert cluster.wait(child)["JobState"] == cluster.wait(grandchild)["JobState"] == "CANCELLED"
    assert not (tmp_path / "child").exists()


def test_of_an_array_only_the_failed_shard_is_made_again(cluster, submit, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken").touch()
    builder = HERE / "pretend_shard.py"
    job = submit(builder, "--array", "0-7%4", "--time", 5, flags=("--out", out))
    states = [cluster.wait(f"{job}_{i}")["JobState"] for i in range(8)]
    logs = {path.name: path.read_text() for path in (tmp_path / "runs/slurm").glob("*.out")}
    assert states == ["COMPLETED"] * 3 + ["FAILED"] + ["COMPLETED"] * 4, logs
    assert "--array 3 --shards 8" in logs[f"pretend_shard-{job}_3.out"]
    (out / "broken").unlink()
    again = submit(builder, "--array", "0-7%4", "--time", 5, flags=("--out", out))
    assert {cluster.wait(f"{again}_{i}")["JobState"] for i in range(8)} == {"COMPLETED"}
    work = {i: len((out / f"worked-{i}").read_text().splitlines()) for i in range(8)}
    assert work == {i: 2 if i == 3 else 1 for i in range(8)}
    rows = [line for path in sorted(out.glob("rows.shard-*-of-08")) for line in path.read_text().splitlines()]
    assert rows == [str(i) for i in range(80)]


def test_what_the_cluster_cannot_give_is_refused_before_it_waits(submit, tmp_path):
    def refused(*options, recipe=PRETEND):
        done = submit(recipe, *options, parsable=False)
        assert done.returncode == 2 and not list(tmp_path.glob("runs/slurm/*.out"))
        return done.stderr

    assert "partition default has 2" in refused("--nodes", 3, "--time", 10)
    assert "longer than the partition allows (1-00:00:00)" in refused("--time", "2-00:00:00")
    assert "there are main urgent" in refused("--time", 10, "--partition", "gpu")


def test_people_are_told_the_log_and_how_to_follow(cluster, submit, tmp_path):
    done = submit(PRETEND, "--time", 10, flags=("--out", tmp_path / "out", "--steps", 1), parsable=False)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert cluster.wait(facts["job"])["JobState"] == "COMPLETED"
    assert facts["log"] == str(tmp_path / f"runs/slurm/pretend-{facts['job']}.out") and os.path.isfile(facts["log"])
    assert facts["follow"] == f"tail -F {facts['log']}"
