"""tools/build_ambiguity.py with a teacher: rewrites behind three checks, ClarifyVLM's two calls, and its published rows."""

import base64
import importlib.util
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drive_vlm.builders.ambiguity.build import SOURCES, AmbiguityBuild, build
from drive_vlm.builders.ambiguity.clarifyvlm import qa_problem
from drive_vlm.builders.ambiguity.replies import Asker, TeacherFlags
from drive_vlm.builders.ambiguity.teacher import Rephraser
from drive_vlm.data.samples import parse_row

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "tools" / "prompts"
SPEC = importlib.util.spec_from_file_location("ambiguity_checker", ROOT / "tests" / "builders" / "ambiguity_checker.py")
checker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checker)
SIZE = (640, 480)
# Two pictures whose pairs balance: what is ambiguous in one is the twin in the other; then two clear ones.
WORLD = (
    [("truck", "red", "moving", 20), ("truck", "white", "braking", 240), ("car", "red", "braking", 480)],
    [("truck", "red", "moving", 20), ("car", "white", "moving", 240), ("car", "white", "braking", 480)],
    [("truck", "red", "moving", 20)],
    [("car", "white", "braking", 240)],
)


def text_of(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def line_of(text, start):
    return next(line.removeprefix(start) for line in text.splitlines() if line.startswith(start))


def good_teacher(body):
    """Puts "Tell me" before a question; names the things that the words of a question fit, read back without the builder."""
    text = text_of(body)
    if '"referents"' not in text:
        question = line_of(text, "Question: ")
        back = line_of(text, "Question back: ")
        return json.dumps({"question": f"Tell me: {question[0].lower()}{question[1:]}", "clarification": back})
    question = line_of(text, "Question about the picture: ").removeprefix("Tell me: ")
    question = f"{question[0].upper()}{question[1:]}"
    asked = next(found["d"] for pattern, _ in checker.ASKED if (found := re.fullmatch(pattern, question)))
    things = []
    for number, name, facts in re.findall(r"^(\d+)\. ([^:]+): (.*)$", text, re.MULTILINE):
        things.append((int(number), {"class": name, **dict(fact.split(" ", 1) for fact in facts.split(", "))}))
    return json.dumps({"referents": [i for i, thing in things if checker.matches(checker.read(asked), thing)]})


@pytest.fixture
def world(tmp_path):
    folder = tmp_path / "world"
    folder.mkdir()
    Image.new("RGB", SIZE).save(folder / "a.png")
    with open(folder / "scenes.jsonl", "w") as file:
        for i, things in enumerate(WORLD):
            objects = [
                {"name": kind, "color": color, "state": state, "lane": "left", "on_road": True, "distance": 9.0, "visible": 1.0,
                 "box": [x, 200, x + 100, 280 + x // 10]}
                for kind, color, state, x in things
            ]  # fmt: skip
            scene = {"id": f"s{i}", "group": f"g{i}", "image": "a.png", "size": [480, 640], "objects": objects}
            file.write(json.dumps(scene) + "\n")
    return folder


def words(tmp_path, world, *flags):
    source = ("--source", "synthetic", "--data", world / "scenes.jsonl", "--splits", "train:1")
    return ["tools/build_ambiguity.py", *source, "--out", tmp_path / "out", "--workers", 1, *flags]


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_teacher_rephrases_and_replies_are_kept(run_here, world, tmp_path, chat_server):
    chat_server.answer = good_teacher
    command = words(tmp_path, world, "--teacher", "t", "--base_url", chat_server.url)
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out" / "train.jsonl")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(rows) >= 4 and audit["teacher"]["rephrased"] == len(rows) and audit["teacher"]["rejected"] == {}
    usage = audit["teacher"]["usage"]
    # Two rows of one text ask for it once.
    assert usage["requests"] + usage["cached"] == 2 * len(rows) and usage["cached"] < 4
    for row in rows:
        assert (
            row["question"].startswith("Tell me: ") and row["messages"][0]["content"] == f"<image>\n{row['question']}"
        )
        assert row["choices"][row["gold_choice"]] == row["messages"][1]["content"]
        parse_row(row, row["id"], str(world))
    templates = [
        {
            **row,
            "messages": [{"content": row["template_question"]}, row["messages"][1]],
            "question": row["template_question"],
        }
        for row in rows
    ]
    # All pictures are one file here: the truth is asked for by the scene.
    scenes = {scene["id"]: scene for scene in rows_of(world / "scenes.jsonl")}
    for row in templates:
        scene = next(scenes[name] for name in scenes if row["id"].startswith(f"{name}-"))
        (tmp_path / "one.jsonl").write_text(json.dumps(scene))
        assert list(checker.check(row, checker.synthetic_truth(tmp_path / "one.jsonl"))) == []
    chat_server.stop()
    again = run_here(*command)
    assert again.returncode == 0 and f"0 requests, {2 * len(rows)} from the cache" in again.stdout
    assert rows_of(tmp_path / "out" / "train.jsonl") == rows


def test_a_teacher_that_dies_says_how_to_go_on(run_here, world, tmp_path, chat_server):
    chat_server.answer, chat_server.dies_after = good_teacher, 3
    done = run_here(
        *words(tmp_path, world, "--teacher", "t", "--base_url", chat_server.url, "--max_retries", 0, "--timeout", 5)
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and "the same command goes on" in done.stderr
    assert not list((tmp_path / "out").glob("*.jsonl")) and len(list((tmp_path / "out").rglob("*.json"))) == 3


@pytest.fixture
def made(world, tmp_path):
    config = AmbiguityBuild(source="synthetic", data=world / "scenes.jsonl", out=tmp_path / "made", splits=["train:1"])
    build(config, SOURCES, PROMPTS)
    rows = rows_of(tmp_path / "made" / "train.jsonl")
    return {
        "ambiguous": next(row for row in rows if row["ambiguous"] and row["attribute"] == "color"),
        "twin": next(row for row in rows if row["type"] == "twin" and row["attribute"] == "color"),
    }


def say(question=None, clarification=None, referents=None):
    """A teacher that changes its good replies by these functions."""

    def answer(body):
        reply = json.loads(good_teacher(body))
        for key, change in (("question", question), ("clarification", clarification), ("referents", referents)):
            if key in reply and change:
                reply[key] = change(reply[key])
        return json.dumps(reply)

    return answer


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("ambiguous", lambda body: "Sure! Here it is.", "rephrase: not_json"),
        ("ambiguous", lambda body: '{"question": "Which one?"}', "rephrase: schema"),
        ("ambiguous", say(question=lambda text: ["a", "list"]), "rephrase: schema"),
        ("ambiguous", say(question=lambda text: text.rstrip("?")), "rephrase: form"),
        ("ambiguous", say(question=lambda text: text.replace("?", " on the left?")), "rephrase: narrowed"),
        ("ambiguous", say(question=lambda text: text.replace("?", " that is nearest?")), "rephrase: narrowed"),
        ("ambiguous", say(question=lambda text: text.replace("?", ", red or not?")), "rephrase: tells"),
        ("ambiguous", say(clarification=lambda text: "Which one do you mean?"), "rephrase: names_lost"),
        ("ambiguous", say(referents=lambda found: found[:1]), "referents: not_ambiguous"),
        ("ambiguous", say(referents=lambda found: [0, 9]), "referents: no_such_thing"),
        ("twin", say(question=lambda text: "Tell me: what color is the vehicle?"), "rephrase: changed"),
        ("twin", say(referents=lambda found: [1, 2]), "referents: other_thing"),
    ],
    ids=["prose", "key", "type", "form", "side", "nearest", "tells", "names", "one", "nobody", "changed", "two"],
)
def test_a_rewrite_that_fails_a_check_is_not_taken(made, tmp_path, chat_server, kind, answer, reason):
    chat_server.answer = answer
    flags = TeacherFlags(teacher="t", base_url=chat_server.url, attempts=2, max_retries=0)
    asker = Asker(flags, tmp_path / "asked", 0)
    values = {
        ("vehicle", "kind"): ["car", "truck"],
        ("vehicle", "color"): ["red", "white"],
        ("vehicle", "state"): ["moving", "braking"],
    }
    row = Rephraser(asker, PROMPTS, values).row(made[kind])
    assert row == made[kind] and "template_question" not in row
    assert asker.rejected == {reason: 2}


OBJECTS = {
    "objects": [
        {"name": name, "attributes": {"color": color, "state": "parked", "shape": "boxy"}}
        for name, color in (("truck", "red"), ("van", "white"))
    ],
    "relation": "the truck is left of the van",
}
QA = {
    "question": "What is written on the vehicle?",
    "answers": {"1": "A name.", "2": "A number.", "3": "Nothing.", "4": "Do you mean the truck or the van?"},
}
CLEAR = {
    "question": "What is on the pole?",
    "answers": {"1": "A sign.", "2": "A lamp.", "3": "A bird.", "4": "A flag."},
}


@pytest.fixture
def boxed(tmp_path):
    folder = tmp_path / "flickr"
    folder.mkdir()
    Image.new("RGB", SIZE, (0, 90, 0)).save(folder / "1.jpg")
    lines = [
        {"image_filename": "1.jpg", "sentences": ["x"], "count_label": "Two vehicles", "boxes": [[20, 200, 120, 280], [240, 200, 340, 280]]},
        {"image_filename": "1.jpg", "count_label": "A pole", "boxes": [[400, 100, 440, 300]]},
    ]  # fmt: skip
    (folder / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def pipeline_teacher(body):
    """Describes and asks; the first seed brings prose, too few things or a leading question."""
    text, first = text_of(body), body["seed"] == 0
    if "numbered from 1" in text:
        return json.dumps({**OBJECTS, "objects": OBJECTS["objects"][: 1 if first else 2]})
    if "Box label:" in text:
        return "It is a pole." if first else json.dumps(OBJECTS["objects"][0] | {"name": "pole"})
    if "These things" in text:
        leading = QA | {"answers": QA["answers"] | {"4": "You mean the truck on the left?"}}
        return json.dumps(leading if first else QA)
    return f"```json\n{json.dumps(CLEAR)}\n```"


def test_the_two_calls_of_clarifyvlm(run_here, boxed, tmp_path, chat_server):
    chat_server.answer = pipeline_teacher
    source = ("--source", "clarifyvlm_boxes", "--data", boxed / "annotations.jsonl", "--pipeline", "clarifyvlm")
    command = ["tools/build_ambiguity.py", *source, "--out", tmp_path / "out", "--splits", "train:1"]
    done = run_here(*command)
    assert done.returncode == 2 and "give --teacher" in done.stderr
    done = run_here(*[*command, "--teacher", "t", "--base_url", chat_server.url, "--workers", 1])
    assert done.returncode == 0, done.stderr
    several, one = rows_of(tmp_path / "out" / "train.jsonl")
    for row in (several, one):
        parse_row(row, row["id"], str(boxed))
        assert row["choices"][row["gold_choice"]] == row["messages"][1]["content"]
    assert (several["ambiguous"], several["level"], several["clarification"]) == (1, 2, QA["answers"]["4"])
    assert [thing["name"] for thing in several["candidates"]] == ["truck", "van"]
    assert several["entity_description"] == OBJECTS and several["group"] == one["group"] == "1"
    assert (one["ambiguous"], one["level"], one["answer"], one["target"]) == (0, 0, "A sign.", 0)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["teacher"]["rejected"] == {"objects: count": 1, "objects: not_json": 1, "question: leading": 1}
    # The first call shows the boxes, the second the picture as it is.
    seen = [picture_of(body) for body in chat_server.requests if body["seed"] == 1 or "This thing" in text_of(body)]
    red = [int(((pixels := np.asarray(image))[..., 0] > 200).sum() - (pixels[..., 1] > 200).sum()) for image in seen]
    assert Counter(count > 500 for count in red) == {True: 2, False: 2}


def picture_of(body):
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def test_no_usable_reply_and_a_box_outside(run_here, boxed, tmp_path, chat_server):
    source = ("--source", "clarifyvlm_boxes", "--data", boxed / "annotations.jsonl", "--pipeline", "clarifyvlm")
    command = ["tools/build_ambiguity.py", *source, "--out", tmp_path / "out", "--teacher", "t", "--base_url", chat_server.url]  # fmt: skip
    done = run_here(*command)
    assert done.returncode == 2 and "no reply could be used; rejected: 6 objects: not_json" in done.stderr
    with open(boxed / "annotations.jsonl", "a") as file:
        file.write(json.dumps({"image_filename": "1.jpg", "count_label": "A car", "boxes": [[600, 0, 700, 90]]}) + "\n")
    done = run_here(*command)
    assert done.returncode == 2 and "annotations.jsonl:3" in done.stderr and "leaves the picture" in done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"question": "Name the vehicle"}, "form"),
        ({"question": "What is written on the red vehicle?"}, "narrowed"),
        ({"answers": QA["answers"] | {"4": "A letter."}}, "form"),
        ({"answers": QA["answers"] | {"2": "A name."}}, "same_answers"),
        ({"answers": QA["answers"] | {"4": "Do you mean the van?"}}, "leading"),
    ],
    ids=["good", "no_question", "narrowed", "no_back", "same", "leading"],
)
def test_questions_of_the_pipeline_that_are_refused(change, reason):
    assert qa_problem(QA | change, OBJECTS["objects"]) == reason
    assert qa_problem(CLEAR, OBJECTS["objects"][:1]) == "" and qa_problem(QA, OBJECTS["objects"][:1]) == "form"


