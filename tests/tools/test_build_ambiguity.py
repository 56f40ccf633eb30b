"""tools/build_ambiguity.py through its command line; every row is read back by tests/builders/ambiguity_checker.py."""

import importlib.util
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.builders.synthetic.rows import truth_of
from drive_vlm.builders.synthetic.sample import make_scene
from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation.clarify_replies import FAIL, PASS, ClarifyRow, read_reply

TOOL = "tools/build_ambiguity.py"
SPEC = importlib.util.spec_from_file_location(
    "ambiguity_checker", Path(__file__).parents[1] / "builders" / "ambiguity_checker.py"
)
checker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checker)


def write_scenes(folder, scenes):
    """Truths as build_synthetic.py writes them; all pictures are one file, since only the boxes matter here."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (224, 224)).save(folder / "one.png")
    with open(folder / "scenes.jsonl", "w") as file:
        for i, scene in enumerate(scenes):
            os.link(folder / "one.png", folder / "images" / f"{i:06d}.png")
            file.write(json.dumps({**scene, "image": f"images/{i:06d}.png"}) + "\n")
    return folder


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def problems_of(rows, truth, **flags):
    return [problem for row in rows for problem in checker.check(row, truth, **flags)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    scenes = (truth_of(make_scene(0, i)) for i in range(2400))
    return write_scenes(tmp_path_factory.mktemp("world") / "data", scenes)


def synthetic(world):
    """Flags that read the scenes of `world`."""
    return ("--source", "synthetic", "--data", world / "scenes.jsonl", "--min_side", 12)


@pytest.fixture
def build(run_here, tmp_path):
    return lambda *flags, out="out": run_here(TOOL, "--out", tmp_path / out, *flags)


@pytest.fixture
def refused(build, tmp_path):
    def check(*flags, says):
        done = build(*flags)
        assert done.returncode == 2, done.stdout
        assert all(part in done.stderr.splitlines()[-1] for part in says), done.stderr
        assert not list((tmp_path / "out").glob("*.jsonl"))

    return check


@pytest.mark.slow
def test_a_thousand_rows_hold_for_a_second_reader(run, world, tmp_path):
    source = (*synthetic(world), "--splits", "train:0.7", "val:0.3", "--out", tmp_path / "out")
    done = run([sys.executable, TOOL, *source, "--json", tmp_path / "counts.json"], timeout=400)
    assert done.returncode == 0, done.stderr
    parts = {split: rows_of(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "val")}
    rows = [row for part in parts.values() for row in part]
    truth = checker.synthetic_truth(world / "scenes.jsonl")
    assert len(rows) >= 1000
    assert problems_of(rows, truth, min_side=12) == []
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    for split, part in parts.items():
        # Each text as often ambiguous as clear, so that no text gives it away.
        texts = defaultdict(Counter)
        for row in part:
            texts[row["question"]][row["ambiguous"]] += 1
            parse_row(row, row["id"], str(world))
        assert all(count[0] == count[1] for count in texts.values()), split
        assert {row["level"] for row in part} >= {0, 1, 2}
        for row in part:
            if row["ambiguous"]:
                twin = by_id[row["twin"]]
                target = twin["candidates"][twin["target"]]
                assert twin["type"] == "twin" and twin["image"] == row["image"]
                assert target["box"] in [candidate["box"] for candidate in row["candidates"]]
    assert not {row["group"] for row in parts["train"]} & {row["group"] for row in parts["val"]}
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["leak"]["balanced_accuracy"] <= 0.55 and audit["leak"]["rows"] == len(rows)
    assert audit["questions"]["left_out"]["attribute_missing"] > 0 and audit["instances"]["left_out"]["small_side"] > 0
    assert json.loads((tmp_path / "counts.json").read_text())["rows"] == audit["rows"]
    gold = Counter(row["gold_choice"] for row in rows)
    assert min(gold.values()) > 0.2 * len(rows)
    check_dialogues(rows_of(tmp_path / "out" / "dialogues_val.jsonl"), parts["val"], truth)
    check_readings(rows)


def check_readings(rows):
    """Each row's own clarification, answer and wrong choices, as evaluation and rewards read them from words alone."""
    for columns in rows:
        row, gold = ClarifyRow.read(columns, columns["id"]), columns["choices"][columns["gold_choice"]]
        for text in columns["choices"]:
            reading = read_reply(row, text)
            found = (reading.strategy, reading.factual)
            if text == gold:
                assert found == (4, PASS), (columns["id"], text, reading.parts)
                assert reading.right_answer is not row.ambiguous
                assert not row.ambiguous or (reading.resolves and not reading.leading and not reading.echo), columns[
                    "id"
                ]
            elif row.ambiguous:
                # The question about what is not there, and silent picks of one reading.
                assert found == ((2, FAIL) if reading.asked else (1, PASS)), (columns["id"], text)
            elif reading.asked or row.type == "missing_referent":
                # The needless question back, the absent one, and an answer about what is not there.
                assert reading.strategy == 1, (columns["id"], text)
            else:
                assert found == (4, FAIL), (columns["id"], text)


