"""train_clip and clip_eval end to end on coloured shapes, and the errors a user meets."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

TOOLS = Path(__file__).parents[2] / "tools"
COLOURS = ("red", "green", "blue", "yellow", "white", "orange")
SHAPES = ("circle", "square")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "DRIVE_VLM_CACHE": cache, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def call(environment):
    def run(tool, *flags):
        command = [sys.executable, str(TOOLS / tool), *map(str, flags)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def draw(path, colour, shape, shift):
    image = Image.new("RGB", (64, 64))
    box = (12 + shift, 12, 44 + shift, 44)
    (ImageDraw.Draw(image).ellipse if shape == "circle" else ImageDraw.Draw(image).rectangle)(box, fill=colour)
    image.save(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """96 pictures, every colour and shape at eight places, with captions."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    rows = []
    for shift in range(8):
        for colour in COLOURS:
            for shape in SHAPES:
                name = f"images/{len(rows):03d}.png"
                draw(root / name, colour, shape, shift)
                rows.append({"image": name, "caption_short": f"a {colour} {shape}"})
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def clip(world, call):
    """A CLIP that knows these shapes, from the real command line."""
    size = ["--image_size", 32, "--width", 64, "--layers", 1, "--batch_size", 24, "--max_steps", 60]
    flags = ["--data", world / "captions.jsonl", "--out", world / "clip", "--json", world / "clip.json"]
    done = call("train_clip.py", *flags, *size, "--learning_rate", 3e-3)
    assert done.returncode == 0, done.stderr
    return world / "clip"


def predictions(world, name, wrong_every):
    """The first 36 captions as references; every `wrong_every`-th prediction names another colour."""
    rows = []
    for i, line in enumerate((world / "captions.jsonl").read_text().splitlines()[:36]):
        row = json.loads(line)
        said = row["caption_short"]
        if i % wrong_every == 0:
            said = said.replace(said.split()[1], COLOURS[(COLOURS.index(said.split()[1]) + 1) % len(COLOURS)])
        item = {"id": i, "dataset": "circles" if "circle" in said else "squares", "prediction": said}
        rows.append({**item, "reference": row["caption_short"], "image": row["image"].removeprefix("images/")})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_train_clip_learns(clip, world):
    result = json.loads((world / "clip.json").read_text())
    assert result["last_loss"] < result["first_loss"]
    assert result["retrieval"]["r_at_1"] > 2 * result["retrieval"]["chance_r_at_1"]
    assert {path.name for path in clip.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}


@pytest.mark.slow
def test_compare_two_checkpoints(world, clip, call, tmp_path):
    before = write(tmp_path / "before.jsonl", predictions(world, "before", 1))
    after = write(tmp_path / "after.jsonl", predictions(world, "after", 6)[:34])
    flags = ["--predictions", before, after, "--image_root", world / "images", "--clip_model", clip]
    out = ["--out", tmp_path / "new" / "scores.csv", "--plot", tmp_path / "scores.png", "--json", tmp_path / "s.json"]
    done = call("clip_eval.py", *flags, *out)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["encoded"] == {"texts": 12, "images": 34}
    [change] = result["comparisons"]
    assert change["text_text"]["low"] > 0 and change["text_image"]["low"] > 0
    assert change["text_text"]["n"] == 34 and change["text_text"]["losses"] == 0
    reported = {name: list(entry["counts"].values()) for name, entry in result["checkpoints"].items()}
    assert reported == {"before": [2, 0, 0], "after": [0, 0, 0]}
    datasets = result["checkpoints"]["after"]["datasets"]
    assert list(datasets) == ["circles", "squares", "(all)"]
    assert datasets["(all)"]["text_image"]["above_shuffled"]["low"] > 0
    assert "2 ids left out" in done.stdout

    rows = list(csv.DictReader((tmp_path / "new" / "scores.csv").open()))
    assert list(rows[0]) == ["id", "dataset", "checkpoint", "text_text", "text_image", "truncated"]
    assert len(rows) == 68 and {row["checkpoint"] for row in rows} == {"before", "after"}
    right = [float(row["text_text"]) for row in rows if row["checkpoint"] == "after" and int(row["id"]) % 6]
    assert right == pytest.approx([1.0] * len(right), abs=1e-5)
    mean = sum(float(row["text_text"]) for row in rows if row["checkpoint"] == "after") / 34
    assert mean == pytest.approx(datasets["(all)"]["text_text"]["mean"], abs=1e-5)
    with Image.open(tmp_path / "scores.png") as plot:
        assert plot.width > 800 and len(plot.convert("L").resize((64, 64)).getcolors()) > 10