@pytest.mark.kit
def test_the_published_rows_of_clarifyvlm(run_here, kit, tmp_path):
    folder = kit / "noncommercial" / "clarify" / "tuning_grpo" / "dataset"
    command = ["tools/build_ambiguity.py", "--source", "clarifyvlm_rows", "--splits", "train:1"]
    for name, ambiguous in (("train", [1, 0, 1]), ("val", [1])):
        done = run_here(*[*command, "--data", folder / f"{name}.jsonl", "--out", tmp_path / name])
        assert done.returncode == 0, done.stderr
        rows = rows_of(tmp_path / name / "train.jsonl")
        assert [row["ambiguous"] for row in rows] == ambiguous
        for row in rows:
            assert parse_row(row, row["id"], str(folder)).reference == (row["clarification"] or row["answer"])
    assert rows[0]["messages"][0]["content"] == "<image>\nWhat kind of clothing is the person wearing?"


def test_published_rows_with_answers_in_json(run_here, boxed, tmp_path):
    good = {"image_filename": "1.jpg", "entity_description": "{}", "qa": f"```json\n{json.dumps(QA)}\n```"}
    file = boxed / "train_ambig_qa_description.jsonl"
    command = ["tools/build_ambiguity.py", "--source", "clarifyvlm_rows", "--splits", "train:1", "--data", file, "--out", tmp_path / "out"]  # fmt: skip
    bad = [
        {"image_filename": "1.jpg", "qa": "no JSON"},
        {"image": "1.jpg", "level": "?", "question": "a", "answer": "b"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad, {**good, "image_filename": "2.jpg"}]))
    done = run_here(*command)
    assert done.returncode == 2 and f"{file}:2" in done.stderr
    done = run_here(*[*command, "--on_bad_row", "skip"])
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "out" / "train.jsonl")
    assert (row["ambiguous"], row["gold_choice"], row["clarification"]) == (1, 3, QA["answers"]["4"])
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["bad_rows"]["by_reason"] == {"bad_object": 2, "image_missing": 1}
