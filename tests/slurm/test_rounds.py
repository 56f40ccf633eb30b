"""slurm/spin_rounds.sh: the graph it submits, and that graph on a real Slurm with steps that only pretend to need a model."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "spin_rounds_graph.txt"
GRAPH = ["bash", ROOT / "slurm/spin_rounds.sh", "--rounds", 2, "--shards", 4]
WRAPPER = f"""#!/bin/bash
case "$1 $2 $3" in
  "-m drive_vlm generate" | "-m drive_vlm spin") exec {sys.executable} {Path(__file__).with_name("pretend_drive_vlm.py")} "${{@:3}}" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


def test_the_table_of_the_graph_is_the_golden_text(run):
    more = ("--at-once", 2, "--nodes", 2, "--time", "12:00:00", "--generate-time", "2:00:00", "--pairs-time", 30)
    done = run([*GRAPH, *more, "--gpus-per-node", 8, "--dry-run", "--", "MODEL=runs/sft", "DATA=train.jsonl"])
    assert done.returncode == 0, done.stderr
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(done.stdout)
    assert done.stdout == GOLDEN.read_text()


def test_rounds_that_regenerate_have_an_array_that_writes_and_a_job_that_gates(run):
    more = ("--at-once", 2, "--time", "12:00:00", "--regenerate-time", "6:00:00", "--regenerate", "--dry-run")
    done = run([*GRAPH, *more, "--", "SYNTH=plan.yaml", "MODEL=runs/sft", "DATA=train.jsonl"])
    assert done.returncode == 0, done.stderr
    lines = [
        line.split()
        for line in done.stdout.splitlines()
        if line.startswith(("round2-write", "round2-re", "round2-gen"))
    ]
    assert lines == [
        ["round2-write", "2", "regenerate", "1", "0-3%2", "6:00:00", "round1-evaluate"],
        ["round2-regenerate", "2", "regenerate", "1", "-", "6:00:00", "round2-write"],
        ["round2-generate", "2", "generate", "1", "0-3%2", "12:00:00", "round2-regenerate"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--time", 30, "--", "SYNTH=plan.yaml"), "--regenerate makes its jobs"),
        (("--", "MODEL=m"), "--time is missing"),
        (("--time", 30), "settings of the recipe are missing"),
        (("--time", 30, "--shards", 0, "--", "MODEL=m"), "--shards 0"),
        (("--time", 30, "--array", "0-3", "--", "MODEL=m"), "--array is the graph's own"),
        (("--time", 30, "MODEL=m"), "stand behind --"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, words, said):
    done = run([*GRAPH, *words])
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.slurm
@pytest.mark.slow
def test_two_rounds_run_through_and_a_killed_shard_alone_is_made_again(cluster, run, tmp_path):
    path, log = tmp_path / "bin", tmp_path / "work"
    path.mkdir()
    (path / "python").write_text(WRAPPER)
    (path / "python").chmod(0o755)
    model = tmp_path / "sft"
    model.mkdir()
    (model / "config.json").write_text("{}")
    rows = [
        {"id": f"r{i}", "group": f"g{i % 20}", "conversations": [{"from": "human", "value": f"Question {i}?"}, {"from": "gpt", "value": "No" if i % 3 else "OK"}], "template": "t"}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {name: value for name, value in cluster.env.items() if os.environ.get(name) != value}
    env |= {"PATH": f"{path}:{Path(sys.executable).parent}:{cluster.env['PATH']}", "PRETEND_LOG": str(log)}
    words = [*GRAPH, "--time", 10, "--gpus-per-node", 0, "--cpus-per-task", 2, "--no-plan", "--"]
    words += ["MODEL=sft", "DATA=rows.jsonl", "OUT=out", "HELD_OUT=12"]

    def submit():
        done = run(words, cwd=tmp_path, **env)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in lines if len(line) == 2 and line[0].startswith("round")}

    def logs():
        return "".join(p.read_text() for p in sorted((tmp_path / "runs/slurm").glob("*.out")))

    kill = log.with_suffix(".kill")
    kill.touch()
    jobs = submit()
    assert cluster.wait(f"{jobs['round1-generate']}_2")["JobState"] == "FAILED", logs()
    assert {cluster.wait(f"{jobs['round1-generate']}_{i}")["JobState"] for i in (0, 1, 3)} == {"COMPLETED"}, logs()
    assert cluster.wait(jobs["round2-evaluate"])["JobState"] == "CANCELLED", logs()
    kill.unlink()
    jobs = submit()
    assert cluster.wait(jobs["round2-evaluate"])["JobState"] == "COMPLETED", logs()
    done = log.read_text().splitlines()
    shards = {i: done.count(f"generate round-1 generated.shard-{i:02}-of-04.jsonl") for i in range(4)}
    assert shards == {0: 1, 1: 1, 2: 2, 3: 1}
    assert [line for line in done if line.startswith("spin")] == ["spin round-1", "spin round-2"]
    assert done.count("generate round-0 answers.jsonl") == 1
    state = json.loads((tmp_path / "out/rounds.json").read_text())["rounds"]
    assert list(state) == ["0", "1", "2"] and state["2"]["decision"]["go_on"]
    assert state["1"]["generate"]["shards"] == 4 and state["1"]["generate"]["rows"] == 48
    assert set(state["2"]["train"]["pairs"]) == {"round-1/pairs.jsonl", "round-2/pairs.jsonl"}
    assert (tmp_path / "out/table.png").is_file()
