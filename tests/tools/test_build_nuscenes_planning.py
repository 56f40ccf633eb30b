"""tools/build_nuscenes_planning.py and build_meta_actions.py on invented drives in the published forms."""

import json
import math
import os
import pickle

import numpy as np
import pytest

PLANNING, META = "tools/build_nuscenes_planning.py", "tools/build_meta_actions.py"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def world(planning_infos, tmp_path):
    """Three scenes of 9, 8 and 5 key frames: the last has no frame with a whole future."""
    drives = {
        "left": planning_infos.drive(9, 6.0, turn=0.12),
        "right": planning_infos.drive(8, 3.0, turn=-0.12, gain=0.7, start=(-5.0, 900.0, 2.0)),
        "short": planning_infos.drive(5, 9.0),
    }
    agents = [
        {"name": "car", "size": (1.9, 4.6), "now": (2.0, 10.0, 1.2), "steps": [(0.5, 1.0, 0.1)] * 4 + [None] * 2},
        {"name": "barrier", "size": (0.5, 2.0), "now": (1.0, 5.0, 0.0), "steps": [(0, 0, 0)] * 6},
        {"name": "pedestrian", "size": (0.7, 0.7), "now": (1.0, 5.0, 0.0), "steps": [(0, 0, 0)] * 6, "points": 0},
    ]
    frames = [(scene, poses, i) for scene, poses in drives.items() for i in range(len(poses))]
    vad = [planning_infos.vad_info(*frame, agents) for frame in frames]
    uniad = [planning_infos.uniad_info(*frame) for frame in frames]
    (tmp_path / "vad.pkl").write_bytes(pickle.dumps({"infos": vad, "metadata": {"version": "v1.0-mini"}}, protocol=3))
    (tmp_path / "uniad.pkl").write_bytes(pickle.dumps(uniad))
    (tmp_path / "vad.json").write_text(json.dumps({"infos": planning_infos.plain(vad)}))
    return drives


@pytest.fixture
def build(run_here, tmp_path):
    def call(*flags, out="rows", tool=PLANNING, expect=0):
        done = run_here(tool, "--out", tmp_path / out, *flags)
        assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr[-2000:]
        return tmp_path / out if not expect else done.stderr

    return call


def test_rows_are_the_drives(build, world, planning_infos, tmp_path):
    """Every future and history against the drives themselves, and frames without a whole future counted out."""
    out = build("--val", tmp_path / "vad.pkl", "--cameras", "none")
    rows = {row["id"]: row for row in read(out / "val.jsonl")}
    assert sorted(rows) == ["left-00", "left-01", "left-02", "right-00", "right-01"]
    for name, row in rows.items():
        scene, i = name.split("-")[0], int(name.split("-")[1])
        poses = world[scene]
        # Up to the float32 of the file.
        np.testing.assert_allclose(row["future"], planning_infos.future_of(poses, i), atol=3e-6)
        if i >= 2:
            past = [planning_infos.seen(planning_infos.lidar(pose), poses[i]) for pose in poses[i - 2 : i]]
            np.testing.assert_allclose(row["past"], past, atol=1e-4)
        assert (row["group"], row["driven"], row["axes"], row["unit"], row["step_s"]) == (
            scene,
            min(i, 2),
            "x right, y forward",
            "m",
            0.5,
        )
    # The first step lies half a second ahead: about three metres at 6 m/s, not six.
    assert rows["left-02"]["future"][0][1] == pytest.approx(3.0, abs=0.1)
    assert rows["left-02"]["future"][5][0] < -2 and rows["left-02"]["command"] == "left"
    assert rows["right-00"]["future"][5][0] > 2 and rows["right-00"]["command"] == "right"
    audit = json.loads((out / "audit.json").read_text())
    assert audit["bad_rows"]["by_reason"] == {"future_incomplete": 17}
    assert audit["splits"]["val"] == {"frames": 22, "rows": 5, "undriven": 4, "with_boxes": 5}


def test_poses_and_json_give_the_same_rows(build, world, tmp_path):
    """UniAD's file has poses alone; the rows agree with those of VAD's steps, the made-up histories included."""
    vad, uniad, plain = (
        read(build("--val", tmp_path / name, "--cameras", "none", out=f"of_{name}") / "val.jsonl")
        for name in ("vad.pkl", "uniad.pkl", "vad.json")
    )
    assert vad == plain
    for ours, theirs in zip(vad, uniad, strict=True):
        for name in ("past", "future"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-4)
        assert ours["speed"] == pytest.approx(theirs["speed"], abs=1e-3)
        assert {key: ours[key] for key in ("id", "group", "command", "driven", "axes")} == {
            key: theirs[key] for key in ("id", "group", "command", "driven", "axes")
        }
    assert not (tmp_path / "of_uniad.pkl" / "val.boxes.jsonl").exists()