@pytest.mark.slow
def test_paths_with_the_folder_name(world, clip, call, tmp_path):
    """ "images/000.png" with --image_root .../images is found; when both readings exist it is an error."""
    rows = [{**row, "image": "images/" + row["image"]} for row in predictions(world, "p", 2)[:4]]
    path = write(tmp_path / "p.jsonl", rows)
    flags = ["--predictions", path, "--out", tmp_path / "s.csv", "--clip_model", clip]
    direct = call("clip_eval.py", *flags, "--image_root", world)
    assert direct.returncode == 0, direct.stderr
    first = (tmp_path / "s.csv").read_text()
    assert call("clip_eval.py", *flags, "--image_root", world / "images").returncode == 0
    assert (tmp_path / "s.csv").read_text() == first

    twice = tmp_path / "images"
    (twice / "images").mkdir(parents=True)
    for folder in (twice, twice / "images"):
        draw(folder / "000.png", "red", "circle", 0)
    done = call("clip_eval.py", *flags, "--image_root", twice)
    assert done.returncode == 2 and "may be" in done.stderr and f"{path}:1: id '0'" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": "nothing.png"}, "no picture"),
        ({"image": "../captions.jsonl"}, "leaves the image root"),
        ({"image": "/etc/hostname"}, "leaves the image root"),
        ({"image": []}, "leave text-only rows out"),
        ({"image": "broken.png"}, "cannot be decoded"),
        ({"prediction": None}, '"prediction" must be a text'),
        ({"reference": " "}, '"reference" is empty'),
        ({"id": 0}, "came before"),
    ],
)
def test_bad_rows_are_named(world, clip, call, tmp_path, change, words):
    (world / "images" / "broken.png").write_bytes((world / "images" / "000.png").read_bytes()[:60])
    rows = predictions(world, "p", 2)[:3]
    rows[2] |= change
    path = write(tmp_path / "p.jsonl", rows)
    flags = ["--predictions", path, "--image_root", world / "images", "--out", tmp_path / "s.csv", "--clip_model", clip]
    done = call("clip_eval.py", *flags)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert f"{path}:3: id '{rows[2]['id']}'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "s.csv").exists()


def test_an_empty_prediction_is_scored_and_reported(world, clip, call, tmp_path):
    rows = predictions(world, "p", 2)[:3]
    rows[1]["prediction"] = ""
    path = write(tmp_path / "p.jsonl", rows)
    flags = ["--predictions", path, "--image_root", world / "images", "--out", tmp_path / "s.csv", "--clip_model", clip]
    done = call("clip_eval.py", *flags)
    assert done.returncode == 0 and "1 empty predictions" in done.stdout


@pytest.mark.slow
def test_without_weights_the_error_tells_the_ways_out(world, call, tmp_path, environment):
    """Offline the default model cannot be had; never a random one in its place."""
    path = write(tmp_path / "p.jsonl", predictions(world, "p", 2)[:3])
    environment["HF_HOME"] = str(tmp_path)
    done = call("clip_eval.py", "--predictions", path, "--image_root", world / "images", "--out", tmp_path / "s.csv")
    assert done.returncode == 2 and not (tmp_path / "s.csv").exists()
    assert "--clip_pretrained FILE" in done.stderr and "train_clip.py" in done.stderr


@pytest.mark.fresh("what it imports is looked at")
def test_help_is_quick_and_loads_no_torch(environment):
    for tool in ("clip_eval", "qa_eval", "train_clip"):
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['x', '--help']\n"
            "try:\n"
            f"    runpy.run_path({str(TOOLS / (tool + '.py'))!r}, run_name='__main__')\n"
            "except SystemExit as stop:\n"
            "    assert not stop.code\n"
            "assert not {'torch', 'open_clip', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "FRESH_PYTHON": "1"},
        )
        assert done.returncode == 0 and "examples:" in done.stdout, done.stderr
