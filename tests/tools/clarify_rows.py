"""Rows of twelve scenes with two cars each, what two models say of them, and the tool on them: for the tests of tools/clarify_eval.py."""

import json
from pathlib import Path

import pytest
from PIL import Image

from drive_vlm.data.predictions import prediction_row
from drive_vlm.data.samples import parse_row

TOOL = Path(__file__).parents[2] / "tools" / "clarify_eval.py"
SCENES = 12
COLORS = ("red", "blue", "white")
ASKS = "Do you mean the car on the left or the car on the right?"
EVIL = "<script>alert('x')</script> It is green. [red]x[/red] $\\frac$"


def thing(side, color):
    box = {"left": [4.0, 30.0, 24.0, 46.0], "right": [40.0, 30.0, 56.0, 42.0]}[side]
    attributes = {"color": color, "kind": "car", "side": side}
    return {"box": box, "category": "vehicle", "attributes": attributes, "name": f"the car on the {side}"}


def scene_rows(i):
    """The ambiguous row of a scene, its twin about the left car, and one about a bus that is not there."""
    things = [thing("left", COLORS[i % 3]), thing("right", COLORS[(i + 1) % 3])]
    answers = {item["name"]: f"It is {item['attributes']['color']}." for item in things}
    shared = {
        "group": f"scene-{i}", "image": f"images/{i}.png", "class": "vehicle", "attribute": "color", "candidates": things,
        "weather": ("sun", "rain")[i % 2], "gold_choice": i % 4,
    }  # fmt: skip

    def row(name, question, said, columns):
        choices = [
            said,
            "Do you mean the bus or the truck?",
            f"It is {COLORS[(i + 2) % 3]}.",
            "Do you mean the van or the bus?",
        ]
        choices[0], choices[i % 4] = choices[i % 4], choices[0]
        turns = [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": said}]
        return {"id": f"{i}-{name}", **shared, "messages": turns, "question": question, "choices": choices, **columns}

    left, none = answers["the car on the left"], "There is no bus in the picture."
    two = {
        "ambiguous": 1,
        "level": 2,
        "type": "ambiguous",
        "target": None,
        "answer": "",
        "answers": answers,
        "clarification": ASKS,
    }
    clear = {"ambiguous": 0, "level": 0, "answers": {}, "clarification": ""}
    one = clear | {"type": "twin", "target": 0, "answer": left, "description": "the car on the left"}
    bus = clear | {"type": "missing_referent", "target": None, "answer": none, "description": "the bus"}
    return [
        row("two", "What color is the car?", ASKS, two | {"description": "the car"}),
        row("left", "What color is the car on the left?", left, one),
        row("bus", "What color is the bus?", none, bus),
    ]


ROWS = [row for i in range(SCENES) for row in scene_rows(i)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def predictions(path, rows, reply):
    """What generate writes: a row is read, its nulls are gone, and its columns stay."""
    made = []
    for number, row in enumerate(rows):
        sample = parse_row(row, f"{path}:{number + 1}", "")
        sample.columns.update({"dataset": "clarify", "_image": row["image"]})
        made.append(prediction_row(sample, reply(row)))
    return write(path, made)


@pytest.fixture
def world(tmp_path):
    folder = tmp_path / "world"
    (folder / "images").mkdir(parents=True)
    for i in range(SCENES):
        Image.new("RGB", (64, 64), (10 * i, 90, 60)).save(folder / "images" / f"{i}.png")
    write(folder / "val.jsonl", ROWS)
    return folder


@pytest.fixture
def evaluate(run_here, tmp_path):
    def call(*flags, expect=0):
        out = tmp_path / "scores.json"
        done = run_here(TOOL, "--json", out, *flags, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == expect, done.stderr[-2000:]
        return (json.loads(out.read_text()) if not expect else None), done

    return call


def base(row):
    """Never asks; right about clear rows of even scenes."""
    if row["ambiguous"]:
        return next(iter(row["answers"].values()))
    return row["answer"] if int(row["id"].split("-")[0]) % 2 == 0 else "It is green."


def tuned(row):
    """Asks when it should, but for one leading question, one about what is not there, and one needless one."""
    if row["ambiguous"]:
        return {"0-two": "Do you mean the car on the left?", "1-two": "Do you mean the bus or the tram?"}.get(
            row["id"], ASKS
        )
    return {"2-left": ASKS, "3-left": EVIL, "4-left": ""}.get(row["id"], row["answer"])
