"""The reward "clarify" in grpo: through the command line, whole groups that leave a step, equal rewards, probes at both ends."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.builders.synthetic.rows import truth_of
from drive_vlm.builders.synthetic.sample import make_scene
from drive_vlm.evaluation.clarify_replies import plain_reply
from drive_vlm.rewards.clarify import CANARIES
from drive_vlm.stages import STAGES
from drive_vlm.stages.engine.arguments import parse_stage
from drive_vlm.stages.rl.completions import Completion, Earning, score
from drive_vlm.stages.rl.grpo import prepare
from drive_vlm.stages.rl.prompts import Prompt
from drive_vlm.stages.rl.scorers import Scorer

REWARDS = """
def build():
    \"\"\"What the file `values` next to this one says for each completion; its probe says what `probe` says.\"\"\"
    import json, os, pathlib
    def given(prompts, completions, **columns):
        values = json.loads(pathlib.Path(__file__).with_name("values").read_text())
        first = int(os.environ.get("RANK", 0)) * len(completions)
        return values[first : first + len(completions)]
    given.must_score = given.whole_group = True
    def probe():
        told = json.loads(pathlib.Path(__file__).with_name("probe").read_text())
        if told == "fails":
            raise RuntimeError("no answer")
        return {"alarm": told}
    given.probe = probe
    return given
"""


@pytest.fixture(scope="module")
def clarify_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of tools/build_ambiguity.py over 200 scenes; their pictures are one small file."""
    folder = tmp_path_factory.mktemp("clarify")
    (folder / "images").mkdir()
    Image.new("RGB", (224, 224), "gray").save(folder / "images" / "one.png")
    with open(folder / "scenes.jsonl", "w") as file:
        for i in range(200):
            file.write(json.dumps({**truth_of(make_scene(0, i)), "image": f"images/{i:06d}.png"}) + "\n")
            (folder / "images" / f"{i:06d}.png").hardlink_to(folder / "images" / "one.png")
    flags = ("--source", "synthetic", "--data", folder / "scenes.jsonl", "--min_side", 12, "--splits", "train:1")
    words = [sys.executable, "tools/build_ambiguity.py", *flags, "--on_leak", "warn", "--out", folder / "rows"]
    root = Path(__file__).parents[3]
    subprocess.run([str(word) for word in words], check=True, cwd=root, capture_output=True)
    return folder / "rows" / "train.meta.json"


