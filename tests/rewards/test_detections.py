"""The detection cache: strict reading with file:line, appending after a kill, shards, mixed settings."""

import json

import pytest

from drive_vlm.rewards.detections import (
    DetectedFrame,
    DetectedObject,
    DetectionCache,
    Detector,
    VideoDetections,
    append_detections,
    merge_detections,
)

DETECTOR = {"weights": "yolov8x.pt", "sha256": "ab" * 32, "imgsz": 640, "conf": 0.3, "version": "ultralytics 8.4.190"}


def line(video="a.mp4", labels=("car",), **detector):
    objects = [{"label": label, "score": 0.9, "box": [1, 2, 30.5, 40]} for label in labels]
    frames = [{"index": 0, "sha256": "00", "objects": []}, {"index": 3, "sha256": "01", "objects": objects}]
    return {"video": video, "detector": DETECTOR | detector, "frames": frames}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def entry(video, *labels, **detector):
    objects = tuple(DetectedObject(label, 0.5, (0.0, 0.0, 1.0, 1.0)) for label in labels)
    return VideoDetections(video, Detector(**(DETECTOR | detector)), (DetectedFrame(0, "ff", objects),))


def test_classes_are_the_union_over_frames_and_none_is_an_answer(tmp_path):
    row = line("b", ["car", "car", "bus"])
    row["frames"][0]["objects"] = [{"label": "person", "score": 1, "box": [0, 0, 1, 1]}]
    cache = DetectionCache.load(write(tmp_path / "d.jsonl", line("a", []), row))
    assert cache.classes("a") == frozenset() and cache.classes("b") == {"car", "bus", "person"}
    assert len(cache) == 2 and "a" in cache and cache.detector == Detector(**DETECTOR)
    assert cache.entry("b").frames[1].objects[0].box == (1.0, 2.0, 30.5, 40.0)


def test_a_missing_video_is_named_with_the_command(tmp_path):
    cache = DetectionCache.load(write(tmp_path / "d.jsonl", line("clips/a.mp4")))
    with pytest.raises(ValueError, match=r"no detections for '/x/a\.mp4' in .*holds 1 videos \(it has 'clips/a\.mp4'.*cache_detections\.py"):  # fmt: skip
        cache.classes("/x/a.mp4")
    with pytest.raises(ValueError, match=r"none\.jsonl: no such detection cache; write it with"):
        DetectionCache.load(tmp_path / "none.jsonl")


def broken(change):
    row = line()
    change(row)
    return row


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([], "the line must be an object, got list"),
        ({"video": "a"}, "no key 'detector', no key 'frames'"),
        (broken(lambda row: row.update(extra=1)), "unknown key 'extra'"),
        (broken(lambda row: row.update(video="")), '"video" is empty'),
        (broken(lambda row: row.update(frames=[])), "nothing was looked at"),
        (broken(lambda row: row["detector"].pop("conf")), "no key 'conf'"),
        (broken(lambda row: row["detector"].update(imgsz="640")), r"\['imgsz'\] must be int"),
        (broken(lambda row: row["detector"].update(imgsz=True)), r"\['imgsz'\] must be int, got true"),
        (broken(lambda row: row["frames"][1].pop("sha256")), r'"frames"\[1\] has no key \'sha256\''),
        (broken(lambda row: row["frames"][0].update(index=-1)), "below 0"),
        (broken(lambda row: row["frames"][1]["objects"][0].update(score=1.2)), "score 1.2"),
        (broken(lambda row: row["frames"][1]["objects"][0].update(label="")), "need a name"),
        (broken(lambda row: row["frames"][1]["objects"][0].update(box=[1, 2, 3])), "four finite numbers"),
        (broken(lambda row: row["frames"][1]["objects"][0].update(box=[9, 2, 3, 4])), "x1 > x2"),
    ],
)
def test_a_line_that_is_not_of_the_format_is_told_with_its_place(tmp_path, row, told):
    path = write(tmp_path / "d.jsonl", line("ok"), row)
    with pytest.raises(ValueError, match=rf"d\.jsonl:2: .*{told}"):
        DetectionCache.load(path)


def test_mixed_settings_are_refused_in_one_file_and_over_files(tmp_path):
    first, second = write(tmp_path / "1.jsonl", line("a")), write(tmp_path / "2.jsonl", line("b", conf=0.5))
    with pytest.raises(ValueError, match=r"2\.jsonl:1: detector .*conf 0\.5.*1\.jsonl:1 has .*conf 0\.3"):
        DetectionCache.load([first, second])
    with pytest.raises(ValueError, match=r"one detector with one setting"):
        DetectionCache.load(write(tmp_path / "3.jsonl", line("a"), line("b", imgsz=320)))


def test_the_same_video_twice_must_say_the_same(tmp_path):
    assert len(DetectionCache.load(write(tmp_path / "1.jsonl", line("a"), line("a")))) == 1
    with pytest.raises(ValueError, match=r"2\.jsonl:2: other detections for 'a' than at .*2\.jsonl:1"):
        DetectionCache.load(write(tmp_path / "2.jsonl", line("a"), line("a", ["bus"])))


def test_appending_goes_on_after_a_torn_line(tmp_path):
    path = tmp_path / "new" / "d.jsonl"
    append_detections(path, [entry("a", "car"), entry("ü", "bus")])
    with path.open("a") as file:
        file.write('{"video": "torn", "det')
    with pytest.raises(ValueError, match=r"d\.jsonl:3: not valid JSON \(a torn last line"):
        DetectionCache.load(path)
    append_detections(path, [entry("c")])
    cache = DetectionCache.load(path)
    assert [item.video for item in cache] == ["a", "ü", "c"] and cache.entry("ü") == entry("ü", "bus")


def test_nothing_unreadable_is_written(tmp_path):
    with pytest.raises(ValueError, match="nothing was looked at"):
        append_detections(tmp_path / "d.jsonl", [VideoDetections("a", Detector(**DETECTOR), ())])
    assert not (tmp_path / "d.jsonl").read_text()


def test_shards_are_merged_sorted_and_merging_again_changes_nothing(tmp_path):
    append_detections(tmp_path / "s1", [entry("c", "car"), entry("a")])
    append_detections(tmp_path / "s2", [entry("b", "bus")])
    out = tmp_path / "all.jsonl"
    merged = merge_detections([tmp_path / "s1", tmp_path / "s2"], out)
    assert [item.video for item in merged] == ["c", "a", "b"]
    before = out.read_bytes()
    assert [json.loads(line)["video"] for line in before.splitlines()] == ["a", "b", "c"]
    merge_detections([tmp_path / "s1"], out)
    assert out.read_bytes() == before
    append_detections(tmp_path / "s3", [entry("d", conf=0.9)])
    with pytest.raises(ValueError, match=r"s3:1: detector"):
        merge_detections([tmp_path / "s3"], out)
    assert out.read_bytes() == before
