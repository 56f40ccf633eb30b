"""tools/compare_stages.py through its command line on synthetic clips: page, pictures, numbers, and what it refuses."""

import importlib.util
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drive_vlm.rewards.detections import DetectionCache
from drive_vlm.rewards.physics import terms
from drive_vlm.rewards.text.driving_text import TextParser

TOOL = Path(__file__).parents[2] / "tools" / "compare_stages.py"
EVIL = "<script>alert('x')</script> & a $\\frac$ [red]truck[/red] then stops."


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(run, tmp_path_factory):
    """Six clips with split-entry rows, and exact detections of their frames."""
    out = tmp_path_factory.mktemp("clips") / "data"
    flags = ("--scenes", 0, "--clips", 6, "--split_entry", "--num_frames", 4, "--size", 64, "--workers", 1)
    formats = ("--clip_format", "frames", "--image_format", "png", "--splits", "test:1")
    done = run([sys.executable, "tools/build_synthetic.py", "--out", out, *flags, *formats])
    assert done.returncode == 0, done.stderr
    words = ["--data", out, "--out", out / "detections.jsonl", "--misses", 0, "--false_hits", 0]
    done = run([sys.executable, "tools/build_truth_detections.py", *words])
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def answers(data, tmp_path_factory):
    """Three files of predictions: of another clip, with a false object and markup, and the reference's own words."""
    folder = tmp_path_factory.mktemp("answers")
    rows = []
    for row in read(data / "split_entry_test.jsonl"):
        question, reference = (turn["value"].replace("<video>", "").strip() for turn in row["conversations"])
        kept = {key: row[key] for key in ("id", "video", "mode", "group")}
        rows.append(kept | {"dataset": "clips", "question": question, "reference": reference})
    reported = [rows[(i + 2) % len(rows)]["reference"] for i in range(len(rows))]
    write(folder / "s1.jsonl", [row | {"prediction": text} for row, text in zip(rows, reported, strict=True)])
    write(folder / "s2.jsonl", [row | {"prediction": EVIL} for row in rows])
    write(folder / "s3.jsonl", [row | {"prediction": row["reference"]} for row in rows])
    return [folder / f"s{i}.jsonl" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_stages", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compare(tool, data, spacy_model, tmp_path, monkeypatch, capfd):
    """`compare(*flags, expect=0) -> content of --json, or the error`: the command, in this process."""

    def start(*flags, expect=0, detections=data / "detections.jsonl"):
        words = [
            "--image_root",
            data,
            "--physics_detections",
            detections,
            "--spacy_model",
            spacy_model,
            "--out",
            tmp_path / "out",
        ]
        words += ["--json", tmp_path / "r.json", *flags]
        monkeypatch.setattr(sys, "argv", ["compare_stages.py", *map(str, words)])
        capfd.readouterr()
        try:
            tool.main()
            code = 0
        except SystemExit as end:
            code = end.code
        reported = capfd.readouterr()
        assert code == expect, reported.out[-1000:] + reported.err[-3000:]
        return json.loads((tmp_path / "r.json").read_text()) if not expect else reported.err

    return start


class Page(HTMLParser):
    """Tags, texts of marks by their class, and all text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.marks, self.text, self._open = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open, "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1][0] == "mark":
            self.marks.append((self._open[-1][1]["class"], data))


@pytest.mark.slow
def test_page_pictures_and_numbers(compare, answers, data, spacy_model, tmp_path):
    result = compare("--predictions", *answers, "--names", "stage 1", "<2>", "stage 3", "--limit", 2, "--num_frames", 3)
    cache, parser = DetectionCache.load(data / "detections.jsonl"), TextParser(spacy_model)
    rows = [read(path) for path in answers]
    videos = list(dict.fromkeys(row["video"] for row in rows[0]))[:2]
    assert result["checkpoints"] == ["stage 1", "<2>", "stage 3"] and [v["video"] for v in result["videos"]] == videos
    for entry in result["videos"]:
        assert [text["mode"] for text in entry["texts"]] == ["detailed", "concise"]
        for text in entry["texts"]:
            for name, file in zip(result["checkpoints"], rows, strict=True):
                [row] = [row for row in file if (row["video"], row["mode"]) == (entry["video"], text["mode"])]
                said, wanted = parser.parse([row["prediction"], row["reference"]])
                expected = terms(said, wanted, cache.classes(entry["video"]), parser.vocabulary)
                found = text["answers"][name]
                assert found["text"] == row["prediction"] and found["terms"]["words"] == said.words
                for key in ("reward", "object", "temporal", "detail", "hallucination", "precision", "recall"):
                    assert found["terms"][key] == pytest.approx(getattr(expected, key), abs=1e-12)
                assert tuple(found["terms"]["false_claims"]) == expected.false_claims
            assert text["answers"]["stage 3"]["terms"]["detail"] == pytest.approx(1)
            assert text["answers"]["stage 3"]["mentions"] == text["reference"]["mentions"]
        shown = {frame["index"]: frame for frame in entry["frames"]}
        looked = {frame.index: frame for frame in cache.entry(entry["video"]).frames}
        assert list(shown) == [0, 2, 3] and not any(frame["changed"] for frame in shown.values())
        for index, frame in shown.items():
            assert [thing["label"] for thing in frame["objects"]] == [o.label for o in looked[index].objects]
            assert [tuple(thing["box"]) for thing in frame["objects"]] == [o.box for o in looked[index].objects]
    page = Page(tmp_path / "out" / "index.html")
    assert all(tag != "script" for tag, _ in page.tags) and page.text.count(EVIL) == 4, "texts are shown as they are"
    boxes = sum(len(frame["objects"]) for entry in result["videos"] for frame in entry["frames"])
    names = [tag for tag, _ in page.tags]
    assert names.count("rect") == boxes > 0 and names.count("image") == names.count("svg") == 6
    pictures = [attrs["href"] for tag, attrs in page.tags if tag == "image"]
    assert all(href.startswith("data:image/jpeg;base64,") for href in pictures)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [entry["png"] for entry in result["videos"]]
    marks = [
        (mention["verdict"], part["text"][mention["start"] : mention["end"]])
        for entry in result["videos"]
        for text in entry["texts"]
        for part in (text["reference"], *text["answers"].values())
        for mention in part["mentions"]
    ]
    assert page.marks[5:] == marks, "the first five are the legend"
    assert {"hit", "false"} <= {verdict for verdict, _ in marks}
    for entry in result["videos"]:
        picture = np.asarray(Image.open(tmp_path / "out" / entry["png"]).convert("RGB")).astype(int)
        assert picture.shape[1] > 1500 and picture.shape[0] > 600
        strip = picture[80:400]
        assert (strip.std(axis=2) > 5).mean() > 0.1, "the frames are there, in colour"
        assert (picture[400:] < 100).all(axis=2).mean() > 0.005, "the texts are there"
        for colour in ((0x2B, 0x4A, 0x6F), (0xFB, 0xD5, 0xC5), (0xCF, 0xE3, 0xF7)):  # bars, false and true claims
            assert (picture == colour).all(axis=2).sum() > 100, colour


def test_files_of_one_name_are_one_checkpoint(compare, answers, tmp_path):
    """As generate writes answers about videos: a file a mode with the same ids, and no reference."""
    files = []
    for path in answers[::2]:
        for mode in ("concise", "detailed"):
            rows = [row | {"id": row["video"], "reference": ""} for row in read(path) if row["mode"] == mode]
            files.append(write(tmp_path / f"{path.stem}.{mode}.jsonl", rows))
    video = read(answers[0])[6]["video"]
    result = compare("--predictions", *files, "--names", "a", "a", "b", "b", "--ids", video)
    [entry] = result["videos"]
    assert entry["video"] == video and result["checkpoints"] == ["a", "b"]
    assert [text["mode"] for text in entry["texts"]] == ["detailed", "concise"]
    found = entry["texts"][0]["answers"]["b"]["terms"]
    assert found["no_reference"] == ["temporal", "detail"] and found["object"] > 0
    assert "n/a" in (tmp_path / "out" / "index.html").read_text()


def test_what_does_not_fit_is_reported(compare, answers, data, tmp_path):
    rows = read(answers[1])
    short = write(tmp_path / "short.jsonl", rows[1:])
    reported = compare("--predictions", answers[0], short, expect=2)
    assert f"short has no answer to id '{rows[0]['id']}'" in reported and "s1.jsonl:1" in reported
    compare("--predictions", answers[0], short, "--ids", rows[2]["group"])  # the others are not asked for
    reported = compare("--predictions", answers[0], "--ids", "clips/nine", expect=2)
    assert "no row has 'clips/nine' as id, video or group" in reported
    reported = compare(
        "--predictions", answers[0], write(tmp_path / "twice.jsonl", [*rows, rows[0] | {"id": "x"}]), expect=2
    )
    assert "twice.jsonl:13: id 'x': a second answer of twice" in reported
    other = write(tmp_path / "other.jsonl", [rows[0] | {"reference": "Other."}, *rows[1:]])
    assert (
        "other.jsonl:1" in (reported := compare("--predictions", answers[0], other, expect=2))
        and "another reference" in reported
    )
    novideo = write(tmp_path / "novideo.jsonl", [{key: rows[0][key] for key in ("id", "prediction", "reference")}])
    assert 'has no "video"' in compare("--predictions", novideo, expect=2)
    assert "--names has 1 names for 2 files" in compare("--predictions", *answers[:2], "--names", "a", expect=2)


@pytest.mark.slow
def test_videos_and_detections_that_are_missing(compare, answers, data, tmp_path):
    lines = (data / "detections.jsonl").read_text().splitlines(keepends=True)
    rows = read(answers[0])
    part = tmp_path / "part.jsonl"
    part.write_text("".join(line for line in lines if json.loads(line)["video"] != rows[0]["video"]))
    reported = compare("--predictions", answers[0], expect=2, detections=part)
    assert (
        "s1.jsonl:1: id" in reported
        and f"no detections for '{rows[0]['video']}'" in reported
        and "cache_detections.py" in reported
    )
    reported = compare("--predictions", answers[0], "--image_root", tmp_path, expect=2)
    assert (
        "s1.jsonl:1: id" in reported
        and "does not exist" in reported
        and "(--image_root)" in reported
        and reported.count("image_root") == 1
    )
    copy = tmp_path / "copy" / rows[0]["video"]
    copy.mkdir(parents=True)
    frames = sorted((data / rows[0]["video"]).iterdir())
    for frame in frames[:3]:
        (copy / frame.name).write_bytes(frame.read_bytes())
    reported = compare("--predictions", answers[0], "--image_root", tmp_path / "copy", "--limit", 1, expect=2)
    assert "the detections are of the frames [0, 1, 2, 3]" in reported and "frames are missing" in reported
    Image.new("RGB", (64, 64), "red").save(copy / frames[3].name)
    result = compare("--predictions", answers[0], "--image_root", tmp_path / "copy", "--limit", 1)
    assert [frame["changed"] for frame in result["videos"][0]["frames"]] == [False, False, False, True]
    assert "not the picture that was looked at" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_the_command_as_a_user_starts_it(run, data, answers, spacy_model, tmp_path):
    words = [sys.executable, TOOL, "--predictions", *answers[:2], "--names", "stage 1", "stage 2", "--limit", 2]
    words += ["--image_root", data, "--physics_detections", data / "detections.jsonl", "--spacy_model", spacy_model]
    done = run([*words, "--out", tmp_path])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stage 2" in done.stdout and "R_hall" in done.stdout and "index.html: 2 videos" in done.stdout