def check_dialogues(dialogues, rows, truth):
    """Each ambiguous row with a reply that means one candidate, and its answer."""
    assert [row["id"] for row in dialogues] == [f"{row['id']}-dialogue" for row in rows if row["ambiguous"]]
    for row in dialogues:
        size, things = truth[row["image"]]
        good, _ = checker.prepare(size, things, 12)
        reply, answer = (message["content"] for message in row["messages"][2:])
        (meant,) = checker.resolve(f"t{reply[1:-1]}", good, size[0])
        assert answer == checker.said(row["attribute"], meant)
        assert list(map(float, meant["box"])) == row["candidates"][row["target"]]["box"]


def test_the_second_reader_sees_what_is_wrong(build, world, tmp_path):
    flags = (*synthetic(world), "--limit", 500)
    assert build(*flags, "--balance", "none", "--on_leak", "warn").returncode == 0
    truth = checker.synthetic_truth(world / "scenes.jsonl")
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    ambiguous = next(row for row in rows if row["ambiguous"] and row["attribute"] == "side" and row["level"] == 2)
    twin = next(row for row in rows if row["id"] == ambiguous["twin"])
    turns = ambiguous["messages"]
    for wrong in (
        {**ambiguous, "messages": [{"content": twin["messages"][0]["content"]}, turns[1]]},
        {**ambiguous, "messages": [turns[0], {"content": "Do you mean the horse or the deer?"}]},
        {**ambiguous, "candidates": ambiguous["candidates"][:1]},
        {**twin, "messages": [turns[0], twin["messages"][1]]},
        {**twin, "messages": [twin["messages"][0], {"content": "It is nowhere."}]},
        {**ambiguous, "choices": ambiguous["choices"][::-1]},
    ):
        assert problems_of([wrong], truth, min_side=12)


def test_missing_and_deictic_questions(build, world, tmp_path):
    flags = (*synthetic(world), "--limit", 800, "--splits", "train:1")
    done = build(*flags, "--types", "missing_referent", "deictic", "--attributes", "color", "side")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert problems_of(rows, checker.synthetic_truth(world / "scenes.jsonl"), min_side=12) == []
    kinds = Counter(row["type"] for row in rows)
    assert kinds["missing_referent"] > 5 and any("that one" in row["question"] for row in rows if row["ambiguous"])
    missing = next(row for row in rows if row["type"] == "missing_referent")
    assert missing["ambiguous"] == 0 and missing["messages"][1]["content"].startswith("There is no ")


def test_misspelt_words_and_the_first(build, world, tmp_path):
    """The same words are ambiguous about one picture and clear about another; without the flag the other rows are the same."""
    flags = (*synthetic(world), "--limit", 600, "--splits", "train:0.7", "val:0.3")
    assert build(*flags, "--types", "spelling", "intent").returncode == 0
    assert build(*flags, out="plain").returncode == 0
    truth, kinds = checker.synthetic_truth(world / "scenes.jsonl"), Counter()
    for split in ("train", "val"):
        rows = rows_of(tmp_path / "out" / f"{split}.jsonl")
        own = [row for row in rows if row["type"] in ("spelling", "intent")]
        assert problems_of(own, truth, min_side=12) == []
        check_readings(own)
        check_dialogues(rows_of(tmp_path / "out" / f"dialogues_{split}.jsonl"), rows, truth)
        texts = defaultdict(Counter)
        for row in own:
            texts[row["question"]][row["ambiguous"]] += 1
            kinds[row["type"], row["ambiguous"]] += 1
        assert all(count[0] == count[1] for count in texts.values()) and own, split
        ids = {row["id"] for row in rows} - {row["id"] for row in own}
        assert ids == {row["id"] for row in rows_of(tmp_path / "plain" / f"{split}.jsonl")}
    assert min(kinds.values()) > 5 and len(kinds) == 4, kinds
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["leak"]["balanced_accuracy"] <= 0.55
    assert audit["questions"]["left_out"].keys() >= {"reading_unclear", "nearest_unclear", "doubtful"}
    assert audit["questions"]["found"]["spelling ambiguous"] > 5
    # The second reader sees what is wrong with such rows.
    by_label = {(row["type"], row["ambiguous"]): row for row in own}
    for kind in ("spelling", "intent"):
        asks, answers = by_label[kind, 1], by_label[kind, 0]
        for wrong in (
            {**asks, "image": answers["image"]},
            {**answers, "image": asks["image"]},
            {**asks, "messages": [asks["messages"][0], answers["messages"][1]]},
            {**answers, "messages": [answers["messages"][0], {"content": "It is nowhere."}]},
            {**asks, "candidates": asks["candidates"][:1]},
        ):
            assert problems_of([wrong], truth, min_side=12)


