"""tools/planning_eval.py and meta_action_eval.py through their command lines: numbers by hand, unread, partial, baselines, bad files."""

import csv
import json
import math

import pytest

from drive_vlm.evaluation import meta_actions, planning

EVAL, META = "tools/planning_eval.py", "tools/meta_action_eval.py"
STEPS = range(1, 7)


def row(i, axes=planning.RIGHT_FORWARD, speed=4.0, **more):
    """A car that drives straight ahead at 2 m a step, in scene i // 2."""
    flip = axes == planning.FORWARD_LEFT
    way = [[2.0 * k, 0.0] if flip else [0.0, 2.0 * k] for k in STEPS]
    past = [[-4.0, 0.0], [-2.0, 0.0]] if flip else [[0.0, -4.0], [0.0, -2.0]]
    return {
        "id": f"r{i}", "group": f"scene-{i // 2}", "dataset": "val", "past": past, "future": way, "speed": speed, "command": "straight",
        "driven": 2, "axes": axes, "unit": "m", "step_s": 0.5, "protocol": planning.VERSION, **more,
    }  # fmt: skip


def plan(off, flip=False):
    """The true way, `off` metres to the right at every step; `flip`: x forward, y left."""
    return str([(2.0 * k, -off) if flip else (off, 2.0 * k) for k in STEPS])


