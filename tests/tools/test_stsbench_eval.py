"""tools/build_stsbench.py and tools/stsbench_eval.py through their command lines, on invented scenarios in both published forms."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.stsbench import draw_options
from drive_vlm.data.jsonl import JsonlFile
from drive_vlm.data.samples import parse_row

BUILD, EVAL = "tools/build_stsbench.py", "tools/stsbench_eval.py"
LOGS = ("n008-2018-08-01-15-16-36-0400", "n015-2018-07-24-11-22-45+0800")
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
NEGATIVES = "Ego is turning left,Ego is reversing,Ego is stopping,Ego is changing lanes,Ego is performing u-turn"


def path_of(camera: str, log: str, frame: int) -> str:
    return f"samples/{camera}/{log}__{camera}__{frame}.jpg"


def who(*cameras: str) -> dict[str, Any]:
    return {"camera": {"bb2d": [[160.0, 90.0, 800.0, 450.0]] * 2, "cam": list(cameras)}}


def scenarios() -> list[dict[str, Any]]:
    """One of each group, of two frames; the camera of the agent changes between them."""
    found = []
    for number, parts in enumerate(
        ({"ego": {}}, {"ego": {}, "other_agent": who("CAM_BACK", "CAM_BACK")}, {"agent": who("CAM_FRONT", "CAM_FRONT_LEFT")},
         {"agent": who("CAM_BACK", "CAM_BACK_LEFT"), "other_agent": who("CAM_BACK", "CAM_BACK")})
    ):  # fmt: skip
        log = LOGS[number % 2]
        sensors = {camera: [path_of(camera, log, frame) for frame in range(2)] for camera in CAMERAS}
        found.append({"scenario": "Ego is accelerating", "negative_scenarios": NEGATIVES, "sensors": sensors, **parts})
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for camera in CAMERAS:
        (tmp_path / "samples" / camera).mkdir(parents=True)
        for log in LOGS:
            for frame in range(2):
                Image.new("RGB", (16, 9)).save(tmp_path / path_of(camera, log, frame))
    (tmp_path / "sts.json").write_text(json.dumps(scenarios()))
    return tmp_path


@pytest.fixture
def build(data: Path, tool_with: Any) -> Any:
    return tool_with(BUILD, "--annotations", data / "sts.json", "--image_root", data, "--out", data / "rows")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the builder


def test_rows_show_who_is_asked_about(data: Path, build: Any) -> None:
    done = build()
    rows = rows_of(data / "rows/stsbench.jsonl")
    assert [row["scenario_group"] for row in rows] == ["ego", "ego_agent", "agent", "agent_agent"]
    shown = [[path.split("/")[1] for path in row["image"]] for row in rows]
    assert shown == [
        ["CAM_FRONT"] * 2,
        ["CAM_FRONT", "CAM_BACK"] * 2,
        ["CAM_FRONT", "CAM_FRONT_LEFT"],
        ["CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK"],
    ]
    text = rows[3]["conversations"][0]["value"]
    assert text.startswith("Frame 1: CAM_BACK <image>\nFrame 2: CAM_BACK_LEFT <image> CAM_BACK <image>\n")
    assert "The first agent is in the box [100, 100, 500, 500] of CAM_BACK in frame 1" in text
    assert rows[0]["group"] == LOGS[0] and "the published benchmark has 971" in done.stdout
    for row in rows:
        assert len(row["options"]) == 5 and row["options"][row["conversations"][1]["value"]] == "Ego is accelerating"
        assert all(f"{letter}. {words}" in row["asked"] for letter, words in row["options"].items())
    for where, row in JsonlFile(data / "rows/stsbench.jsonl").places():
        assert all(Path(path).is_file() for path in parse_row(row, where, str(data)).images)
    before = (data / "rows/stsbench.jsonl").read_text()
    build()
    assert (data / "rows/stsbench.jsonl").read_text() == before
    build("--seed", "1")
    assert (data / "rows/stsbench.jsonl").read_text() != before
    build("--views", "all")
    assert {len(row["image"]) for row in rows_of(data / "rows/stsbench.jsonl")} == {12}


def test_negatives_are_drawn_with_falling_weights() -> None:
    generator, first = np.random.default_rng(0), Counter[str]()
    for _ in range(2000):
        chosen = draw_options("right", list("abcdef"), generator)
        assert len(set(chosen)) == 5 and "right" in chosen
        first.update(chosen)
    # Four of six: f, of weight 1 in 21, is left out most, and a least.
    assert first["right"] == 2000 and first["a"] > first["c"] > first["f"]


PROMPT = """{refer}which of the following options best describes it?
Options:
A. You are turning left
B. Object 1 is crossing street
Please answer only with the letter of an option from the multiple choice list, e.g. A or B or C or D, and nothing else."""


def test_questions_of_the_extractors_are_taken_as_they_stand(data: Path, build: Any) -> None:
    described = "Frame-1: {IMAGE_TOKEN}\nFrame-2: {IMAGE_TOKEN}\nObject 1 is turning: object 1 turns; object 2 waits. "
    refers = {
        "ego": "Given that, Frame-1 is captured with CAM_FRONT, ",
        "ego_agent": "Consider that the Frame-1 is captured with CAM_BACK. Also, consider object 2, ",
        "agent": "Consider that the Frame-1 is captured with CAM_BACK. Also, consider object 1, ",
        "agent_agent": "Consider that the Frame-1 is captured with CAM_BACK. Also, consider object 1 and object 2, ",
    }
    cams = [path_of("CAM_BACK", LOGS[0], frame) for frame in range(2)]
    items = [
        {"prompt": described + PROMPT.format(refer=refer), "answer_letter": "B", "answer_text": "Object 1 is crossing street",
         "man_id": number, "cams": cams}
        for number, refer in enumerate(refers.values())
    ]  # fmt: skip
    (data / "sts.json").write_text(json.dumps(items))
    build()
    rows = rows_of(data / "rows/stsbench.jsonl")
    assert [row["scenario_group"] for row in rows] == list(refers) and [row["id"] for row in rows][:2] == [
        "man_0",
        "man_1",
    ]
    # The last option ends at its line.
    assert rows[0]["options"] == {"A": "You are turning left", "B": "Object 1 is crossing street"}
    assert rows[0]["image"] == cams and rows[0]["conversations"][0]["value"].count("<image>") == 2
    (data / "sts.json").write_text(json.dumps([items[0] | {"answer_letter": "A"}]))
    assert "answer_letter 'A' is 'You are turning left'" in build(ok=False).stderr
    (data / "sts.json").write_text(json.dumps([items[0], items[0]]))
    assert "id 'man_0' came before at" in build(ok=False).stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"negative_scenarios": "a,b,Ego is accelerating,b"}, "2 negative scenarios, and 4 are drawn"), ({"sensors": {}}, "not in the published form"),
        ({"sensors": {"CAM_FRONT": ["samples/CAM_FRONT/no.jpg"]}}, "no.jpg does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_stops_or_is_counted(data: Path, build: Any, change: dict[str, Any], says: str) -> None:
    items = scenarios()
    items[0] |= change
    (data / "sts.json").write_text(json.dumps(items))
    assert says in build(ok=False).stderr
    assert "left out: 1 " in build("--on_bad_row", "skip").stdout and len(rows_of(data / "rows/stsbench.jsonl")) == 3


@pytest.mark.parametrize(("content", "says"), [([], "expected a JSON list"), ([{"x": 1}], "neither a scenario")])
def test_another_file_is_named(data: Path, build: Any, content: Any, says: str) -> None:
    (data / "sts.json").write_text(json.dumps(content))
    assert says in build(ok=False).stderr


# --- the evaluator: (group, scenario, the right letter, what is said)

ANSWERS = [
    ("ego", "Ego is stopping", "A", "A"), ("ego", "Ego is stopping", "A", "a. it stops"), ("ego", "Ego is stopping", "A", "C"),
    ("ego", "Ego is turning", "B", "Based on the frames, the answer is A."), ("ego_agent", "Ego is following agent", "C", "C"),
    ("agent", "Agent is running", "D", "The answer is D."), ("agent", "Agent is walking", "D", ""), ("agent", "Agent is walking", "E", "E"),
    ("agent_agent", "Agent is following agent", "A", "A or B"),
]  # fmt: skip
OPTIONS = {letter: f"words {letter}" for letter in "ABCDE"}


@pytest.fixture
def score(tmp_path: Path, run_here: Any) -> Any:
    def start(
        *words: object,
        ok: bool = True,
        answers: Any = ANSWERS,
        logs: int = 3,
        said: list[str] | None = None,
        **change: Any,
    ) -> Any:
        rows, lines = [], []
        for number, (group, scenario, letter, answer) in enumerate(answers):
            row = {"id": f"m{number}", "group": f"log{number % logs}", "benchmark": "STSBench", "scenario_group": group,
                   "scenario": scenario, "options": OPTIONS, "asked": f"What? {number}",
                   "conversations": [{"from": "human", "value": f"What? {number}"}, {"from": "gpt", "value": letter}]}  # fmt: skip
            rows.append(row | change)
            text = answer if said is None else said[number]
            lines.append({"id": f"m{number}", "question": f"What? {number}", "prediction": text, "reference": letter})
        for name, content in (("rows.jsonl", rows), ("p.jsonl", lines)):
            if content is not lines or "--predictions" not in words:
                (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in content))
        files = ("--data", tmp_path / "rows.jsonl", "--predictions", tmp_path / "p.jsonl")
        done = run_here(EVAL, *files, "--json", tmp_path / "scores.json", *words)
        assert (done.returncode == 0) is ok, done.stderr
        return (json.loads((tmp_path / "scores.json").read_text()), done.stdout) if ok else done.stderr

    return start


def official(answers: list[tuple[str, str, str, str]]) -> dict[str, float]:
    """The published script's means, written out again: scenario, group, all groups; an empty answer is wrong."""
    right: dict[str, dict[str, list[float]]] = {}
    for group, scenario, letter, answer in answers:
        verdict = bool(answer) and answer[0].lower() == letter[0].lower()
        right.setdefault(group, {}).setdefault(scenario, []).append(float(verdict))
    groups = {name: float(np.mean([np.mean(found) for found in kinds.values()])) for name, kinds in right.items()}
    return groups | {"average": float(np.mean(list(groups.values())))}