def test_rows_are_rows_of_the_project(build, world, tmp_path):
    """Training reads them, and what generate writes of them is what the evaluator reads."""
    from drive_vlm.data.predictions import prediction_row
    from drive_vlm.data.samples import parse_row
    from drive_vlm.evaluation.planning import plan_truth

    rows = build("--val", tmp_path / "vad.pkl", "--cameras", "none") / "val.jsonl"
    meta = build("--data", rows, out="meta", tool=META) / "val.jsonl"
    for path in (rows, meta):
        for row in read(path):
            sample = parse_row({**row, "dataset": "val"}, f"{path}:1", "")
            assert sample.reference == row["conversations"][1]["value"] and sample.group == row["group"]
            written = prediction_row(sample, "x")
            assert written["future"] == row["future"] and written["protocol"] == row["protocol"]
            if path == rows:
                assert len(plan_truth([("p", written, "")])) == 1


def test_the_other_axes_are_the_same_way(build, world, tmp_path):
    right, left = (
        read(build("--val", tmp_path / "vad.pkl", "--cameras", "none", "--axes", axes, out=axes) / "val.jsonl")
        for axes in ("right_forward", "forward_left")
    )
    for ours, theirs in zip(right, left, strict=True):
        assert [[y, -x] for x, y in ours["future"]] == theirs["future"] and theirs["axes"] == "x forward, y left"
        assert "x to the right and y forward" in ours["conversations"][0]["value"]
        assert "x forward and y to the left" in theirs["conversations"][0]["value"]


def test_what_a_row_says(build, world, tmp_path):
    from drive_vlm.evaluation.answers import read_points

    out = build("--val", tmp_path / "vad.pkl", "--cameras", "none", "--form", "pt", "--inputs", "speed", "command")
    row = read(out / "val.jsonl")[2]
    question, answer = (turn["value"] for turn in row["conversations"])
    assert "metres" in question and "every 0.5 s" in question and "6 positions" in question and "turn left" in question
    assert (
        f"{row['speed']:.2f} m/s" in question
        and "last positions" not in question
        and "as PT = [(0.0, 0.0)]" in question
    )
    assert answer.startswith("PT = [(")
    np.testing.assert_allclose(read_points(answer, 6).value, row["future"], atol=0.0051)
    blind = read(
        build("--val", tmp_path / "vad.pkl", "--cameras", "none", "--inputs", "none", out="blind") / "val.jsonl"
    )[0]
    assert "speed" not in blind["conversations"][0]["value"] and "command" not in blind["conversations"][0]["value"]


def test_boxes_go_their_ways_in_the_lidar_s_frame(build, world, tmp_path):
    from pathlib import Path

    from drive_vlm.builders.nuscenes_planning import read_boxes

    out = build("--val", tmp_path / "vad.pkl", "--cameras", "none")
    boxes = read_boxes(Path(out / "val.boxes.jsonl"))
    # A barrier is none, and neither is a pedestrian that the LiDAR did not hit.
    [car] = boxes["left-00"]
    assert (car.name, car.length, car.width) == ("car", 4.6, 1.9) and car.now == pytest.approx(
        (2.0, 10.0, 1.2), abs=1e-5
    )
    assert [place is None for place in car.future] == [False] * 4 + [True] * 2
    assert car.future[3] == pytest.approx((4.0, 14.0, 1.6), abs=1e-4)


def test_pictures_are_looked_for(build, world, tmp_path):
    root = tmp_path / "nuscenes"
    folder = root / "samples" / "CAM_FRONT"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"left-{i:02d}.jpg").write_bytes(b"x")
    flags = ("--val", tmp_path / "vad.pkl", "--image_root", root)
    told = build(*flags, expect=2)
    assert "right-00" in told and "does not exist" in told and "--on_missing skip" in told
    out = build(*flags, "--on_missing", "skip")
    rows = read(out / "val.jsonl")
    assert [row["image"] for row in rows] == [[f"samples/CAM_FRONT/left-{i:02d}.jpg"] for i in range(3)]
    assert rows[0]["conversations"][0]["value"].startswith("<image>\nYou drive")
    assert json.loads((out / "val.meta.json").read_text())["nuscenes_planning_val"]["root"] == str(root)
    assert "no camera CAM_TOP; the file has CAM_FRONT, CAM_BACK" in build(*flags, "--cameras", "CAM_TOP", expect=2)


def test_frames_at_a_scene_s_start_may_be_left_out(build, world, tmp_path):
    out = build("--val", tmp_path / "vad.pkl", "--cameras", "none", "--undriven", "skip")
    assert [row["id"] for row in read(out / "val.jsonl")] == ["left-02"]
    assert json.loads((out / "audit.json").read_text())["bad_rows"]["by_reason"] == {
        "future_incomplete": 17,
        "undriven": 4,
    }


