"""Video sets with split-entry rows and twins, and the detection cache from their truth, through the command lines."""

import hashlib
import json
import sys

import pytest

from drive_vlm.builders.splits import find_leaks
from drive_vlm.builders.synthetic.scene import COCO_LABELS
from drive_vlm.data.vision import load_video
from drive_vlm.rewards.detections import DetectionCache


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


FLAGS = ("--scenes", 0, "--clips", 40, "--order_clips", 24, "--split_entry", "--num_frames", 4, "--size", 32)
SPLITS = ("--splits", "train:0.7", "test:0.3", "--clip_format", "frames", "--image_format", "png")


@pytest.fixture(scope="module")
def videos(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("videos") / "data"
    done = run([sys.executable, "tools/build_synthetic.py", "--out", out, *FLAGS, *SPLITS, "--workers", 1])
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def detect(run_here):
    return lambda data, out, *more: run_here("tools/build_truth_detections.py", "--data", data, "--out", out, *more)


def test_row_files_of_a_video_set(videos):
    names = {path.name for path in videos.glob("*.jsonl")} - {"scenes.jsonl"}
    assert names == {
        f"{kind}_{s}.jsonl" for kind in ("clips", "order", "split_entry", "raw_captions") for s in ("train", "test")
    }
    splits = {s: [row for kind in ("clips", "order", "split_entry", "raw_captions") for row in rows_of(videos / f"{kind}_{s}.jsonl")] for s in ("train", "test")}  # fmt: skip
    assert find_leaks(splits) == []
    texts = [row for s in splits for row in rows_of(videos / f"split_entry_{s}.jsonl")]
    assert len(texts) == 2 * 64 and len({row["id"] for row in texts}) == 128
    assert len({row["video"] for row in texts}) == 64
    for s in splits:
        answers = [row["conversations"][1]["value"] for row in rows_of(videos / f"order_{s}.jsonl")]
        for one, other in (("green to red", "red to green"), ("comes closer", "moves away"), ("near", "far")):
            assert answers.count(one) == answers.count(other) > 0, s
    meta = json.loads((videos / "meta.json").read_text())
    assert meta["synthetic_split_entry_train"]["length"] == len(rows_of(videos / "split_entry_train.jsonl"))


def test_the_same_arguments_write_the_same_bytes_with_more_workers(run, videos, tmp_path):
    done = run([sys.executable, "tools/build_synthetic.py", "--out", tmp_path, *FLAGS, *SPLITS, "--workers", 2])
    assert done.returncode == 0, done.stderr
    for path in videos.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / path.relative_to(videos)).read_bytes()


def test_twins_come_in_pairs(run, tmp_path):
    done = run([sys.executable, "tools/build_synthetic.py", "--out", tmp_path, "--scenes", 0, "--order_clips", 3])
    assert done.returncode == 2 and "--order_clips 3: they come in twins" in done.stderr


def test_without_faults_the_cache_is_the_truth(videos, tmp_path, detect):
    out = tmp_path / "truth.jsonl"
    done = detect(videos, out, "--misses", 0, "--false_hits", 0, "--num_frames", 4)
    assert done.returncode == 0, done.stderr
    cache = DetectionCache.load(out)
    assert len(cache) == 64 and cache.detector.weights == "scene truth"
    truth = {row["video"]: row["truth_classes"] for row in rows_of(videos / "split_entry_train.jsonl")}
    assert {video: sorted(cache.classes(video)) for video in truth} == truth
    entry = cache.entry("clips/000000")
    frames = load_video(str(videos / "clips/000000"), 4, "here")
    assert [frame.index for frame in entry.frames] == [0, 1, 2, 3]
    assert [frame.sha256 for frame in entry.frames] == [hashlib.sha256(f.tobytes()).hexdigest() for f in frames]


def test_faults_have_their_shares_and_are_named(videos, tmp_path, detect):
    out, reported = tmp_path / "detections.jsonl", tmp_path / "counts.json"
    done = detect(videos, out, "--misses", 0.3, "--false_hits", 0.2, "--num_frames", 4, "--json", reported)
    assert done.returncode == 0, done.stderr
    cache = DetectionCache.load(out)
    assert cache.detector.version == "misses 0.3, false hits 0.2, seed 0"
    counts = json.loads(reported.read_text())
    truth = {row["video"]: set(row["truth_classes"]) for s in ("train", "test") for row in rows_of(videos / f"split_entry_{s}.jsonl")}  # fmt: skip
    missed = sum(len(classes - cache.classes(video)) for video, classes in truth.items())
    invented = sum(len(cache.classes(video) - classes) for video, classes in truth.items())
    total = sum(map(len, truth.values()))
    assert (counts["missed"], counts["invented"], counts["there"], counts["videos"]) == (missed, invented, total, 64)
    assert counts["absent"] == 64 * len(COCO_LABELS) - total
    assert 0.2 < missed / total < 0.4 and 0.13 < invented / counts["absent"] < 0.27
    again = detect(videos, tmp_path / "again.jsonl", "--misses", 0.3, "--false_hits", 0.2, "--num_frames", 4)
    assert again.returncode == 0 and (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--misses", 2), "--misses: must be at most 1, got 2"),
        (("--num_frames", 0), "--num_frames: must be at least 1"),
        (("--data", "nowhere"), "nowhere/scenes.jsonl is not there"),
    ],
)
def test_wrong_arguments(videos, tmp_path, words, message, detect):
    done = detect(videos, tmp_path / "x.jsonl", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_set_without_clips_is_refused(synthetic_data, tmp_path, detect):
    (tmp_path / "scenes.jsonl").write_text((synthetic_data / "scenes.jsonl").read_text().splitlines()[0] + "\n")
    done = detect(tmp_path, tmp_path / "x.jsonl")
    assert done.returncode == 2 and "holds no clips" in done.stderr