@pytest.fixture
def trainer(grpo_words: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`trainer(values, probe, *flags)`: the Trainer of a reward that gives these values, in this process, ready to train."""

    def make(values: list[float | None], probe: str | None, *flags: object) -> Any:
        (tmp_path / "given.py").write_text(REWARDS)
        (tmp_path / "values").write_text(json.dumps(values))
        (tmp_path / "probe").write_text(json.dumps(probe))
        # One micro-batch, so that a reward is called once a step.
        more = ("--rewards", f"{tmp_path}/given.py:build", "--max_steps", 1, "--per_device_train_batch_size", 8)
        words = [str(word) for word in grpo_words(tmp_path / "run", *more, *flags)]
        made, _ = prepare(parse_stage("grpo", STAGES["grpo"], words).checked(STAGES["grpo"], 1))
        made.begin_files()
        return made

    return make


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.mark.supports("internvl grpo")
def test_two_steps_by_rule(grpo: Callable, fresh: Callable, clarify_rows: Path) -> None:
    """The command line on rows of the builder: rewards by rule, rates in the log, canaries before and after."""
    out = fresh("rule")
    run = grpo(out, "--rewards", "clarify", "--data", clarify_rows, "--max_steps", 2, "--beta", 0)
    said = lines(out, "samples.jsonl")
    assert len(said) == 16
    for line in said:
        terms = line["terms"]["clarify"]
        assert line["rewards"]["clarify"] == terms["reward"] and terms["gated"] == (terms["strategy"] is None)
    for step in run.metrics[:2]:
        assert step["clarify/groups_left_out"] == step["unscored"] == 0 and step["alarm/over_asking"] == 0
        assert {"clarify/question_marks", "clarify/markdown", "clarify/right_strategy"} <= step.keys()
        assert step.keys() & {"clarify/asked_when_clear", "clarify/asked_when_ambiguous"}
    probes = lines(out, "probes.jsonl")
    assert [(line["step"], line["when"]) for line in probes] == [(0, "start"), (2, "end")]
    for line in probes:
        assert line["clarify"]["rows"] == 4 and line["clarify"]["alarm"] is None
        assert line["clarify"]["canaries"] == dict.fromkeys(CANARIES, [0.0] * 4)


def test_a_step_with_a_judge(
    grpo_words: Callable, inside: Callable, chat_server: Any, clarify_rows: Path, tmp_path: Path
) -> None:
    """By the published reward alone: a judge over HTTP sees picture and facts, and a row that it cannot judge leaves with its group."""
    lost: list[str] = []
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> str:
        picture, words = body["messages"][-1]["content"]
        assert picture["type"] == "image_url"
        question = words["text"].split("Question: ")[1].split("\n")[0]
        things = words["text"].split("Facts:\n")[1].split("\n\nThe reply")[0]
        reply = words["text"].split("-----")[1].strip()
        if reply in {plain_reply(canary.replace("{question}", question)) for canary in CANARIES.values()}:
            return json.dumps({"strategy": 1, "factual": "cannot_tell", "asked": False, "why": "evades"})
        with lock:
            lost[:] = lost or [things]
        if things == lost[0]:
            return "A fine reply, I would say 4."
        return json.dumps({"strategy": 3, "factual": "fail", "asked": False, "why": "wrong"})

    chat_server.answer = answer
    server = (
        "--judge_model",
        "m",
        "--judge_url",
        chat_server.url,
        "--cache",
        tmp_path / "cache",
        "--judge_attempts",
        2,
    )
    flags = ("--clarify_mode", "judge", "--clarify_gate", "none", *server, "--max_steps", 1, "--beta", 0)
    inside("grpo", *grpo_words(tmp_path / "run", "--rewards", "clarify", "--data", clarify_rows, *flags))
    said = [line for line in lines(tmp_path / "run", "samples.jsonl") if line["completion"].strip()]
    assert {line["rewards"]["clarify"] for line in said} == {None, 0.5}
    [log] = [line for line in lines(tmp_path / "run", "metrics.jsonl") if "unscored" in line]
    assert (log["clarify/groups_left_out"], log["unscored"]) == (1, 0.5) and log["clarify/judge_requests"] > 0
    start, end = lines(tmp_path / "run", "probes.jsonl")
    assert start["clarify"]["canaries"] == end["clarify"]["canaries"] == dict.fromkeys(CANARIES, [0.0] * 4)
    assert end["clarify"]["spent"]["probe"]["requests"] == 20 and end["clarify"]["spent"]["training"]["requests"] > 0


def test_other_rows_are_refused_before_the_training(trainer: Callable) -> None:
    with pytest.raises(ValueError, match=r"reward clarify cannot score 70 of 70 rows: \S+:1: row \S+: no column"):
        trainer([], None, "--rewards", "clarify")


@pytest.mark.parametrize("beta", [0, 0.04])
def test_an_unknown_reward_takes_its_group_along(trainer: Callable, beta: float) -> None:
    made = trainer([1, 0, None, 1, 1, 0, 0, 0], None, "--beta", beta)
    made.train()
    said = lines(made.out, "samples.jsonl")
    assert [line["advantage"] for line in said[:4]] == [0] * 4
    # Of 1, 0, 0, 0 the mean is 1/4 and the standard deviation 1/2.
    assert [line["advantage"] for line in said[4:]] == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-3)
    [log] = [row for row in made.state.log_history if "unscored" in row]
    assert (log["given/groups_left_out"], log["unscored"], log["reward"]) == (1, 0.5, 0.25)
    assert log["frac_reward_zero_std"] == 0 and log["grad_norm"] > 0
    # What was given stays in sight.
    assert [line["rewards"]["given"] for line in said[:4]] == [1, 0, None, 1]


def test_a_step_that_all_groups_leave_moves_nothing(trainer: Callable) -> None:
    made = trainer([1, 0, None, 1, 1, None, 0, 0], None, "--beta", 0)
    made.train()
    [log] = [row for row in made.state.log_history if "unscored" in row]
    assert (log["given/groups_left_out"], log["unscored"], log["loss"], log["grad_norm"]) == (2, 1, 0, 0)
    assert log["reward"] is None and {line["advantage"] for line in lines(made.out, "samples.jsonl")} == {0}


def test_in_a2c_the_completion_leaves_alone() -> None:
    """A value is what it is compared with, not the others of its row."""

    def unsure(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [None, 0.5]

    unsure.must_score = unsure.whole_group = True  # type: ignore[attr-defined]
    prompt = Prompt("row", [], [7], {}, {"id": "row", "reference": "stop"})
    said = [Completion(prompt, [1, 2], [-1.0, -1.0], True, "red") for _ in range(2)]
    score(said, [Scorer("unsure", unsure)], Earning([1.0], "terminal", 1, 1.0, 0.0), None)
    assert [one.counted for one in said] == [False, True] and said[1].gains == [0, 0.5]


@pytest.mark.slow
def test_a_group_that_two_ranks_share_leaves_both(
    grpo: Callable, trainer: Callable, fresh: Callable, tmp_path: Path
) -> None:
    """Four completions of a row on each rank; one of the first rank is unknown. The main one alone is asked for the probe."""
    trainer([1, 0, None, 1, 1, 0, 0, 0], "canaries earn 1.00.")
    flags = ("--rewards", f"{tmp_path}/given.py:build", "--max_steps", 1, "--num_generations", 8, "--beta", 0)
    out = fresh("ranks")
    run = grpo(out, *flags, launcher="torchrun")
    assert (run.metrics[0]["given/groups_left_out"], run.metrics[0]["unscored"]) == (1, 1)
    assert [line["advantage"] for line in lines(out, "samples.jsonl")] == [0] * 8
    assert [line["when"] for line in lines(out, "probes.jsonl")] == ["start", "end"]


@pytest.mark.parametrize("value", [0.7, 0.3])
def test_equal_rewards_have_no_advantage_and_are_counted(trainer: Callable, value: float) -> None:
    """In float32 the mean of eight times .7 is not .7: TRL alone gives 6e-4 and counts no group."""
    made = trainer([value] * 8, None, "--beta", 0, "--num_generations", 8)
    made.train()
    [log] = [row for row in made.state.log_history if "unscored" in row]
    assert (log["frac_reward_zero_std"], log["loss"], log["grad_norm"]) == (1, 0, 0)
    assert {line["advantage"] for line in lines(made.out, "samples.jsonl")} == {0}


def test_a_probe_warns_and_may_stop_the_run(trainer: Callable, capsys: pytest.CaptureFixture) -> None:
    made = trainer([0.5] * 8, "canaries earn 1.00.")
    made.train()
    assert capsys.readouterr().err.count("warning: reward given, asked at the ") == 2
    assert [line["given"] for line in lines(made.out, "probes.jsonl")] == [{"alarm": "canaries earn 1.00."}] * 2
    with pytest.raises(ValueError, match=r"canaries earn 1\.00\. The run was stopped before its first step"):
        trainer([0.5] * 8, "canaries earn 1.00.", "--stop_on_alarm").train()
    with pytest.raises(ValueError, match="a reward's probe failed: RuntimeError: no answer"):
        trainer([0.5] * 8, "fails").train()


def test_a_probe_that_fails_at_the_end_costs_no_run(trainer: Callable, capsys: pytest.CaptureFixture) -> None:
    made = trainer([0.5] * 8, None)
    [scorer] = made.rollouts.scorers
    ask, asked = scorer._reward.probe, []

    def once() -> dict[str, Any]:
        asked.append(1)
        if len(asked) > 1:
            raise RuntimeError("the judge is gone")
        return ask()

    scorer._reward.probe = once
    made.train()
    assert lines(made.out, "probes.jsonl")[-1] == {
        "step": 1,
        "when": "end",
        "failed": "RuntimeError: the judge is gone",
    }
    assert "warning: a reward's probe failed: RuntimeError: the judge is gone" in capsys.readouterr().err
