"""Verdicts, tables of evaluators' files, confusion tables and trajectories: against numbers worked out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drive_vlm.data.predictions import Prediction
from drive_vlm.report.run_report.bird_view import Track, draw_tracks, read_track
from drive_vlm.report.run_report.confusion import OTHER, confusion
from drive_vlm.report.run_report.examples import BEST, CHANGED, WORST, choose
from drive_vlm.report.run_report.score_block import comparisons, file_tables, tables_by_column
from drive_vlm.report.run_report.score_files import read_score_file
from drive_vlm.report.run_report.scored import Scored, System
from drive_vlm.report.run_report.verdict import BAD, GOOD, UNSURE, verdict_of_file, verdict_of_rows


def made(
    systems: dict[str, list[float]], baselines: dict[str, list[float]] | None = None, **columns: list[Any]
) -> Scored:
    """Rows of a scene each with these scores."""
    size = len(next(iter(systems.values())))
    rows = []
    for i in range(size):
        row = {"id": f"r{i}", "question": "?", **{name: values[i] for name, values in columns.items()}}
        rows.append(Prediction(f"f:{i}", f"r{i}", "set", "said", "own", (), row))

    def all_of(given: dict[str, list[float]]) -> list[System]:
        return [System(name, ["said"] * size, np.array(values, dtype=float)) for name, values in given.items()]

    return Scored("m", "metric", rows, [f"g{i}" for i in range(size)], all_of(systems), all_of(baselines or {}), 0)


def test_the_tone_follows_the_paired_interval() -> None:
    better = made({"x": [0] * 12 + [1] * 8, "y": [1] * 20}, {"blind": [0.0] * 18 + [1.0] * 2})
    assert verdict_of_rows(better).tone == GOOD
    # One row of twenty: the interval of the difference holds 0.
    assert verdict_of_rows(made({"x": [0] + [1] * 19, "y": [1] * 20})).tone == UNSURE
    worse = made({"x": [0] * 20, "y": [1] * 10 + [0] * 10}, {"blind": [1.0] * 11 + [0.0] * 9})
    found = verdict_of_rows(worse)
    assert (found.tone, [one.tone for one in found.against]) == (BAD, [GOOD, BAD])
    assert found.words == "not above blind"
    # The same scores on the same rows.
    assert verdict_of_rows(made({"x": [1, 0] * 10, "y": [1, 0] * 10})).tone == BAD


def test_wins_losses_and_mcnemar_by_hand() -> None:
    """Eight rows that only y gets right and two that only x does: p = 2 (1 + 10 + 45) / 1024 = 0.1094."""
    scored = made({"x": [0] * 8 + [1] * 2 + [1] * 5, "y": [1] * 8 + [0] * 2 + [1] * 5})
    (found,) = comparisons(scored)
    assert (found.first, found.second, found.wins, found.ties, found.losses, found.n) == ("x", "y", 8, 5, 2, 15)
    assert found.test == "p = 0.1094" and found.difference.startswith("+40.0 points [")


def test_columns_split_the_rows_and_count_them() -> None:
    scored = made({"y": [1, 1, 0, 0, 1]}, weather=["rain", "rain", "rain", "clear", None], one=["a"] * 5)
    whole, by = tables_by_column(scored, scored.columns())
    assert [(name, n) for name, n, _ in by.rows] == [("(none)", "1"), ("clear", "1"), ("rain", "3")]
    assert by.rows[2][2][0].words.startswith("66.7%") and whole.rows[0][2][0].words.startswith("60.0%")
    with pytest.raises(ValueError, match="--by fog"):
        scored.columns(["fog"])


def test_rows_are_chosen_worst_changed_and_best_of_every_kind() -> None:
    size = 90
    last = [0.0] * 30 + [1.0] * 60
    first = [0.0] * 30 + [1.0] * 57 + [0.0] * 3
    scored = made({"x": first, "y": last}, template=["abc"[i % 3] for i in range(size)])
    found = dict(choose(scored, 30))
    assert len(found) == 30
    why = {kind: [i for i, kinds in found.items() if kind in kinds] for kind in (WORST, BEST, CHANGED)}
    # Three rows changed: the other places went to the others.
    assert why[CHANGED] == [87, 88, 89] and len(why[WORST]) >= 10 and len(why[BEST]) >= 10
    kinds = [scored.rows[i].row["template"] for i in why[WORST]]
    assert max(map(kinds.count, "abc")) - min(map(kinds.count, "abc")) <= 1
    assert [float(scored.last.values[i]) for i in found] == sorted(float(scored.last.values[i]) for i in found)
    assert choose(scored, 30) == choose(scored, 30)


def test_fewer_rows_than_asked_for_are_all_shown() -> None:
    assert len(choose(made({"y": [1, 0, 1]}), 30)) == 3
    assert [kinds for _, kinds in choose(made({"y": [0, 0]}), 30)] == [[WORST], [WORST]]
    assert [kinds for _, kinds in choose(made({"y": [1, 1]}), 30)] == [[BEST], [BEST]]


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content))
    return str(path)


def score(value: float, low: float, high: float, n: int = 100, key: str = "value") -> dict[str, Any]:
    return {"n": n, "groups": n, key: value, "low": low, "high": high}


def test_a_file_of_checkpoints_has_tables_and_a_verdict(tmp_path: Path) -> None:
    content = {
        "checkpoints": {
            "sft": {"scores": {"action": {"F1_all": score(0.5, 0.4, 0.6)}}},
            "a2c": {"scores": {"action": {"F1_all": score(0.8, 0.7, 0.9), "mF1": score(0.4, 0.3, 0.5)}}},
        },
        "baselines": {"majority": {"scores": {"action": {"F1_all": score(0.75, 0.7, 0.8)}}}, "chance": 0.5},
        "comparisons": [{"first": "sft", "second": "a2c", "scores": {"F1_all": score(0.3, 0.1, 0.5)}}],
        "judge": {"model": "m", "cost": 0.25, "requests": 12},
    }
    file = read_score_file(written(tmp_path, content))
    found = verdict_of_file(file)
    assert found is not None and (found.system, found.value) == ("a2c", 0.8)
    # 0.75 lies inside [0.7, 0.9]: not decided; the start at 0.5 is below it.
    assert {one.name: one.tone for one in found.against} == {"the start (sft)": GOOD, "majority": UNSURE}
    scores, changes = file_tables(file)
    assert scores.head == ["sft", "a2c", "majority", "chance"]
    assert [(name, [cell.words for cell in cells][:2]) for name, _, cells in scores.rows] == [
        ("scores.action.F1_all", ["0.500 [0.400, 0.600]", "0.800 [0.700, 0.900]"]),
        ("scores.action.mF1", ["-", "0.400 [0.300, 0.500]"]),
    ]
    assert changes.rows[0][0] == "a2c - sft: scores.F1_all"
    assert ("judge.cost", "0.25") in file.judges and ("judge.requests", "12") in file.judges


def test_a_baseline_above_the_score_of_a_file_is_red(tmp_path: Path) -> None:
    content = {
        "checkpoints": {"y": score(0.6, 0.5, 0.7, key="accuracy")},
        "baselines": {"blanked": score(0.61, 0.5, 0.7, key="accuracy")},
    }
    found = verdict_of_file(read_score_file(written(tmp_path, content)))
    assert found is not None and found.tone == BAD


def test_a_benchmark_says_its_version_and_why_it_is_partial(tmp_path: Path) -> None:
    content = {
        **{"benchmark": "DriveBench", "version": "v1", "rows_scored": 90, "rows_there": 100, "unread": 4, "scale": 100},
        "partial": ["90 of 100 rows have a prediction"],
        "scores": {"clean, strict": score(50, 45, 55, 90), "clean, lenient": score(60, 55, 65, 90)},
        "baselines": {"majority": score(40, 35, 45, 90), "blind, lenient": score(70, 60, 80, 30)},
        "changes": {"fog - clean": score(-5, -9, -1, 90)},
    }
    file = read_score_file(written(tmp_path, content))
    assert file.about == "DriveBench, v1: 90 of 100 rows scored, 4 answers unread"
    found = verdict_of_file(file)
    # The blind score is one of other rows: it decides nothing here.
    assert (
        found is not None
        and found.value == 60
        and [(one.name, one.tone) for one in found.against] == [("majority", GOOD)]
    )
    assert found.title.endswith("; partial: 90 of 100 rows have a prediction")
    scores, changes = file_tables(file)
    assert scores.head == ["DriveBench", "majority", "blind, lenient"] and scores.rows[1][2][0].bar == pytest.approx(
        0.6
    )
    assert changes.rows[0][0] == "change: fog - clean" and "rows_there" in file.facts


def test_of_an_error_less_is_more(tmp_path: Path) -> None:
    content = {
        **{"benchmark": "planning", "version": "v1", "rows_scored": 90, "rows_there": 90, "partial": []},
        "scores": {"ADE": score(1.5, 1.4, 1.6, 90)},
        "baselines": {"ADE, still": score(9, 8, 10, 90)},
        "checkpoints": {
            "x": {"scores": {"ADE": score(2.0, 1.9, 2.1, 90)}},
            "y": {"scores": {"ADE": score(1.5, 1.4, 1.6, 90)}},
        },
        "references": {
            "still": {"scores": {"ADE": score(9, 8, 10, 90)}},
            "ego": {"scores": {"ADE": score(1.2, 1.1, 1.3, 90)}},
        },
    }
    found = verdict_of_file(read_score_file(written(tmp_path, content)))
    assert found is not None and (found.system, found.value) == ("y", 1.5)
    assert [(one.name, one.tone) for one in found.against] == [("the start (x)", GOOD), ("still", GOOD), ("ego", BAD)]
    start = found.against[0]
    assert (start.difference, start.low, start.high) == pytest.approx((0.5, 0.4, 0.6))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"checkpoints": [], "baselines": 3, "comparisons": {"a": 1}},
        {"checkpoints": {"y": {"value": None, "low": None, "high": None}}},
        {"final": 0.4, "parts": {"gpt": None, "accuracy": 0.5}, "judge": {}},
        {"a": {"low": 0, "high": 1, "value": "<b>"}},
    ],
)
def test_a_file_of_another_form_has_facts_and_no_verdict(tmp_path: Path, content: Any) -> None:
    file = read_score_file(written(tmp_path, content))
    assert verdict_of_file(file) is None and file_tables(file) == []


def test_confusion_by_hand() -> None:
    found = confusion(
        "t", ["Stop.", "stop", "go", "go", "go", "stop"], ["stop", "go", "Go", "what", "the stop", "stop"]
    )
    assert found is not None and found.classes == ["go", "stop"] and found.said == ["go", "stop", OTHER]
    assert found.counts == [[1, 1, 1], [1, 2, 0]] and found.n == 6
    assert found.share(0, 2) == pytest.approx(1 / 3)
    assert confusion("t", ["a", "b", "c"], ["a"] * 3) is None
    assert confusion("t", ["a"] * 9, ["a"] * 9) is None
    assert confusion("t", ["x " * 30, "y"] * 9, ["y"] * 18) is None


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("[[1, 2], [3.5, -4]]", [(1, 2), (3.5, -4)]),
        ("PT = [(1.0, 2.0), (3.0, 4.0)]", [(1, 2), (3, 4)]),
        ("go ahead", None),
        ("[1, 2, 3]", None),
        ("[[1, 2]]", None),
        ("[[1, 2], [3, NaN]]", None),
        ("[[1, 2], [3, 1e9]]", None),
        ("[" * 5000 + "]" * 5000, None),
        ("][", None),
    ],
)
def test_trajectories_are_read_or_left(text: str, points: list[tuple[float, float]] | None) -> None:
    assert read_track(text) == points


def test_the_view_from_above_draws_ahead_as_up_and_left_as_left() -> None:
    text = str(draw_tracks([Track("<b>", [(10.0, 0.0), (20.0, 5.0)], "said")], size=200))
    line = text.split('points="')[1].split('"')[0]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.split())
    assert x0 == x1 > x2 and y0 > y1 > y2 and "&lt;b&gt;" in text and "<b>" not in text
