"""tools/video_eval.py through its command line, with scores worked out by hand."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.rewards.detections import DetectedFrame, DetectedObject, Detector, VideoDetections, append_detections

TOOL = Path(__file__).parents[2] / "tools" / "video_eval.py"
DETECTOR = Detector("yolov8x.pt", "00", 640, 0.3, "ultralytics 8.4.190")
SEEN = {"a.mp4": ["car", "person"], "b.mp4": ["bus"], "c.mp4": []}
TRUTH = {"a.mp4": ["car"], "b.mp4": ["bus", "truck"], "c.mp4": ["car"]}
DETAILED = "Then a red car turns, and finally a bus stops."
CONCISE = "A car turns."


@pytest.fixture
def detections(tmp_path):
    path = tmp_path / "detections.jsonl"
    for video, names in SEEN.items():
        objects = tuple(DetectedObject(name, 0.9, (0, 0, 1, 1)) for name in names)
        append_detections(path, [VideoDetections(video, DETECTOR, (DetectedFrame(0, "", objects),))])
    return path


def write(path, said, truth=True, **changes):
    """`said`: {video: (detailed, concise)}."""
    rows = []
    for video, texts in said.items():
        for mode, text, reference in zip(("detailed", "concise"), texts, (DETAILED, CONCISE), strict=True):
            row = {"id": f"{video}-{mode}", "dataset": "toy", "video": video, "mode": mode, "group": video[0]}
            row |= {"prediction": text, "reference": reference}
            rows.append(row | ({"truth_classes": TRUTH.get(video, [])} if truth else {}) | changes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BEFORE = {  # claims detailed: car bus | car | (none); concise: car | bus | (none)
    "a.mp4": ("Then a red car turns, and finally a bus stops.", "A car turns."),
    "b.mp4": ("A car is there.", "A bus turns around on the road."),
    "c.mp4": ("", "The road is wide."),
}
AFTER = {
    "a.mp4": ("Then a red car turns, and a person stops.", "A car turns."),
    "b.mp4": ("A red bus is there.", "A bus."),
    "c.mp4": ("There are no cars.", ""),
}


@pytest.fixture
def evaluate(run_here, tmp_path, detections, spacy_model):
    def call(*flags, expect=0):
        out = tmp_path / "scores.json"
        words = [
            "--physics_detections",
            detections,
            "--spacy_model",
            spacy_model,
            "--json",
            out,
            *flags,
        ]
        done = run_here(TOOL, *words, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == expect, done.stderr[-2000:]
        return (json.loads(out.read_text()) if not expect else None), done

    return call


def test_numbers_by_hand(evaluate, tmp_path):
    files = [write(tmp_path / "before.jsonl", BEFORE), write(tmp_path / "after.jsonl", AFTER)]
    table, plot = tmp_path / "rows.csv", tmp_path / "plot.png"
    result, done = evaluate("--predictions", *files, "--csv", table, "--plot", plot)
    before, after = result["checkpoints"]["before"], result["checkpoints"]["after"]
    detailed = before["modes"]["detailed"]
    assert (detailed["n"], detailed["videos"], detailed["unverified"], detailed["empty"]) == (3, 3, 1, 1)
    # claims car, bus | car | none: verified car. wanted 2 | 1 | 0
    values = {name: entry["value"] for name, entry in detailed["objects"].items()}
    assert values == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "chair_i": 2 / 3, "chair_s": 2 / 3}
    )
    # exact: a has a car; b a bus and a truck; c a car: verified 1 of 3, wanted 1 | 2 | 1
    truth = {name: entry["value"] for name, entry in detailed["truth"].items()}
    assert (truth["precision"], truth["recall"]) == pytest.approx((1 / 3, 1 / 4))
    terms = {name: entry["mean"] for name, entry in detailed["terms"].items()}
    assert terms["object"] == pytest.approx((0.5 + 0 + 0) / 3)  # a: P 1/2, R 1/2
    assert terms["hallucination"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert (terms["temporal"], terms["detail"]) == pytest.approx((1 / 3, 1 / 3))  # a says the reference's own words
    assert terms["reward"] == pytest.approx((0.4 * 0.5 + 0.25 + 0.2 + 0.15 * 0.5) / 3)
    assert terms["words"] == pytest.approx((10 + 4 + 0) / 3)
    concise = before["modes"]["concise"]
    assert concise["objects"]["precision"]["value"] == 1 and concise["unverified"] == 1
    assert concise["no_reference"] == 3  # "A car turns." has no adjective
    assert before["modes"]["(all)"]["n"] == 6
    # a: 3 of 10 words, b: 7 of 4, c: no detailed text
    obeyed = before["adherence"]
    assert (obeyed["pairs"], obeyed["silent"], obeyed["unpaired"]) == (3, 1, 0)
    assert obeyed["ratio"]["value"] == pytest.approx((0.3 + 7 / 4) / 2)
    assert (obeyed["shorter"]["value"], obeyed["half"]["value"]) == pytest.approx((1 / 3, 1 / 3))
    assert after["adherence"]["shorter"]["value"] == 1
    # BLEU-1 over all: a says the reference's 10 words, of b's 4 "a" and "car" are there; c says nothing: 14 words for 30.
    overlap = detailed["text_overlap"]
    assert overlap["Bleu_1"]["value"] == pytest.approx(12 / 14 * math.exp(1 - 30 / 14), rel=1e-6)
    # One sum a video, so the interval runs from c drawn three times to a drawn three times.
    assert overlap["Bleu_1"]["low"] == pytest.approx(0, abs=1e-9) and overlap["Bleu_1"]["high"] == pytest.approx(1)
    assert (overlap["ROUGE_L"]["low"], overlap["ROUGE_L"]["high"]) == (0, 1)
    assert overlap.keys() == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    [change] = result["comparisons"]
    moved = change["modes"]["detailed"]["text_overlap"]
    for name, entry in after["modes"]["detailed"]["text_overlap"].items():
        assert moved[name]["value"] == pytest.approx(entry["value"] - overlap[name]["value"])
        assert moved[name]["low"] <= moved[name]["value"] <= moved[name]["high"]
    assert change["modes"]["detailed"]["objects"]["precision"]["value"] == pytest.approx(1 - 1 / 3)
    assert change["modes"]["detailed"]["terms"]["object"]["wins"] == 2
    assert change["modes"]["concise"]["terms"]["object"]["ties"] == 3
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[0]["false_claims"] == "bus" and rows[0]["missed"] == "person"
    assert float(rows[0]["object"]) == 0.5 and rows[4]["unverified"] == "1"
    assert Image.open(plot).size[0] > 500
    for reported in (
        "CHAIR_i",
        "objects against the exact classes",
        "median",
        "claim no object",
        "after - before",
        "F1, exact",
        "change of",
    ):
        assert reported in done.stdout, done.stdout
    assert re.search(r"CIDEr +│ +[+-]", done.stdout), done.stdout


def test_weights_and_one_mode_without_truth(evaluate, tmp_path):
    file = write(tmp_path / "p.jsonl", {"a.mp4": (DETAILED, CONCISE)}, truth=False, mode="detailed")
    result, done = evaluate("--predictions", file, "--physics_weights", 0, 0, 0, 2)
    [(mode, entry)] = result["checkpoints"]["p"]["modes"].items()
    assert mode == "detailed" and entry["truth"] is None and result["checkpoints"]["p"]["adherence"] is None
    assert entry["terms"]["reward"]["mean"] == pytest.approx(2 * (0.5 + 1) / 2)
    assert entry["terms"]["reward"]["low"] is None  # one video has no interval
    assert "exact" not in done.stdout


def test_a_video_without_detections_stops_or_is_counted(evaluate, tmp_path):
    file = write(tmp_path / "p.jsonl", BEFORE | {"x.mp4": (DETAILED, CONCISE)})
    _, done = evaluate("--predictions", file, expect=2)
    assert "p.jsonl:7: id 'x.mp4-detailed': no detections for 'x.mp4'" in done.stderr
    assert "2 rows in all; --on_missing skip" in done.stderr and "cache_detections.py" in done.stderr
    result, done = evaluate("--predictions", file, "--on_missing", "skip")
    assert result["checkpoints"]["p"]["rows_without_detections"] == 2
    assert result["checkpoints"]["p"]["modes"]["(all)"]["n"] == 6 and "2 rows left out, no detections" in done.stdout


def changed(path, **changes):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | (changes if i == 1 else {})) + "\n" for i, row in enumerate(rows)))
    return path


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"video": None}, "p.jsonl:2: id 'a.mp4-concise' has no \"video\""),
        ({"video": "b.mp4"}, "has another video or mode than at"),
        ({"reference": "Other."}, "has another reference than at"),
        ({"truth_classes": "car"}, "'truth_classes' must be a list of class names"),
        ({"truth_classes": ["wagon"]}, "class 'wagon' is not in the vocabulary"),
        ({"mode": "detailed"}, "has another video or mode than at"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_reported(evaluate, tmp_path, changes, reported):
    files = [write(tmp_path / "o.jsonl", BEFORE), changed(write(tmp_path / "p.jsonl", BEFORE), **changes)]
    _, done = evaluate("--predictions", *files, expect=2)
    assert reported in done.stderr and "Traceback" not in done.stderr


def test_two_texts_of_a_mode_and_other_ids(evaluate, tmp_path):
    _, done = evaluate("--predictions", changed(write(tmp_path / "p.jsonl", BEFORE), mode="detailed"), expect=2)
    assert "video 'a.mp4' has a second detailed text" in done.stderr
    files = [write(tmp_path / "o.jsonl", BEFORE), changed(write(tmp_path / "p.jsonl", BEFORE), id="new")]
    result, done = evaluate("--predictions", *files)
    assert result["checkpoints"]["p"]["ids_left_out"] == 1 and "1 ids left out" in done.stdout
    assert result["checkpoints"]["o"]["adherence"]["unpaired"] == 1


def test_texts_without_a_reference_are_scored_by_what_needs_none(evaluate, tmp_path):
    """All without one; then all but those of video a."""
    whole, _ = evaluate("--predictions", write(tmp_path / "p.jsonl", BEFORE))
    table, plot = tmp_path / "rows.csv", tmp_path / "plot.png"
    none, done = evaluate(
        "--predictions", write(tmp_path / "p.jsonl", BEFORE, reference=""), write(tmp_path / "q.jsonl", AFTER, reference=""),
        "--csv", table, "--plot", plot,
    )  # fmt: skip
    of_all, of_none = (result["checkpoints"]["p"]["modes"]["detailed"] for result in (whole, none))
    assert of_none["objects"] == of_all["objects"] and of_none["truth"] == of_all["truth"]
    for name in ("object", "hallucination", "words"):
        assert of_none["terms"][name] == of_all["terms"][name]
    assert [of_none["terms"][name] for name in ("temporal", "detail", "reward")] == [None] * 3
    assert (of_none["text_overlap"], of_none["without_reference"], of_none["no_reference"]) == (None, 3, 0)
    assert "6 of 6 texts have no reference" in done.stdout and plot.is_file()
    first = next(csv.DictReader(table.open()))
    assert (first["temporal"], first["reward"]) == ("", "") and first["object"]

    rows = [json.loads(line) for line in write(tmp_path / "p.jsonl", BEFORE).read_text().splitlines()]
    for row in rows:
        if row["video"] != "a.mp4":
            del row["reference"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = evaluate("--predictions", tmp_path / "p.jsonl")[0]["checkpoints"]["p"]["modes"]["detailed"]
    assert (some["terms"]["detail"]["n"], some["terms"]["object"]["n"], some["without_reference"]) == (1, 3, 2)
    assert some["terms"]["detail"]["mean"] == 1, "a says the reference's own words"


def two_captions(path):
    """As tools/build_bdd_captions.py names the texts of two captions of video a.mp4: a and a-2."""
    file = write(path, {"a.mp4": BEFORE["a.mp4"], "b.mp4": BEFORE["b.mp4"]})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["id"] = ("a-" if row["video"] == "a.mp4" else "a-2-") + row["mode"]
        row |= {"video": "a.mp4", "group": "a", "truth_classes": TRUTH["a.mp4"]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_two_captions_of_one_video_are_paired_by_their_ids(evaluate, tmp_path):
    result, _ = evaluate("--predictions", two_captions(tmp_path / "p.jsonl"))
    obeyed = result["checkpoints"]["p"]["adherence"]
    assert (obeyed["pairs"], obeyed["unpaired"]) == (2, 0)  # 3 of 10 words and 7 of 4
    assert obeyed["ratio"]["value"] == pytest.approx((0.3 + 7 / 4) / 2) and obeyed["ratio"]["low"] is None  # one group
    assert result["checkpoints"]["p"]["modes"]["detailed"]["videos"] == 1


@pytest.mark.parametrize(
    ("changes", "reported"),
    [({"id": "a-3-concise", "mode": "detailed"}, "a second detailed text"), ({"truth_classes": ["wagon"]}, "'wagon'")],
)
def test_rows_are_checked_before_any_text_is_parsed(
    evaluate, tmp_path, changes, reported, run, detections, spacy_model
):
    """A parser that cannot be asked: no row's fault may wait for it."""
    file = changed(write(tmp_path / "p.jsonl", BEFORE), **changes)
    stopped = (
        "import runpy, sys; from drive_vlm.rewards.text.driving_text import TextParser; "
        "TextParser.parse = lambda *_: sys.exit('parsed'); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [
        sys.executable,
        "-c",
        stopped,
        TOOL,
        "--predictions",
        file,
        "--physics_detections",
        detections,
        "--spacy_model",
        spacy_model,
    ]
    done = run(words, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2 and reported in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("flag", "value", "reported"),
    [
        ("--physics_processes", 0, "--physics_processes: must be at least 1, got 0"),
        ("--num_frames", 0, "--num_frames: must be at least 1"),
        ("--seed", -1, "--seed: must be at least 0"),
        ("--csv", "FOLDER", "FOLDER is a folder; name a file"),
        ("--json", "FOLDER/file/x/y", "file is not a folder"),
    ],
)
def test_flags_are_checked_before_anything_is_read(evaluate, tmp_path, flag, value, reported):
    (tmp_path / "file").touch()
    here = str(tmp_path)
    words = ["--predictions", tmp_path / "none.jsonl", flag, str(value).replace("FOLDER", here)]
    _, done = evaluate(*words, expect=2)
    assert reported.replace("FOLDER", here) in done.stderr and "Traceback" not in done.stderr


