"""Curves and pictures: means of long curves, charts that share a page, what is drawn where, and what cannot be shown."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from drive_vlm.data.predictions import Prediction
from drive_vlm.report.page import Mark, boxed
from drive_vlm.report.run_report.curves import MOST_POINTS, PANELS, draw_panels, names_of, series, thinned
from drive_vlm.report.run_report.pictures import CAMERAS, Pictures, drawn_on
from drive_vlm.report.run_report.run_files import read_run


def test_a_long_curve_keeps_its_mean_and_its_end() -> None:
    points = [(float(i), float(i % 10)) for i in range(12_001)]
    found = thinned(points)
    assert len(found) <= MOST_POINTS and found[-1] == points[-1]
    # Bins of 21 points: the first is the mean of steps 0 to 20.
    assert found[0] == (10.0, sum(i % 10 for i in range(21)) / 21)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_panels_show_what_was_logged(made_run: Callable) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "reward": 0.1, "rewards/clip/mean": 0.3, "kl": 0.0, "frac_reward_zero_std": 0.5},
        {"step": 2, "loss": None, "completions/mean_length": 9.0, "clarify/unread": 0.25, "unscored": True},
        {"step": 2, "eval_accuracy": 0.5, "eval_loss": 1.0, "eval_runtime": 3.0, "eval_samples_per_second": 2.0},
        {"step": 3, "loss": float("nan"), "alarm/kl": 0.0},
    ]
    run = read_run(made_run(metrics=lines), "run")
    assert series(run, "loss") == [(1.0, 2.0)] and series(run, "unscored") == []
    by_title = {panel.title: names_of(run, panel) for panel in PANELS}
    assert by_title["held-out scores"] == ["eval_accuracy"] and by_title["reward terms"] == ["rewards/clip/mean"]
    assert by_title["unread or unscored"] == ["unscored", "clarify/unread"]
    drawn = {panel.title: panel for panel in draw_panels([run])}
    assert {"loss", "reward", "KL", "length", "groups without advantage", "held-out scores"} <= drawn.keys()
    assert "learning rate" not in drawn and drawn["loss"].last == [
        ("loss", "2 at step 1"),
        ("eval_loss", "1 at step 2"),
    ]


def test_charts_of_one_page_share_no_id_and_escape_their_words(made_run: Callable) -> None:
    lines = [{"step": 1, "loss": 1.0, "rewards/</text><script>alert(1)</script>/mean": 1.0, "rewards/$x_/mean": 1.0}]
    runs = [read_run(made_run(name, metrics=lines), f"<b>{name}") for name in ("a", "b")]
    texts = [panel.svg for panel in draw_panels(runs)]
    ids = [found for text in texts for found in re.findall(r'\sid="([^"]+)"', text)]
    assert len(ids) == len(set(ids)) > 10
    whole = "".join(texts)
    assert "<script" not in whole and "<b>" not in whole and "&lt;script&gt;" in whole and "rewards/$x_/mean" in whole
    for text in texts:
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(re.findall(r'\sid="([^"]+)"', text))


def item(**row: Any) -> Prediction:
    images = row.pop("images", ())
    texts = row.pop("prediction", ""), row.pop("reference", "")
    return Prediction("rows.jsonl:1", "r", "set", *texts, tuple(images), row)


def test_points_stand_on_the_picture_of_their_camera() -> None:
    row = item(
        question="<c1,CAM_FRONT,400.0,300.5> and <c2,CAM_BACK,1.0,2.0>",
        reference="<c1, CAM_FRONT , 10, 20>",
        prediction="<c9,CAM_FRONT,1700.0,20.0> <c8,CAM_FRONT,nan,3>",
    )
    _, marks = drawn_on(row, "CAM_FRONT", 0, (1600, 900), several=True)
    assert [(mark.point, mark.label, mark.title.split(":")[0]) for mark in marks] == [
        ((400.0, 300.5), "c1", "question"),
        ((10.0, 20.0), "c1", "answer"),
    ]
    # Of one picture: pixels only where it is the camera's, thousandths of a stitched one always.
    row = item(question="<c1,CAM_BACK,[500, 250]> <c2,CAM_BACK,5,5>")
    _, marks = drawn_on(row, "", 0, (2688, 896), several=False)
    assert [mark.point for mark in marks] == [(1344.0, 224.0)]


def test_boxes_are_those_of_the_first_picture_and_never_inside_out() -> None:
    row = item(
        candidates=[{"box": [30, 20, 10, 40], "name": "car"}, {"box": None}],
        boxes=[[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, "x"], [0, 0, float("inf"), 1], [True, 0, 1, 1]],
    )
    boxes, _ = drawn_on(row, "", 0, (64, 64), several=True)
    assert [(list(box.box), box.title) for box in boxes] == [([10, 20, 30, 40], "car"), ([1, 2, 3, 4], "")]
    assert drawn_on(row, "", 1, (64, 64), several=True)[0] == []


def test_cameras_come_in_the_order_of_the_eyes_and_problems_are_said(tmp_path: Path) -> None:
    names = [f"{camera}.png" for camera in sorted(CAMERAS)]
    for name in names[:-2]:
        Image.new("RGB", (32, 18)).save(tmp_path / name)
    (tmp_path / names[-2]).write_bytes(b"no picture")
    pictures = Pictures([tmp_path], 10**6)
    found = pictures.strip(item(images=names))
    assert [caption.split(" ")[0] for _, caption in found] == list(CAMERAS)
    assert (pictures.shown, pictures.problems) == (4, 2)
    assert sum("not shown" in caption for _, caption in found) == 2
    assert all(str(picture).startswith("<svg") or "not shown" in caption for picture, caption in found)


def test_a_picture_outside_the_roots_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "root").mkdir()
    pictures = Pictures([tmp_path / "root"], 10**6)
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        ((picture, caption),) = pictures.strip(item(images=[path]))
        assert not picture and "leaves the image root" in caption
    ((picture, caption),) = Pictures([], 10**6).strip(item(images=["a.png"]))
    assert not picture and "below no folder" in caption


def test_a_video_is_a_strip_of_frames(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 18), (30 * i, 0, 0)).save(tmp_path / "clip" / f"{i}.png")
    found = Pictures([tmp_path], 10**6).strip(item(video="clip"))
    assert [caption for _, caption in found] == [f"frame {i} of 6" for i in range(1, 7)]
    ((picture, caption),) = Pictures([tmp_path], 10**6).strip(item(video="gone.mp4"))
    assert not picture and "video not shown" in caption


@pytest.mark.parametrize("place", [(2.0, 2.0), (99.0, 50.0)])
def test_a_point_is_a_ring_with_its_words_beside_it(place: tuple[float, float]) -> None:
    text = boxed(Image.new("RGB", (100, 60)), [], marks=[Mark(place, "#fff", "<c1>", 'a "title"')])
    assert f'<circle cx="{place[0]}" cy="{place[1]}"' in text and "&lt;c1&gt;" in text and "a &quot;title&quot;" in text
    assert ('text-anchor="end"' in text) == (place[0] > 70)