def test_splits_that_share_a_scene_are_told(build, world, run_here, tmp_path):
    done = run_here(
        PLANNING,
        "--train",
        tmp_path / "vad.pkl",
        "--val",
        tmp_path / "vad.json",
        "--cameras",
        "none",
        "--out",
        tmp_path / "o",
    )
    assert done.returncode == 1 and "leaks between the splits, e.g. id 'left-00' is in train and val" in done.stderr


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def broken(infos, key, value):
    infos[0][key] = value
    return {"infos": infos}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda infos: {"infos": [Runs()]}, "it names posix.system"),
        (lambda infos: {"data": 1}, "not an info file of VAD or UniAD"),
        (lambda infos: [{"token": "a", "lidar_path": "x"}], "key frames have lidar_path, token"),
        (lambda infos: broken(infos, "token", infos[1]["token"]), "frame 1: the token 'left-01' comes twice"),
        (lambda infos: broken(infos, "gt_ego_fut_trajs", np.zeros((5, 2))), r"shape \(5, 2\), expected \(6, 2\)"),
        (lambda infos: broken(infos, "gt_ego_fut_trajs", np.full((6, 2), math.nan)), "not finite"),
        (
            lambda infos: broken(infos, "gt_ego_fut_cmd", np.array([1, 1, 0])),
            r"gt_ego_fut_cmd \[1.0, 1.0, 0.0\] is no command",
        ),
        (lambda infos: broken(infos, "num_lidar_pts", np.array([1])), "the columns of the boxes differ in length"),
        (lambda infos: [{k: v for k, v in infos[0].items() if k != "gt_ego_his_trajs"}], "lacks 'gt_ego_his_trajs'"),
    ],
)
def test_files_of_another_kind_are_one_line(build, world, tmp_path, content, told):
    import re

    infos = pickle.loads((tmp_path / "vad.pkl").read_bytes())["infos"]
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content(infos)))
    said = build("--val", tmp_path / "bad.pkl", "--cameras", "none", expect=2)
    assert re.search(told, said) and said.count("\n") == 1 and not (tmp_path / "rows" / "val.jsonl").exists()


def test_flags_that_cannot_be(build, world, tmp_path):
    assert "give at least one info file" in build("--cameras", "none", expect=2)
    assert "--image_root is missing" in build("--val", tmp_path / "vad.pkl", expect=2)
    assert "--inputs map: not known" in build(
        "--val", tmp_path / "vad.pkl", "--cameras", "none", "--inputs", "map", expect=2
    )


# --- meta-actions


def test_meta_actions_of_the_rows(build, world, tmp_path):
    rows = build("--val", tmp_path / "vad.pkl", "--cameras", "none") / "val.jsonl"
    out = build("--data", rows, out="meta", tool=META)
    made = {row["id"]: row for row in read(out / "val.jsonl")}
    assert made["left-00"]["conversations"][1]["value"] == "KEEP, LEFT_TURN"
    assert made["right-00"]["path_class"] == "RIGHT_TURN" and made["left-00"]["protocol"] == "meta-actions/1"
    assert (
        "6.0 m/s" in made["left-00"]["conversations"][0]["value"]
        and "LEFT_CHANGE" in made["left-00"]["conversations"][0]["value"]
    )
    audit = json.loads((out / "audit.json").read_text())
    assert sum(audit["counts"]["val.jsonl"].values()) == 5 and audit["thresholds"]["stop_below"] == 2.0
    folded = read(build("--data", rows, "--classes", "alphadrive", "--think", out="alpha", tool=META) / "val.jsonl")[0]
    assert (
        len(folded["conversations"]) == 1
        and "<think>" in folded["conversations"][0]["value"]
        and folded["reference"] == "KEEP, LEFT_TURN"
    )
    assert "LEFT_CHANGE" not in folded["conversations"][0]["value"]


def test_the_same_way_in_other_axes_has_the_same_class(build, world, tmp_path):
    classes = []
    for axes in ("right_forward", "forward_left"):
        rows = build("--val", tmp_path / "vad.pkl", "--cameras", "none", "--axes", axes, out=axes) / "val.jsonl"
        made = read(build("--data", rows, out=f"meta_{axes}", tool=META) / "val.jsonl")
        classes.append([(row["speed_class"], row["path_class"]) for row in made])
    assert classes[0] == classes[1]


def test_rows_without_a_future_are_bad_rows(build, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "a", "conversations": []}) + "\n")
    assert 'other.jsonl:1: "future"' in build("--data", tmp_path / "other.jsonl", tool=META, expect=2)
    out = build("--data", tmp_path / "other.jsonl", "--on_bad_row", "skip", tool=META)
    assert json.loads((out / "audit.json").read_text())["bad_rows"]["by_reason"] == {"future_missing": 1}