def test_a_text_that_leaks_is_refused(build, refused, world, tmp_path):
    flags = (*synthetic(world), "--limit", 600, "--balance", "none")
    refused(*flags, says=("the text alone shows what is ambiguous", "telling words", "--on_leak warn"))
    done = build(*flags, "--on_leak", "warn", out="warned")
    assert done.returncode == 0 and "warning: the text alone" in done.stdout
    audit = json.loads((tmp_path / "warned" / "audit.json").read_text())
    assert audit["leak"]["balanced_accuracy"] > 0.55 and audit["leak"]["problem"]


@pytest.mark.kit
def test_the_key_objects_of_drivelm(build, kit, tmp_path):
    data = kit / "noncommercial" / "drivelm" / "train_sample.json"
    done = build("--source", "drivelm", "--data", data, "--balance", "none", "--splits", "train:1")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    assert problems_of(rows, checker.drivelm_truth(data)) == []
    assert len({row["id"] for row in rows}) == len(rows)
    ambiguous = [row for row in rows if row["ambiguous"]]
    # Of the four key frames one camera sees several key objects of a class, none of which stands out: two cars and a truck.
    assert {row["image"].split("/")[1] for row in ambiguous} == {"CAM_BACK"} and len({row["image"] for row in rows}) > 1
    assert {row["attribute"] for row in ambiguous} == {"color", "state", "side"}
    assert "leak check not made" in done.stdout


def bdd(tmp_path, *labels, size=(1280, 720)):
    (tmp_path / "bdd").mkdir()
    Image.new("RGB", size).save(tmp_path / "bdd" / "0000f77c-6257be58.jpg")
    boxes = [
        {"category": name, "attributes": more, "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
        for name, box, more in labels
    ]
    file = tmp_path / "bdd" / "labels.json"
    file.write_text(json.dumps([{"name": "0000f77c-6257be58.jpg", "labels": boxes}]))
    return ("--source", "bdd100k", "--data", file, "--balance", "none", "--splits", "train:1")


LIGHTS = (
    ("traffic light", (100, 100, 140, 200), {"trafficLightColor": "red"}),
    ("traffic light", (700, 100, 740, 200), {"trafficLightColor": "G"}),
)


def test_two_lights_of_different_color(build, tmp_path):
    done = build(*bdd(tmp_path, *LIGHTS))
    assert done.returncode == 0, done.stderr
    rows = {row["attribute"]: row for row in rows_of(tmp_path / "out" / "train.jsonl") if row["ambiguous"]}
    assert rows["color"]["description"] == rows["side"]["description"] == "the traffic light"
    expected = "Do you mean the traffic light on the left or the traffic light in the middle?"
    assert rows["color"]["clarification"] == expected
    assert list(rows["color"]["answers"].values()) == ["It is red.", "It is green."]
    assert rows["side"]["clarification"] == "Do you mean the red traffic light or the green traffic light?"
    assert rows["side"]["group"] == "0000f77c-6257be58"


def test_a_system_turn_stands_before_the_others(build, refused, tmp_path):
    flags = bdd(tmp_path, *LIGHTS)
    own = tmp_path / "own.txt"
    own.write_text("Be brief.\n")
    rules = (Path(TOOL).parent / "prompts" / "clarify_system_rules.txt").read_text().strip()
    for name, text in (("rules", rules), (own, "Be brief."), ("none", None)):
        assert build(*flags, "--system_prompt", name).returncode == 0
        for file in ("train", "dialogues_train"):
            for row in rows_of(tmp_path / "out" / f"{file}.jsonl"):
                turns = row["messages"]
                if text is not None:
                    assert turns[0] == {"role": "system", "content": text}
                    turns = turns[1:]
                assert turns[0]["role"] == "user" and row["question"] in turns[0]["content"]
                assert parse_row(row, row["id"], str(tmp_path / "bdd")).turns[-1].role == "assistant"
        shutil.rmtree(tmp_path / "out")
    refused(
        *flags, "--system_prompt", "absent.txt", says=("--system_prompt absent.txt", "accurate, rules or a text file")
    )


def test_four_are_level_three(build, tmp_path):
    cars = [("car", (100 + 300 * i, 300, 200 + 300 * i, 360 + 20 * i), {}) for i in range(3)]
    done = build(*bdd(tmp_path, *cars, ("bus", (980, 300, 1080, 460), {})))
    assert done.returncode == 0, done.stderr
    row = next(row for row in rows_of(tmp_path / "out" / "train.jsonl") if row["question"].endswith("the vehicle?"))
    assert row["level"] == 3 and len(row["candidates"]) == 4
    assert row["clarification"] == "There are 4 vehicles: do you mean the nearest vehicle or another?"
    assert list(row["answers"]) == ["the leftmost vehicle", "the second vehicle from the left", "the third vehicle from the left", "the bus"]  # fmt: skip


def test_the_largest_and_the_same_answer_are_clear(build, tmp_path):
    big, small = (100, 300, 500, 500), (700, 300, 760, 360)
    done = build(*bdd(tmp_path, ("car", big, {}), ("car", small, {}), ("person", (900, 300, 940, 400), {})))
    assert done.returncode == 2 and "one stands out" in done.stderr


def test_boxes_of_detections(build, tmp_path):
    from drive_vlm.rewards.detections import DetectedFrame, DetectedObject, Detector, VideoDetections, append_detections

    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    boxes = [
        ("car", 0.9, (10, 100, 110, 200)),
        ("truck", 0.8, (300, 100, 400, 200)),
        ("car", 0.2, (500, 100, 600, 200)),
    ]
    frame = DetectedFrame(0, "0", tuple(DetectedObject(*box) for box in boxes))
    entry = VideoDetections("a.jpg", Detector("x.pt", "0", 640, 0.1, "1"), (frame,))
    video = VideoDetections("a.mp4", entry.detector, (frame, frame))
    append_detections(tmp_path / "cache.jsonl", [entry, video])
    flags = ("--source", "detections", "--data", tmp_path / "cache.jsonl", "--balance", "none", "--splits", "train:1")
    done = build(*flags)
    assert done.returncode == 2 and "2 frames of a video" in done.stderr
    done = build(*flags, "--on_bad_row", "skip")
    assert done.returncode == 0, done.stderr
    (row, *_) = rows_of(tmp_path / "out" / "train.jsonl")
    # The third car is not sure enough to be meant; a clear question about it would not be clear.
    assert row["clarification"] == "Do you mean the car or the truck?" and row["attribute"] == "side"
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["instances"]["left_out"] == {"low_score": 1}
    assert audit["bad_rows"]["by_reason"] == {"not_a_picture": 1}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([("car", (1200, 300, 1400, 400), {})], ("leaves the picture", "1280 x 720", "--on_bad_row skip")),
        ([("car", (200, 300, 200, 400), {})], ("has no area",)),
        ([("car", (10, 10, 90, 90), {}), ("person", (10, 10, 90, 90), {})], ("No picture has two instances",)),
        ([("car", (10, 10, 20, 20), {}), ("car", (90, 10, 99, 20), {})], ("2 small_side", "--min_side")),
    ],
    ids=["outside", "empty", "no_two", "small"],
)  # fmt: skip
def test_boxes_that_cannot_be_used(refused, tmp_path, labels, says):
    refused(*bdd(tmp_path, *labels), says=says)


