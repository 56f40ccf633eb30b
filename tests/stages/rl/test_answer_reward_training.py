"""The rewards of the benchmarks' numbers in grpo and a2c: a step through the command line, and rows they cannot score."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from drive_vlm.evaluation import planning
from drive_vlm.evaluation.answers import points_text
from drive_vlm.rewards import build_reward, config_class

QUESTION = "What should the car do? A. Stop. B. Go ahead. C. Turn left."


def turns(question: str, reply: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]


@pytest.fixture(scope="module")
def plan_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows as tools/build_nuscenes_planning.py writes them, without pictures; each drives at a speed of its own."""
    path = tmp_path_factory.mktemp("plan") / "train.jsonl"
    with open(path, "w") as file:
        for i in range(12):
            way = [[0.0, 0.2 * (i + 1) * k] for k in range(1, 7)]
            row = {
                "id": f"p{i}", "group": f"scene-{i}", "conversations": turns("Where will it be?", points_text(way)), "future": way,
                "past": [[0.0, -2.0], [0.0, -1.0]], "speed": 2.0, "command": "straight", "axes": planning.RIGHT_FORWARD, "unit": "m",
                "step_s": 0.5, "protocol": planning.VERSION,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def choice_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choice") / "train.jsonl"
    rows = [{"id": f"c{i}", "conversations": turns(QUESTION, "ABC"[i % 3])} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check_samples(out: Path, data: Path, name: str) -> None:
    """Every line of samples.jsonl has the reward that its completion earns against the row of its own id."""
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    rows = {row["id"]: row for row in map(json.loads, data.read_text().splitlines())}
    reward = build_reward(name, config_class(name)())  # type: ignore[misc]
    assert len(lines) == 8 and len({line["id"] for line in lines}) > 1
    for line in lines:
        row = rows[line["id"]]
        columns = {key: [value] for key, value in row.items() if key != "conversations"}
        [worth] = reward(
            [row["conversations"][0]["value"]],
            [line["completion"]],
            reference=[row["conversations"][1]["value"]],
            **columns,
        )
        assert line["rewards"][name] == pytest.approx(worth) and line["terms"][name]["reward"] == pytest.approx(worth)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "a2c"])
def test_a_step_with_trajectory_and_format(
    stage: str, request: pytest.FixtureRequest, fresh: Callable, plan_rows: Path
) -> None:
    out = fresh(f"trajectory_{stage}")
    flags = ("--rewards", "trajectory", "format", "--format_kind", "trajectory", "--reward_weights", 1, 0.2)
    more = ("--beta", 0) if stage == "grpo" else ("--missing_eos_penalty", 0)
    run = request.getfixturevalue(stage)(out, "--data", plan_rows, *flags, *more, "--max_steps", 1)
    check_samples(out, plan_rows, "trajectory")
    # A random model says no trajectory: the least, in both, and the log says why nothing is learned.
    assert run.metrics[0]["trajectory/unread"] == 1 and run.metrics[0]["reward"] == pytest.approx(-1)
    assert run.metrics[0]["format/unread"] == 1 and run.metrics[0]["alarm/trajectory_unread"] in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "a2c"])
def test_a_step_with_choice(stage: str, request: pytest.FixtureRequest, fresh: Callable, choice_rows: Path) -> None:
    out = fresh(f"choice_{stage}")
    more = ("--beta", 0) if stage == "grpo" else ("--missing_eos_penalty", 0)
    run = request.getfixturevalue(stage)(out, "--data", choice_rows, "--rewards", "choice", *more, "--max_steps", 1)
    check_samples(out, choice_rows, "choice")
    assert 0 <= run.metrics[0]["choice/unread"] <= 1 and -1 <= run.metrics[0]["reward"] <= 1


@pytest.mark.slow
def test_rows_without_their_columns_stop_the_run_before_it_trains(
    grpo: Callable, fresh: Callable, choice_rows: Path, plan_rows: Path
) -> None:
    for data, name, told in (
        (
            choice_rows,
            "trajectory",
            r"reward trajectory cannot score 12 of 12 rows: \S+:1: the row has no 'nuscenes-open-loop",
        ),
        (plan_rows, "choice", r"reward choice cannot score 12 of 12 rows: \S+:1: the question lists no options"),
    ):
        run = grpo(fresh(name), "--data", data, "--rewards", name, "--max_steps", 1, "--beta", 0, code=2)
        assert re.search(told, run.text), run.text[-2000:]