def write(path, rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


@pytest.fixture
def evaluate(run_here, tmp_path):
    def call(*flags, tool=EVAL, expect=0):
        out = tmp_path / "scores.json"
        done = run_here(tool, "--json", out, *flags, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr[-2000:]
        return (json.loads(out.read_text()) if not expect else None), done

    return call


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "val.jsonl", [row(i) | {"conversations": []} for i in range(8)])


def answered(path, texts, **more):
    return write(path, [row(i, **more) | {"prediction": text, "reference": plan(0)} for i, text in enumerate(texts)])


def test_numbers_by_hand(evaluate, tmp_path):
    """Off by 1 m in four rows and by 3 m in two; two answers unread, which no mean has."""
    texts = [plan(1)] * 4 + [plan(3)] * 2 + ["I cannot say.", "[(0, 1)]"]
    result, done = evaluate("--predictions", answered(tmp_path / "p.jsonl", texts), "--csv", tmp_path / "rows.csv")
    entry = result["checkpoints"]["p"]
    mean = (4 * 1 + 2 * 3) / 6
    for name in ("L2 mean 1s", "L2 mean 3s", "L2 at 1s", "L2 at 3s", "ADE", "FDE"):
        assert entry["scores"][name]["value"] == pytest.approx(mean, abs=1e-9)
    assert entry["scores"]["miss_final"]["value"] == pytest.approx(1 / 3)
    assert entry["scores"]["ADE"]["low"] < mean < entry["scores"]["ADE"]["high"]
    assert (entry["scored"], entry["unread"]["value"]) == (6, 0.25)
    assert entry["unread_by_reason"] == {"no points": 1, "1 points where 6 are wanted": 1}
    assert (result["rows_scored"], result["rows_there"], result["unread"], result["partial"]) == (8, 8, 2, [])
    assert result["scores"]["ADE"]["value"] == pytest.approx(mean) and result["version"] == planning.VERSION
    # The car keeps its speed: nothing is to be won over constant velocity.
    assert result["references"]["constant velocity"]["scores"]["ADE"]["value"] == 0
    assert result["references"]["standing still"]["scores"]["L2 at 1s"]["value"] == 4
    assert (
        "2 of 8 answers unread, 25.0%" in done.stdout and "the baseline 'constant velocity' is no worse" in done.stdout
    )
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [line["ADE"] for line in rows] == ["1.000000"] * 4 + ["3.000000"] * 2 + ["", ""]
    assert rows[6]["unread"] == "no points" and rows[0]["group"] == "scene-0"


def test_steps_are_not_shifted(evaluate, tmp_path):
    """An error at the second step alone is that of 1 s; one at the first takes no part "at 1 s"."""
    for step, at_one, mean_one in ((0, 0.0, 3.0), (1, 6.0, 3.0)):
        way = [(6.0 if k - 1 == step else 0.0, 2.0 * k) for k in STEPS]
        scores = evaluate("--predictions", answered(tmp_path / "p.jsonl", [str(way)] * 2))[0]["checkpoints"]["p"][
            "scores"
        ]
        assert scores["L2 at 1s"]["value"] == at_one and scores["L2 mean 1s"]["value"] == mean_one
        assert scores["L2 at 2s"]["value"] == 0 and scores["L2 mean 3s"]["value"] == 1


def test_rows_in_other_axes_score_the_same(evaluate, tmp_path):
    axes = planning.FORWARD_LEFT
    path = answered(tmp_path / "p.jsonl", [plan(1, flip=True)] * 4, axes=axes)
    result, _ = evaluate("--predictions", path)
    assert result["checkpoints"]["p"]["scores"]["ADE"]["value"] == pytest.approx(1, abs=1e-9)
    assert result["references"]["constant velocity"]["scores"]["ADE"]["value"] == 0


def test_checkpoints_blind_and_train(evaluate, tmp_path, data):
    first = answered(tmp_path / "sft.jsonl", [plan(2)] * 7 + ["none"])
    second = answered(tmp_path / "grpo.jsonl", [plan(1)] * 6 + ["none", plan(1)])
    blind = answered(tmp_path / "blank.jsonl", [plan(4)] * 8)
    flags = ("--blind_predictions", blind, "--train", data, "--data", data)
    result, done = evaluate("--predictions", first, second, *flags)
    assert {"constant velocity", "ego-only", "mean of the command", "blind pictures"} <= result["references"].keys()
    assert result["references"]["ego-only"]["scores"]["ADE"]["value"] == pytest.approx(0, abs=1e-3)
    moved = {(entry["first"], entry["second"]): entry for entry in result["comparisons"]}
    # Only the six rows that both could answer are compared.
    assert moved["sft", "grpo"]["rows"] == 6 and moved["sft", "grpo"]["scores"]["ADE"]["value"] == pytest.approx(-1)
    assert moved["blind pictures", "grpo"]["scores"]["ADE"]["value"] == pytest.approx(-3)
    assert result["baselines"]["ADE, blind pictures"]["value"] == pytest.approx(4)
    assert "without --train" not in done.stdout and "4 of the 4 scenes are in --train as well" in done.stdout


def test_collisions(evaluate, tmp_path):
    """A car stands 12 m ahead, and the true way passes 5 m to its left, so every hit is the answer's."""
    boxes = [
        {"name": "car", "size": [4.5, 1.9], "now": [5.0, 12.0, math.pi / 2], "future": [[5.0, 12.0, math.pi / 2]] * 6}
    ]
    lines = [{"id": f"r{i}", "axes": planning.RIGHT_FORWARD, "boxes": boxes if i < 4 else []} for i in range(8)]
    path = answered(tmp_path / "p.jsonl", [plan(5)] * 8)
    result, done = evaluate("--predictions", path, "--boxes", write(tmp_path / "val.boxes.jsonl", lines))
    scores = result["checkpoints"]["p"]["scores"]
    # 8 m ahead, the fourth step, is the first whose box reaches the car's; half of the frames have it.
    assert [scores[f"collision at {t}s"]["value"] for t in (1, 2, 3)] == [0, 0.5, 0.5]
    assert [scores[f"collision mean {t}s"]["value"] for t in (1, 2, 3)] == [0, 0.125, 0.25]
    assert result["references"]["constant velocity"]["scores"]["collision mean 3s"]["value"] == 0
    assert "collisions, mean up to t (VAD's grid)" in done.stdout
    # Boxes in the way of the true car count for nobody.
    blocked = [
        line | {"boxes": [boxes[0] | {"future": [[0.0, 2.0 * k, math.pi / 2] for k in STEPS]}]} for line in lines
    ]
    ahead = answered(tmp_path / "ahead.jsonl", [plan(0)] * 7 + ["none"])
    result, done = evaluate("--predictions", ahead, "--boxes", write(tmp_path / "blocked.jsonl", blocked))
    assert (
        result["checkpoints"]["ahead"]["scores"]["collision mean 3s"]["value"] == 0
        and result["boxes"]["steps_left_out"] == 1
    )
    assert "take no part as hits: 100.00%" in done.stdout
    near = evaluate("--predictions", path, "--boxes", tmp_path / "val.boxes.jsonl", "--box_range", -4, -30, 4, 30)[0]
    assert near["checkpoints"]["p"]["scores"]["collision mean 3s"]["value"] == 0


def test_fifteen_of_450_rows(evaluate, tmp_path):
    data = write(tmp_path / "all.jsonl", [row(i) for i in range(450)])
    path = answered(tmp_path / "p.jsonl", [plan(1)] * 15)
    _, done = evaluate("--predictions", path, "--data", data, expect=2)
    assert done.stderr.count("\n") == 1 and "435 of 450 rows" in done.stderr and "--on_missing skip" in done.stderr
    result, done = evaluate("--predictions", path, "--data", data, "--on_missing", "skip")
    assert result["partial"] == ["15 of 450 rows have a prediction"] and "partial score: 15 of 450 rows" in done.stdout
    assert result["checkpoints"]["p"]["scores"]["ADE"]["value"] == pytest.approx(1)


def test_an_answer_of_nothing_but_unread_has_no_score(evaluate, tmp_path):
    result, _ = evaluate("--predictions", answered(tmp_path / "p.jsonl", ["", "?"]))
    assert result["checkpoints"]["p"]["scores"]["ADE"] == {"value": None, "low": None, "high": None}
    assert result["scores"]["ADE"]["value"] is None and result["unread"] == 2


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([row(0) | {"prediction": "x"}] * 2, "ids must be unique in a file"),
        ([{"id": "a", "prediction": "x", "reference": "y"}], "the row has no 'nuscenes-open-loop-planning/1'"),
        ([row(0, protocol="nuscenes-open-loop-planning/0") | {"prediction": "x"}], "is of the protocol 'nuscenes-open-loop-planning/0'"),
        ([row(0, future=[[0, 1]] * 3) | {"prediction": "x"}], '"future" has the shape (3, 2)'),
        ([{key: value for key, value in row(0).items() if key != "future"} | {"prediction": "x"}], 'no "future" of numbers'),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_one_line(evaluate, tmp_path, lines, told):
    _, done = evaluate("--predictions", write(tmp_path / "p.jsonl", lines), expect=2)
    assert told in done.stderr and "p.jsonl:" in done.stderr and done.stderr.count("\n") == 1


def test_data_and_boxes_of_another_split(evaluate, tmp_path, data):
    path = write(tmp_path / "p.jsonl", [row(99) | {"prediction": plan(1)}])
    assert (
        "id 'r99' and 0 more of 1 predictions are not in"
        in evaluate("--predictions", path, "--data", data, expect=2)[1].stderr
    )
    twice = write(tmp_path / "twice.jsonl", [row(0)] * 2)
    assert "ids must be unique in a file" in evaluate("--predictions", path, "--data", twice, expect=2)[1].stderr
    boxes = write(tmp_path / "val.boxes.jsonl", [{"id": "r0", "axes": planning.RIGHT_FORWARD, "boxes": []}])
    assert "lacks 1 of 1 frames, e.g. r99" in evaluate("--predictions", path, "--boxes", boxes, expect=2)[1].stderr
    assert "not a line of boxes" in evaluate("--predictions", path, "--boxes", data, expect=2)[1].stderr
    told = evaluate("--predictions", path, "--box_range", 5, 5, 4, 6, expect=2)[1].stderr
    assert "--box_range 5.0 5.0 4.0 6.0: four numbers" in told


# --- meta-actions


def meta_row(i, speed, path, text=None, classes="senna"):
    made = {
        "id": f"m{i}", "group": f"scene-{i // 2}", "dataset": "val", "speed_class": speed, "path_class": path, "classes": classes,
        "protocol": meta_actions.VERSION,
    }  # fmt: skip
    return made if text is None else made | {"prediction": text, "reference": f"{speed}, {path}"}


def test_meta_actions_by_hand(evaluate, tmp_path):
    rows = [
        meta_row(0, "KEEP", "STRAIGHT", "KEEP, STRAIGHT"),
        meta_row(1, "KEEP", "STRAIGHT", "keep speed and go straight"),
        meta_row(2, "STOP", "STRAIGHT", "KEEP, STRAIGHT"),
        meta_row(3, "STOP", "LEFT_TURN", "I do not know"),
        meta_row(4, "KEEP", "STRAIGHT", "KEEP STOP STRAIGHT"),
        meta_row(5, "KEEP", "STRAIGHT", "KEEP, LEFT_TURN"),
    ]
    result, done = evaluate(
        "--predictions", write(tmp_path / "p.jsonl", rows), "--csv", tmp_path / "rows.csv", tool=META
    )
    entry = result["checkpoints"]["p"]
    assert entry["scores"]["accuracy"]["value"] == pytest.approx(2 / 6) and entry["scores"]["read"][
        "value"
    ] == pytest.approx(4 / 6)
    # KEEP: said 4 times of what is read, 3 of them true, and true 4 times.
    assert entry["scores"]["F1 KEEP"]["value"] == pytest.approx(2 * 3 / (4 + 4))
    assert entry["scores"]["F1 STOP"]["value"] == 0 and entry["confusion"]["speed"]["STOP"] == {
        "KEEP": 1, "ACCELERATE": 0, "DECELERATE": 0, "STOP": 0, "(unread)": 1,
    }  # fmt: skip
    # The script wants capitals, and takes every word that is somewhere in an answer.
    assert entry["official"]["accuracy"] == pytest.approx(2 / 6)
    assert (result["unread"], result["strict_and_lenient_differ"]) == (2, 2)
    assert result["references"]["commonest"]["scores"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert "the baseline 'commonest' is no worse" in done.stdout and "2 of 6 answers are unread" in done.stdout
    with (tmp_path / "rows.csv").open() as file:
        assert [line["right"] for line in csv.DictReader(file)] == ["1", "1", "0", "0", "0", "0"]


def test_meta_actions_partial_and_of_other_files(evaluate, tmp_path):
    data = write(tmp_path / "all.jsonl", [meta_row(i, "KEEP", "STRAIGHT") for i in range(450)])
    path = write(tmp_path / "p.jsonl", [meta_row(i, "KEEP", "STRAIGHT", "KEEP, STRAIGHT") for i in range(15)])
    assert "435 of 450 rows" in evaluate("--predictions", path, "--data", data, tool=META, expect=2)[1].stderr
    result, _ = evaluate("--predictions", path, "--data", data, "--on_missing", "skip", "--train", data, tool=META)
    assert (
        result["partial"] == ["15 of 450 rows have a prediction"]
        and result["scores"]["accuracy, lenient"]["value"] == 100
    )
    for rows, told in (
        ([row(0) | {"prediction": "x"}], "the row's protocol is 'nuscenes-open-loop-planning/1', expected 'meta-actions/1'"),
        ([meta_row(0, "KEEP", "LEFT_CHANGE", "x", "alphadrive")], "path_class 'LEFT_CHANGE' of the classes 'alphadrive'"),
        ([meta_row(0, "KEEP", "STRAIGHT", "x"), meta_row(1, "KEEP", "STRAIGHT", "x", "alphadrive")], "score each set on its own"),
    ):  # fmt: skip
        assert told in evaluate("--predictions", write(tmp_path / "bad.jsonl", rows), tool=META, expect=2)[1].stderr


def test_meta_checkpoints_are_compared_with_blind_and_first(evaluate, tmp_path):
    def file(name, texts):
        return write(tmp_path / name, [meta_row(i, "STOP", "LEFT_TURN", text) for i, text in enumerate(texts)])

    right, wrong = "STOP, LEFT_TURN", "KEEP, STRAIGHT"
    first, second = file("a.jsonl", [wrong] * 8), file("b.jsonl", [right] * 6 + [wrong] * 2)
    result, _ = evaluate("--predictions", first, second, "--blind_predictions", file("c.jsonl", [wrong] * 8), tool=META)
    moved = {(entry["first"], entry["second"]): entry["scores"]["accuracy"]["value"] for entry in result["comparisons"]}
    assert moved["a", "b"] == moved["blind pictures", "b"] == pytest.approx(0.75) and moved[
        "commonest", "b"
    ] == pytest.approx(-0.25)