def test_missing_attributes_are_named(refused, tmp_path):
    lights = [(name, box, {}) for name, box, _ in LIGHTS]
    refused(*bdd(tmp_path, *lights), "--attributes", "color", says=("attribute is missing", "1 attribute_missing"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--attributes", "colour"), ("--attributes colour", "color, state, side")),
        (("--types", "mood"), ("--types mood", "missing_referent, deictic, spelling, intent")),
        (("--splits", "train:0.5"), ("sum to 1",)),
    ],
    ids=["attribute", "type", "split"],
)
def test_flags_that_are_refused(refused, tmp_path, flags, says):
    refused(*bdd(tmp_path, *LIGHTS), *flags, says=says)


def test_files_that_are_refused(refused, build, tmp_path):
    for source, content, says in (
        ("synthetic", '{"id": "a"}\n', "not a scene"),
        ("synthetic", "", "holds no picture"),
        ("bdd100k", "{}", "expected BDD100K's list"),
        ("bdd100k", '[{"labels": []}]', 'no "name"'),
        ("drivelm", "[]", "expected {scene"),
        ("detections", "{}\n", "the line has no key"),
    ):
        (tmp_path / "file.json").write_text(content)
        refused("--source", source, "--data", tmp_path / "file.json", says=(says,))
    refused("--source", "bdd100k", "--data", tmp_path / "none.json", says=("cannot be read",))
    flags = bdd(tmp_path, *LIGHTS)
    (tmp_path / "bdd" / "0000f77c-6257be58.jpg").unlink()
    refused(*flags, says=("does not exist", "--image_root"))
    assert "no picture that can be used" in build(*flags, "--on_missing", "skip").stderr


def test_help_has_examples(run):
    done = run([sys.executable, TOOL, "--help"])
    assert done.returncode == 0 and "--source drivelm" in done.stdout and "--on_leak" in done.stdout