def test_scores_are_means_of_means(score: Any) -> None:
    result, text = score("--scenarios")
    found = {name: entry["value"] for name, entry in result["scores"].items()}
    for name, value in official(ANSWERS).items():
        assert found[f"{name}, strict"] == pytest.approx(100 * value, abs=1e-6)
    # By hand: ego (2/3 + 1) / 2, where "Based on" counts as B; lenient reads A there, and D of "The answer is D.".
    assert found["ego, strict"] == pytest.approx(100 * (2 / 3 + 1) / 2, abs=1e-6)
    assert found["ego, lenient"] == pytest.approx(100 * (2 / 3) / 2, abs=1e-6)
    assert found["agent, strict"] == pytest.approx(25, abs=1e-6) and found["agent, lenient"] == pytest.approx(
        75, abs=1e-6
    )
    # "A or B" begins with A: right for the script, unread for a reader.
    assert (found["agent_agent, strict"], found["agent_agent, lenient"]) == (100, 0)
    assert found["all rows, strict"] == pytest.approx(600 / 9, abs=1e-6)
    assert (result["unread"], result["strict_and_lenient_differ"]) == (2, 3)
    assert result["scores"]["average, lenient"]["unread"] == 2 and result["scores"]["average, strict"]["groups"] == 3
    assert result["by_scenario"]["ego: Ego is stopping"] == {
        "n": 3,
        "strict": pytest.approx(200 / 3),
        "lenient": pytest.approx(200 / 3),
    }
    assert result["partial"] == ["the file has 9 of the 971 published questions"] and "ego: Ego is turning" in text