def test_clip_needs_the_videos(evaluate, tmp_path):
    file = write(tmp_path / "p.jsonl", BEFORE)
    _, done = evaluate("--predictions", file, "--clip_model", "ViT-B-32", expect=2)
    assert "--clip_model needs --image_root" in done.stderr


@pytest.mark.slow
def test_clip_scores_of_frames(evaluate, run, tmp_path):
    """An untaught CLIP is enough: what is asked is which texts and frames are compared."""
    rows = []
    for i, colour in enumerate(("red", "blue") * 12):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption_short": f"a {colour} car"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = ["--image_size", 32, "--width", 64, "--layers", 1, "--batch_size", 8, "--max_steps", 2]
    train = [sys.executable, TOOL.with_name("train_clip.py"), "--data", tmp_path / "captions.jsonl"]
    done = run([*train, "--out", tmp_path / "clip", *size], DRIVE_VLM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    for video in SEEN:
        (tmp_path / "videos" / video).mkdir(parents=True)
        for frame in range(3):
            Image.new("RGB", (32, 32), (80 * frame, 10, 10)).save(tmp_path / "videos" / video / f"{frame}.png")
    flags = ["--clip_model", tmp_path / "clip", "--image_root", tmp_path / "videos", "--num_frames", 2]
    result, done = evaluate(
        "--predictions", write(tmp_path / "p.jsonl", BEFORE), *flags, "--csv", tmp_path / "rows.csv"
    )
    clip = result["checkpoints"]["p"]["modes"]["detailed"]["clip"]
    assert clip.keys() == {"text_text", "text_frames"} and clip["text_frames"]["n"] == 3
    with (tmp_path / "rows.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["text_text"]) == pytest.approx(1, abs=1e-5)  # the prediction is the reference
    assert "text - frames" in done.stdout
    (tmp_path / "videos" / "b.mp4").rename(tmp_path / "videos" / "gone")
    _, done = evaluate("--predictions", tmp_path / "p.jsonl", *flags, expect=2)
    assert "p.jsonl:3: id 'b.mp4-detailed': the video" in done.stderr and "(--image_root)" in done.stderr
