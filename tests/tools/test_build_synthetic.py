"""tools/build_synthetic.py through its command line: rows, splits without leaks, idempotence, errors."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.splits import find_leaks
from drive_vlm.builders.synthetic.clip import make_clip
from drive_vlm.builders.synthetic.render import render
from drive_vlm.builders.synthetic.sample import make_scene
from drive_vlm.builders.synthetic.words import questions
from drive_vlm.evaluation.oia_labels import action_labels, read_answer, reason_labels

ROOT = Path(__file__).resolve().parents[2]


def run(*words, tool="build_synthetic.py"):
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


ARGUMENTS = ("--scenes", 60, "--clips", 6, "--num_frames", 4, "--size", 64, "--seed", 9, "--questions_per_scene", 4)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "synthetic"
    done = run("--out", out, *ARGUMENTS, "--clip_format", "frames", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "lead_type" in done.stdout
    assert "majority" in done.stdout
    return out


def test_rows_obey_the_data_contract(built):
    for split in ("train", "val", "test"):
        for row in rows_of(built / f"{split}.jsonl"):
            assert set(row) == {"id", "image", "conversations", "group", "category", "template"}
            human, gpt = row["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            assert human["value"].startswith("<image>\n")
            assert human["value"].count("<image>") == 1
            with Image.open(built / row["image"]) as image:
                assert image.size == (64, 64)
            scene = make_scene(9, int(row["group"].rsplit("-", 1)[1]), (64, 64))
            wanted = {q.template: (q.question, q.answer) for q in questions(scene)}
            assert (human["value"].removeprefix("<image>\n"), gpt["value"]) == wanted[row["template"]]
    captions = rows_of(built / "captions_train.jsonl")
    assert {row["template"] for row in captions} == {"caption_short", "caption_long"}
    for row in captions:
        assert row["category"] == "caption"
        assert row["conversations"][1]["value"] == row[row["template"]]
        assert len(row["caption_short"]) < len(row["caption_long"])


def test_each_scene_has_its_questions_in_one_split_and_nothing_leaks(built):
    splits = {name: rows_of(built / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert find_leaks(splits) == []
    assert sum(len(rows) for rows in splits.values()) == 60 * 4
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)
    captions = {name: rows_of(built / f"captions_{name}.jsonl") for name in ("train", "val", "test")}
    for name, rows in captions.items():
        assert {row["group"] for row in rows} == {row["group"] for row in splits[name]}
    splits["test"].append(splits["train"][0])
    assert {leak.kind for leak in find_leaks(splits)} == {"id", "group", "image"}


def test_ground_truth_and_meta(built):
    truth = rows_of(built / "scenes.jsonl")
    assert len(truth) == 60 + 6 * 4
    assert all(len(row["actions"]) == 4 and len(row["reason"]) == 21 for row in truth)
    for name, entry in json.loads((built / "meta.json").read_text()).items():
        assert name.startswith("synthetic_")
        assert len(rows_of(built / entry["root"] / entry["annotation"])) == entry["length"]
        assert entry["repeat_time"] == 1


def test_clip_rows_and_frame_folders(built):
    rows = [row for path in built.glob("clips_*.jsonl") for row in rows_of(path)]
    assert {row["group"] for row in rows} == {f"clip-9-{i:06d}" for i in range(6)}
    for row in rows:
        assert row["conversations"][0]["value"].startswith("<video>\n")
        assert len(list((built / row["video"]).glob("*.jpg"))) == 4
    assert sum(row["template"] == "clip_caption" for row in rows) == 6


def test_rows_in_the_form_of_bdd_oia(tmp_path):
    words = ("--scenes", 12, "--clips", 4, "--clip_format", "frames", "--num_frames", 3, "--size", 48, "--oia")
    done = run("--out", tmp_path / "a", *words, "--splits", "train:0.5", "test:0.5", "--workers", 1)
    assert done.returncode == 0, done.stderr
    truth = {row["group"]: row for row in rows_of(tmp_path / "a" / "scenes.jsonl")}
    for kind, count, medium in (("oia", 12, "image"), ("oia_clips", 4, "video")):
        texts, jsons = (
            {
                row["group"]: row
                for split in ("train", "test")
                for row in rows_of(tmp_path / "a" / f"{kind}{form}_{split}.jsonl")
            }
            for form in ("", "_json")
        )
        assert len(texts) == len(jsons) == count
        for group, row in texts.items():
            # Of a clip, `truth` holds the last line: its last frame.
            assert (row["actions"], row["reason"]) == (truth[group]["actions"], truth[group]["reason"])
            assert row["conversations"][0]["value"] == f"<{medium}>" and (tmp_path / "a" / row[medium]).exists()
            said = [read_answer(form[group]["conversations"][1]["value"]) for form in (texts, jsons)]
            for answer in said:
                assert list(action_labels(answer.actions).vector(4)) == row["actions"]
                assert list(reason_labels(answer.reasons).vector(21)) == row["reason"]
            assert [answer.form for answer in said] == ["text", "json"]
            assert said[1].description == row["description"] == jsons[group]["description"]
    splits = {name: rows_of(tmp_path / "a" / f"oia_{name}.jsonl") for name in ("train", "test")}
    assert find_leaks(splits) == []


def test_a_second_run_with_other_workers_gives_the_same_bytes(built):
    before = hashes(built)
    (built / "images" / "999999.jpg").write_bytes(b"stale")
    (built / "old.jsonl").write_text("{}\n")
    done = run("--out", built, *ARGUMENTS, "--clip_format", "frames", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert hashes(built) == before


def test_mp4_clips_decode_to_what_was_rendered(tmp_path):
    av = pytest.importorskip("av", reason="mp4 clips need PyAV")
    words = ("--scenes", 0, "--clips", 2, "--num_frames", 5, "--size", 96, "--splits", "train:1.0", "--workers", 1)
    done = run("--out", tmp_path / "a", *words)
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "a" / "clips" / "000001.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = make_clip(0, 1, 5, (96, 96))
    assert len(frames) == 5
    for frame, scene in zip(frames, clip, strict=True):
        assert np.abs(frame.astype(int) - render(scene)).mean() < 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--splits", "train:0.8", "val:0.1"), "must sum to 1, got 0.9"),
        (("--splits", "train=1"), "expected different name:share words"),
        (("--splits", "train:most"), "is not a number"),
        (("--scenes", 0), "nothing to build"),
        (("--size", 16), "--size: must be at least 32"),
        (("--templates", "wether"), "--templates wether: not known"),
        (("--clips", 1, "--size", 65), "mp4 needs an even size"),
        (("--scene", 5), "Did you mean --scenes?"),
    ],
)
def test_wrong_arguments_stop_with_one_clear_line(tmp_path, words, message):
    done = run("--out", tmp_path / "x", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"precious")
    done = run("--out", tmp_path, "--scenes", 1)
    assert done.returncode == 2
    assert "not this tool's" in done.stderr
    assert (tmp_path / "images" / "mine.jpg").read_bytes() == b"precious"