def test_intervals_and_baselines(tmp_path: Path, score: Any) -> None:
    # One recording has no interval; many have one around the value.
    assert score(logs=1)[0]["scores"]["average, strict"]["low"] is None
    scores = score(logs=9)[0]["scores"]
    # A group that stands in one of nine recordings has none either.
    assert scores["ego_agent, strict"]["low"] is None and scores["ego, strict"]["low"] is not None
    found = scores["average, strict"]
    assert found["low"] <= found["value"] <= found["high"] and found["low"] < found["high"]
    (tmp_path / "p.jsonl").rename(tmp_path / "blind.jsonl")
    result, _ = score("--blind_predictions", tmp_path / "blind.jsonl", said=["A"] * 9)
    # Words most often right by group: ego A (3 of 4), ego_agent C, agent D (2 of 3), agent_agent A.
    assert result["baselines"]["majority of these rows"]["value"] == pytest.approx(100 * 7 / 9, abs=1e-6)
    assert result["baselines"]["chance"]["value"] == pytest.approx(20, abs=1e-6)
    assert (result["baselines"]["blind, lenient"]["value"], result["baselines"]["blind, lenient"]["unread"]) == (
        pytest.approx(500 / 9),
        2,
    )


def test_a_missing_group_and_one_scenario_are_partial(score: Any) -> None:
    reasons = score(answers=ANSWERS[:3])[0]["partial"]
    assert "no question of the groups ego_agent, agent, agent_agent: the average is over the others" in reasons
    assert "\"scenario\" is 'Ego is stopping' in all 3 rows, so scores by it say nothing" in reasons


def test_bad_input_gets_one_line(tmp_path: Path, score: Any) -> None:
    assert "is none of its options X" in score(ok=False, options={"X": "words"})
    assert "scenario_group 'sky'" in score(ok=False, scenario_group="sky")
    assert "lacks scenario" in score(ok=False, scenario=None)
    score()
    lines = (tmp_path / "p.jsonl").read_text().splitlines(keepends=True)
    for text, says in (
        (lines[0], "8 of 9 rows of"), ("".join([*lines, lines[0]]), "came before at"), ("".join(lines).replace("m8", "m9"), "are not in"),
        ("".join(lines).replace("What? 3", "Why? 3"), "file of another version"),
    ):  # fmt: skip
        (tmp_path / "other.jsonl").write_text(text)
        assert says in score("--predictions", tmp_path / "other.jsonl", ok=False)
    (tmp_path / "other.jsonl").write_text(lines[0])
    result, _ = score("--predictions", tmp_path / "other.jsonl", "--on_missing", "skip")
    assert "1 of 9 rows have a prediction" in result["partial"]
