"""tools/build_bddoia.py through its command line: real label rows of the kit, and invented ones for what can be wrong."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.builders.oia import read_split
from drive_vlm.data.samples import BadRow
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS, action_labels, read_answer, reason_labels

NAMES = ("00000001-00000001.jpg", "00000001-00000001_3.jpg", "00000002-00000002.jpg", "00000003-00000003_1.jpg")


def reason(*indices):
    return [int(i in indices) for i in range(21)]


def write_labels(folder, split="train", names=NAMES, categories=None, reasons=None, reason_names=None):
    """The two official files; ids run against the order of the names, as an index by position would not notice."""
    categories = categories or [[1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1, 1]][: len(names)]
    reasons = reasons or [reason(0), reason(7), reason(3, 9), reason()][: len(names)]
    last = len(names) - 1
    images = [{"id": last - i, "file_name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [{"category": category} for category in reversed(categories)]}
    rows = [{"file_name": name, "reason": values} for name, values in zip(reason_names or names, reasons, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_25k_images_actions.json").write_text(json.dumps(content))
    (folder / f"{split}_25k_images_reasons.json").write_text(json.dumps(rows[::-1]))
    return folder


def write_pictures(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        # No two alike: check_data knows pictures by their bytes.
        Image.new("RGB", (16, 8), (i % 16 * 16, i // 16 * 14, 9)).save(folder / name)


@pytest.fixture
def labels(tmp_path):
    write_pictures(tmp_path / "lastframe" / "data")
    return write_labels(tmp_path / "lastframe")


@pytest.fixture
def build(run_here, tmp_path, labels):
    def call(*flags, splits=("train",)):
        words = ("--labels", labels, "--out", tmp_path / "out", "--splits", *splits, *flags)
        return run_here("tools/build_bddoia.py", *words)

    return call


@pytest.fixture
def refused(build):
    def check(*flags, says, **more):
        done = build(*flags, **more)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert says in done.stderr.splitlines()[-1]

    return check


def rows_of(folder, split="train"):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_join_filter_and_row_form(build, tmp_path):
    done = build()
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == [name.removesuffix(".jpg") for name in NAMES[:3]]
    assert rows[1] == {
        "id": "00000001-00000001_3",
        "group": "00000001-00000001",
        "image": NAMES[1],
        "conversations": [
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": "Action: stop/slow down; Reason: traffic light"},
        ],
        "actions": [0, 1, 0, 0],
        "reason": reason(7),
    }
    assert rows[2]["actions"] == [0, 1, 1, 0] and rows[2]["reason"] == reason(3, 9)
    meta = json.loads((tmp_path / "out" / "train.meta.json").read_text())["bddoia_train"]
    assert (meta["length"], Path(meta["root"])) == (3, tmp_path / "lastframe" / "data")
    # The row marked as confusing is what the filters differ in; it has an action and no reason.
    assert (
        "train: 4 rows, 3 by the official rule; published are 16,082 rows, 16,028 by the official rule" in done.stdout
    )
    assert build("--filter", "any_action").returncode == 0 and len(rows_of(tmp_path / "out")) == 4
    assert rows_of(tmp_path / "out")[3]["conversations"][1]["value"] == "Action: move forward; turn right; Reason: "
    count = json.loads((tmp_path / "out" / "audit.json").read_text())["splits"]["train"]
    assert (count["official"], count["any_action"], count["all"], count["no_reason"]) == (3, 4, 4, 1)


def test_targets_and_questions(build, refused, tmp_path):
    assert build("--target", "labels", "--question", "What should the car do?").returncode == 0
    assert rows_of(tmp_path / "out")[0]["conversations"] == [
        {"from": "human", "value": "<image>\nWhat should the car do?"}
    ]
    refused("--target", "json", says="BDD-OIA has no descriptions. Give --descriptions FILE")
    file = tmp_path / "texts.jsonl"
    lines = [{"file_name": NAMES[0], "description": "A red  van."}, {"id": NAMES[1][:-4], "prediction": "A light."}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    refused("--target", "json", "--descriptions", file, says=f"has no description of {NAMES[2]}")
    done = build("--target", "json", "--descriptions", file, "--on_missing", "skip")
    assert done.returncode == 0 and "left out: 1 description_missing" in done.stdout, done.stderr
    row = rows_of(tmp_path / "out")[0]
    assert json.loads(row["conversations"][1]["value"]) == {
        "description": "A red van.",
        "action": "move forward",
        "justification": "follow traffic",
    }
    assert row["description"] == "A red van."
    file.write_text('{"id": "a"}\n')
    refused("--descriptions", file, says=f'{file}:1: not a description (expected {{"id", "description"}}')
    refused("--descriptions", tmp_path / "none.jsonl", says="none.jsonl: no such file")


def test_videos_in_two_splits_are_counted_and_named(build, labels, tmp_path):
    write_labels(labels, "val", NAMES[2:3])
    write_labels(labels, "test", ("00000009-00000009.jpg",))
    write_pictures(labels / "data", ("00000009-00000009.jpg",))
    done = build(splits=("train", "test"))
    assert "no video in more than one split" in done.stdout
    done = build(splits=("train", "val", "test"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "1 videos in more than one split" in said and "group '00000002-00000002' is in train and val" in said
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["shared_videos"] == 1


def test_lxmert_layout(build, labels, tmp_path):
    for file in labels.glob("*.json"):
        file.unlink()
    both = "train_25k_images_actions.json and train_25k_images_reasons.json (official)"
    assert f"neither {both} nor gt_4a_21r_train.json (LXMERT)" in refusal(labels)
    rows = {name.removesuffix(".jpg"): {"actions": [0, 0, 1, 0], "reason": reason(10)} for name in NAMES}
    (labels / "gt_4a_21r_train.json").write_text(json.dumps(rows))
    done = build()
    assert done.returncode == 0 and "published are 7,946 rows" in " ".join(done.stdout.split()), done.stderr
    assert [row["image"] for row in rows_of(tmp_path / "out")] == list(NAMES)
    assert (
        rows_of(tmp_path / "out")[0]["conversations"][1]["value"] == "Action: turn left; Reason: on the left-turn lane"
    )
    (labels / "gt_4a_21r_train.json").write_text('{"a": [1]}')
    assert "gt_4a_21r_train.json: not BDD-OIA's form" in refusal(labels)


def refusal(folder):
    with pytest.raises(ValueError) as caught:
        read_split(folder, "train")
    return str(caught.value)


def test_names_that_differ(labels):
    write_labels(labels, reason_names=("00000001-00000001.jpg", "00000007-00000007.jpg", *NAMES[2:]))
    assert refusal(labels) == (
        f"{labels}: the names differ: 1 only in train_25k_images_actions.json ({NAMES[1]}); 1 only in train_25k_images_reasons.json "
        "(00000007-00000007.jpg). Both files must be of one release"
    )
    write_labels(labels, reason_names=(NAMES[0], NAMES[0], *NAMES[2:]))
    assert f"4 rows have 3 names, e.g. {NAMES[0]} comes twice" in refusal(labels)


@pytest.mark.parametrize(
    ("changes", "reason_of", "says"),
    [
        ({"categories": [[1, 0, 0]] + [[1, 0, 0, 0]] * 3}, "bad_label", "actions: 3 numbers, expected 4 or 5 numbers"),
        ({"categories": [[1, 0, 0, 2]] + [[1, 0, 0, 0]] * 3}, "bad_label", "actions: 2 is neither 0 nor 1"),
        ({"reasons": [reason()[:20]] + [reason()] * 3}, "bad_label", "reason: 20 numbers, expected 21 numbers"),
        ({"names": ("00000001-00000001_b.jpg", *NAMES[1:])}, "bad_name", "00000001-00000001_b.jpg' is not that of a picture"),
        ({"names": ("00000001-00000001.bmp", *NAMES[1:])}, "bad_name", "00000001-00000001.bmp' is not that of a picture"),
    ],
    ids=["actions-3", "actions-of-2", "reason-20", "clip-b", "bmp"],
)  # fmt: skip
def test_labels_and_names_that_cannot_be_used(labels, changes, reason_of, says):
    write_labels(labels, **changes)
    bad = [row for row in read_split(labels, "train")[0] if isinstance(row, BadRow)]
    assert [row.reason for row in bad] == [reason_of] and says in str(bad[0]) and "--on_bad_row skip" in str(bad[0])


def test_a_bad_label_stops_the_build_or_is_counted(build, refused, labels, tmp_path):
    write_labels(labels, categories=[[1, 0, 0]] + [[1, 0, 0, 0]] * 3)
    refused(says=f"train_25k_images_actions.json: {NAMES[0]}: actions: 3 numbers")
    done = build("--on_bad_row", "skip")
    assert done.returncode == 0 and "left out: 1 bad_label" in done.stdout, done.stderr
    assert len(rows_of(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("actions", '{"images": [{"id": 5, "file_name": "a"}], "annotations": []}', "not BDD-OIA's form (IndexError"),
        ("actions", "[]", "not BDD-OIA's form (TypeError"),
        ("reasons", '[{"file_name": "a"}]', "not BDD-OIA's form (KeyError: 'reason')"),
        ("reasons", "{", "not valid JSON"),
    ],
    ids=["id", "list", "key", "json"],
)
def test_files_of_another_form_are_named(labels, file, text, says):
    (labels / f"train_25k_images_{file}.json").write_text(text)
    said = refusal(labels)
    assert says in said and f"train_25k_images_{file}.json" in said


def test_missing_pictures_stop_or_are_counted(build, refused, labels, tmp_path):
    (labels / "data" / NAMES[1]).unlink()
    refused(says=f"{labels}/data/{NAMES[1]} does not exist. Is --image_root the right folder?")
    assert not (tmp_path / "out" / "train.jsonl").exists()
    done = build("--on_missing", "skip")
    assert done.returncode == 0 and "left out: 1 image_missing" in done.stdout, done.stderr
    assert [row["image"] for row in rows_of(tmp_path / "out")] == [NAMES[0], NAMES[2]]
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert NAMES[1] in json.dumps(audit["bad_rows"]["rows"])


def test_clips_become_frames_that_end_with_the_labelled_one(build, refused, tmp_path):
    for name in NAMES[:3]:
        folder = tmp_path / "clips" / "part" / name.removesuffix(".jpg")
        folder.mkdir(parents=True)
        for number in range(21):
            Image.new("RGB", (16, 8), (number * 10,) * 3).save(folder / f"{number:03d}.png")
    flags = ("--clips", tmp_path / "clips", "--num_frames", 4)
    done = build(*flags)
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "out")[0]
    assert row["video"] == "frames_4/00000001-00000001" and row["conversations"][0]["value"] == "<video>"
    meta = json.loads((tmp_path / "out" / "train.meta.json").read_text())["bddoia_train"]
    frames = sorted((Path(meta["root"]) / row["video"]).iterdir())
    levels = [round(Image.open(frame).getpixel((0, 0))[0] / 10) for frame in frames]
    assert levels == [5, 10, 15, 20]
    (tmp_path / "clips" / "part" / "00000002-00000002").rename(tmp_path / "gone")
    refused(*flags, says="has no clip called 00000002-00000002. Is --clips the right folder?")
    done = build(*flags, "--on_missing", "skip")
    assert done.returncode == 0 and "left out: 1 video_missing" in done.stdout, done.stderr


def test_real_rows_of_the_kit(build, run, kit, tiny_families, tmp_path):
    """The 267 real rows, through the builder and the checks of rows, with SmolVLM's own template for a turn that is a picture."""

    def check(*flags):
        words = ("tools/check_data.py", "--model", tiny_families("smolvlm"), "--json", tmp_path / "check.json", *flags)
        checked = run([sys.executable, *words])
        assert checked.returncode == 0, checked.stdout + checked.stderr
        return json.loads((tmp_path / "check.json").read_text())

    folder = kit / "noncommercial" / "bddoia"
    found, _ = read_split(folder, "test")
    write_pictures(tmp_path / "pictures", [row.file_name for row in found])
    out = tmp_path / "out"
    words = ("--labels", folder, "--image_root", tmp_path / "pictures", "--splits", "test")
    done = build(*words, splits=("test",))
    assert done.returncode == 0, done.stderr
    rows = rows_of(out, "test")
    labels = json.loads((folder / "test_25k_images_actions.json").read_text())
    reasons = {
        row["file_name"]: row["reason"] for row in json.loads((folder / "test_25k_images_reasons.json").read_text())
    }
    category = {image["file_name"]: labels["annotations"][image["id"]]["category"] for image in labels["images"]}
    assert len(rows) == 267 and len({tuple(row["actions"]) for row in rows}) == 15
    for row in rows:
        assert (row["actions"], row["reason"]) == (category[row["image"]][:4], reasons[row["image"]])
        answer = read_answer(row["conversations"][1]["value"])
        assert list(action_labels(answer.actions).vector(len(ACTION_TEXTS))) == row["actions"]
        assert list(reason_labels(answer.reasons).vector(len(REASON_TEXTS))) == row["reason"]
    groups = [row["group"] for row in rows]
    assert sum(groups.count(group) == 3 for group in set(groups)) == 4
    assert check("--data", out / "test.meta.json", "--decode")["splits"]["train"]["bad_rows"]["total"] == 0
    done = build(*words, "--toy", splits=("test",))
    assert done.returncode == 0, done.stderr
    toy = {split: rows_of(out, split) for split in ("train", "test")}
    # 93 rows have one action and one reason: 8:2 by action, an eighth of the training rows.
    assert len(toy["test"]) == pytest.approx(0.2 * 93, abs=2) and len(toy["train"]) == pytest.approx(
        0.8 * 93 / 8, abs=2
    )
    # No id, video or picture is in both.
    check("--data", out / "train.meta.json", "--eval_data", out / "test.meta.json")
