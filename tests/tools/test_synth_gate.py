"""tools/synth_gate.py and synth_compare.py through their command lines, on pictures and a questions file made here."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drive_vlm.data.samples import parse_row
from drive_vlm.rewards.text import driving_text

CAR, PERSON = [10, 60, 110, 140], [250, 40, 280, 140]
SUGGESTION = "Please provide driving suggestions for the ego car."
# (row of the questions step, gate and reason; None: it is used)
ROWS = [
    ({"task": "vqa", "kind": "existence", "question": "Is there a car in the picture?", "answer": "Yes, a car."}, None),
    ({"task": "vqa", "kind": "existence", "question": "Is there a horse here today?", "answer": "Yes."}, ("grounding", "ungrounded")),
    ({"task": "vqa", "kind": "position", "question": "On which side does a car stand?", "answer": "On the right."}, ("positions", "wrong_side")),
    ({"task": "vqa", "kind": "attribute", "question": "Which colour has it?", "answer": "I'm sorry, I cannot tell."}, ("form", "refusal")),
    ({"task": "vqa", "kind": "existence", "question": "Is there any car in the picture?", "answer": "Yes, there is."}, ("duplicates", "near")),
    ({"task": "region", "question": "What is inside the red rectangle?", "answer": "A pedestrian who may cross.", "region": {"box": PERSON, "label": "pedestrian"}}, None),
    ({"task": "suggestion", "question": SUGGESTION, "answer": "Slow down.", "reasoning": {"objects": ["pedestrian"], "rule": "yield", "action": "slow down"}}, None),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_spacy(monkeypatch, spacy_model):
    """Every run of the tool in this process shares one pipeline, which takes a second to load."""
    if not hasattr(_one_spacy, "nlp"):
        _one_spacy.nlp = driving_text.load_spacy(spacy_model)
    monkeypatch.setattr(driving_text, "load_spacy", lambda model: _one_spacy.nlp)


def picture(seed):
    """320 x 160 pixels in stripes: of different seeds no two are alike."""
    image = Image.new("RGB", (320, 160), (seed * 23 % 256, 120, 90))
    pen = ImageDraw.Draw(image)
    for i in range(8):
        x = (seed * 37 + i * 53) % 300
        pen.rectangle([x, (i * 29 + seed * 11) % 140, x + 30, 160], fill=(i * 30, seed * 40 % 256, 255 - i * 30))
    return image


def line(number, rows, **more):
    boxes = [{"box": CAR, "label": "car", "score": 0.9, "by": "tiny"}, {"box": PERSON, "label": "pedestrian", "score": 0.8, "by": "tiny"}]  # fmt: skip
    found = {
        "key": f"k{number}",
        "image": f"day/{number}.png",
        "group": f"s{number // 2}",
        "size": [320, 160],
        "boxes": boxes,
    }
    found |= {"caption_raw": f"<script>alert({number})</script> A car.", "finish_reason": "stop", "rows": rows}
    found |= {"cost": {"caption": 0.07}, "tokens": {"caption": {"prompt": 70, "reply": 7}}}
    return found | more


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def data(tmp_path):
    """Six pictures of three scenes, with the rows of ROWS for each; settings that name two models."""
    (tmp_path / "pics" / "day").mkdir(parents=True)
    for i in range(6):
        picture(i).save(tmp_path / "pics" / "day" / f"{i}.png")
    write(tmp_path / "q.jsonl", [line(i, [row for row, _ in ROWS]) for i in range(6)])
    models = {
        "detector": {"name": "tiny-det", "hub_commit": "abc"},
        "teacher": {"name": "org/Teacher-1", "weights": "9"},
    }
    settings = {"step": "questions", "settings": {}, "models": models, "image_root": str(tmp_path / "pics")}
    (tmp_path / "q.jsonl.settings.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.fixture
def gate(run_here, data):
    """`gate(*flags)`: the tool on q.jsonl with a detector of COCO's classes, into out/."""

    def start(*more, out="out", **env):
        words = ["--data", data / "q.jsonl", "--out", data / out, "--can_see", "coco", "--workers", 2, *more]
        return run_here("tools/synth_gate.py", *words, **env)

    return start


def audit(data, out="out"):
    return json.loads((data / out / "data_audit.json").read_text())


def test_rows_and_rejected_rows_add_up_and_say_where_they_come_from(gate, data):
    done = gate()
    assert done.returncode == 0, done.stderr
    assert "42 rows given = 18 used + 24 rejected, of 6 pictures" in done.stdout
    rows, rejected, found = read(data / "out/rows.jsonl"), read(data / "out/rejected.jsonl"), audit(data)
    assert (
        (found["given"], found["used"], found["rejected"])
        == (42, 18, 24)
        == (len(rows) + len(rejected), len(rows), len(rejected))
    )
    # Each row is the one that was given: no answer came to another question, and no reason to another row.
    given = {f"{i}-{row['question']}": (row, why) for i in range(6) for row, why in ROWS}
    for row in rows:
        question = row["messages"][0]["content"].removeprefix("<image>\n")
        wanted, why = given.pop(f"{Path(row['sources']['image']).stem}-{question}")
        assert why is None and row["messages"][1]["content"] == wanted["answer"]
    for row in rejected:
        wanted, why = given.pop(f"{Path(row['image']).stem}-{row['question']}")
        assert (row["gate"], row["reason"]) == why and row["answer"] == wanted["answer"] and "q.jsonl:" in row["where"]
    assert not given
    assert Counter((row["gate"], row["reason"]) for row in rejected) == Counter({why: 6 for _, why in ROWS if why})
    for name, entry in found["gates"].items():
        assert entry["given"] == entry["passed"] + sum(entry["rejected"].values()), name
    first = rows[0]
    assert first["id"].startswith("0-") and first["group"] == "s0" and first["round"] == 0
    assert first["models"]["detector"] == "tiny-det@abc" and first["models"]["teacher"].startswith("org/Teacher-1@")
    assert first["cost_usd"] == pytest.approx(0.01) and first["tokens"] == {"caption": {"prompt": 10.0, "reply": 1.0}}
    assert first["sources"]["boxes"][0] == {"box": CAR, "label": "car", "score": 0.9, "by": "tiny"}
    assert first["gates"]["grounding"] == 1.0 and len({row["id"] for row in rows}) == 18
    reasoned = next(row for row in rows if row["task"] == "suggestion")
    assert reasoned["reasoning"] == "Objects: pedestrian.\nRule: yield.\nAction: slow down."
    assert reasoned["messages"][1]["content"] == "Slow down."
    assert sum(found["histograms"]["before"]["task"].values()) == 42
    assert found["histograms"]["after"]["task"] == {"region": 6, "suggestion": 6, "vqa": 6}
    # 7 claims are true in each picture, one (the horse) is not; after the gates none is left.
    assert found["figures"]["given"]["hallucinated"]["value"] > 0 == found["figures"]["used"]["hallucinated"]["value"]


@pytest.mark.slow
def test_the_rows_are_read_by_the_data_layer_check_data_and_build_pairs(gate, data, run_here, tiny_model):
    assert gate("--held_out", 1, "--reasoning", "first").returncode == 0
    out = data / "out"
    for row in read(out / "rows.jsonl"):
        sample = parse_row(row, "rows.jsonl:1", str(out))
        assert Path(sample.images[0]).is_file() and sample.group == row["group"] and sample.reference
        if row["task"] == "suggestion":
            assert sample.reference == "Objects: pedestrian.\nRule: yield.\nAction: slow down.\nSlow down."
    words = ["--data", out / "rows.jsonl", "--eval_data", out / "held_out.jsonl", "--model", tiny_model, "--workers", 2]
    checked = run_here("tools/check_data.py", *words, "--deep", "--preview", 0)
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert "12 rows used of 12 read" in checked.stdout and "6 rows used of 6 read" in checked.stdout
    answers = [{"id": row["id"], "prediction": "A cow."} for row in read(out / "rows.jsonl")]
    write(data / "said.jsonl", answers)
    words = ["--data", out / "rows.jsonl", "--predictions", data / "said.jsonl", "--out", data / "pairs.jsonl"]
    paired = run_here("tools/build_pairs.py", *words)
    assert paired.returncode == 0, paired.stderr
    pairs = read(data / "pairs.jsonl")
    assert len(pairs) == 12 and {pair["rejected"] for pair in pairs} != {pair["chosen"] for pair in pairs}


def test_the_rectangle_of_a_region_is_seen_at_448_pixels(gate, data):
    large = Image.new("RGB", (1600, 900), (90, 120, 90))
    large.save(data / "pics/day/0.png")
    box = [400, 200, 900, 700]
    region = ROWS[5][0] | {"region": {"box": box, "label": "pedestrian"}}
    write(data / "q.jsonl", [line(0, [region, ROWS[0][0]], size=[1600, 900])])
    assert gate("--gates", "none").returncode == 0
    drawn, plain = read(data / "out/rows.jsonl")
    assert drawn["image"].startswith("images_w_boxes/") and plain["image"] == "images/day/0.png"
    assert drawn["region"] == {"box": box, "label": "pedestrian"}
    seen = Image.open(data / "out" / drawn["image"])
    assert seen.size == (1600, 900)
    small = seen.resize((448, 448), Image.Resampling.BICUBIC)
    for x, y in ((400, 450), (900, 450), (650, 200), (650, 700)):
        near = [
            small.getpixel((round(x * 0.28) + dx, round(y * 448 / 900) + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)
        ]
        assert any(red > 130 and red - max(green, blue) > 50 for red, green, blue in near), near
    assert Image.open(data / "out" / plain["image"]).getpixel((400, 450)) == (90, 120, 90)
    # Another box under the same id is drawn again.
    region["region"]["box"] = [0, 0, 50, 50]
    write(data / "q.jsonl", [line(0, [region], size=[1600, 900])])
    assert gate("--gates", "none").returncode == 0
    assert Image.open(data / "out" / drawn["image"]).getpixel((400, 450))[0] < 130


def test_near_identical_pictures_stay_on_one_side(gate, data):
    """The second picture of scene 1 is the first of scene 0, smaller and encoded again under another name."""
    again = data / "pics/day/3.png"
    Image.open(data / "pics/day/0.png").resize((160, 80)).save(again.with_suffix(".jpg"), quality=60)
    again.with_suffix(".jpg").rename(again)
    seen = set()
    for seed in range(6):
        done = gate("--held_out", 1, "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert "1 groups were joined to others" in done.stdout
        train, held = ({row["group"] for row in read(data / "out" / name)} for name in ("rows.jsonl", "held_out.jsonl"))
        assert (train | held) == {"s0", "s2"} and not train & held and audit(data)["leaks"] == []
        seen |= held
    assert seen == {"s0", "s2"}
    assert gate("--held_out", 2).stderr.count("--held_out: 2 of 2 groups cannot be held out") == 1


def test_planted_evaluation_rows_are_found_and_zero_is_printed(gate, data):
    (data / "eval").mkdir()
    picture(77).save(data / "eval/other.png")
    question = "Is there a zebra next to the old gas station on the hill?"
    row = {
        "id": "e1",
        "image": "other.png",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "No."}],
    }
    evaluation = write(data / "eval/test.jsonl", [row])
    done = gate("--decontaminate", evaluation)
    assert "rows 0 picture_bytes, 0 picture_look, 0 picture_embedding, 0 group, 0 ngram" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "pictures 0 by bytes, 0 by look, not compared by embedding" in done.stdout
    shutil.copy(data / "pics/day/2.png", data / "eval/copy.png")
    planted = {
        "task": "vqa",
        "kind": "",
        "question": "Is a zebra next to the old gas station on the hill?",
        "answer": "No.",
    }
    rows = [line(i, [row for row, _ in ROWS] + ([planted] if i == 4 else [])) for i in range(6)]
    write(data / "q.jsonl", rows)
    write(evaluation, [row, row | {"id": "e2", "image": "copy.png"}])
    assert gate("--decontaminate", evaluation, "--gates", "decontamination").returncode == 0
    found = audit(data)["decontamination"]
    # The question is asked about two pictures now: a template of the benchmark.
    assert found["rows"] == {"picture_bytes": 7, "picture_look": 0, "picture_embedding": 0, "group": 0, "ngram": 0}
    assert found["templates"] == 1
    write(
        evaluation,
        [
            row,
            row
            | {"id": "e2", "image": "copy.png", "messages": [{"role": "user", "content": "Why?"}, row["messages"][1]]},
        ],
    )
    assert gate("--decontaminate", evaluation, "--gates", "decontamination").returncode == 0
    assert audit(data)["decontamination"]["rows"]["ngram"] == 1
    gone = [row for row in read(data / "out/rejected.jsonl") if row["reason"] == "ngram"]
    assert [row["question"] for row in gone] == [planted["question"]] and "e1" in gone[0]["detail"]


def test_evaluation_pictures_are_found_by_vectors_too(gate, data):
    """Vectors of whole pictures in the form of a data base's folder: picture 3 is near the evaluation's, by nothing else."""
    (data / "eval").mkdir()
    picture(77).save(data / "eval/other.png")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    evaluation = write(data / "eval/test.jsonl", [{"id": "e1", "image": "other.png", "messages": turns}])
    vectors = np.eye(8, dtype=np.float16)
    vectors[3] = [0, 0, 0, 0.2, 0, 0, 0, 0.98]
    for name, images, rows in (
        ("v", [f"day/{i}.png" for i in range(6)], vectors[:6]),
        ("w", ["other.png"], vectors[7:]),
    ):
        (data / name).mkdir()
        np.save(data / name / "vectors.npy", rows)
        write(
            data / name / "names.jsonl", [{"row": i, "name": "scene", "image": image} for i, image in enumerate(images)]
        )
    flags = ["--decontaminate", evaluation, "--picture_vectors", data / "v", "--decontaminate_vectors", data / "w"]
    done = gate(*flags, "--gates", "decontamination")
    assert done.returncode == 0, done.stderr
    assert audit(data)["decontamination"]["pictures"] == {"bytes": 0, "look": 0, "embedding": 1}
    assert {row["image"] for row in read(data / "out/rejected.jsonl")} == {"day/3.png"}
    write(data / "v/names.jsonl", [{"row": 0, "image": "day/0.png"}])
    assert "--picture_vectors: no vector of 'day/1.png' and of 4 other pictures" in gate(*flags).stderr


def test_a_picture_that_cannot_be_read_stops_or_is_counted(gate, data):
    (data / "pics/day/2.png").unlink()
    whole = (data / "pics/day/4.png").read_bytes()
    (data / "pics/day/4.png").write_bytes(whole[: len(whole) // 2])
    stopped = gate()
    assert stopped.returncode == 2 and "day/2.png" in stopped.stderr and not (data / "out").exists()
    done = gate("--on_bad_row", "skip", "--pictures", "copy")
    assert done.returncode == 0, done.stderr
    found = audit(data)
    assert (found["pictures"], found["given"], found["used"], found["rejected"]) == (4, 28, 12, 16)
    assert found["bad_lines"]["by_reason"] == {"image_missing": 1, "image_corrupt": 1}
    names = sorted(path.name for path in (data / "out/images/day").iterdir())
    assert names == ["0.png", "1.png", "3.png", "5.png"] and not (data / "out/images").is_symlink()
    refused = gate("--on_bad_row", "skip")
    assert refused.returncode == 2 and "is a folder of pictures already" in refused.stderr


def test_rows_may_lie_next_to_their_pictures(gate, data):
    (data / "pics").rename(data / "images")
    for pictures in ("link", "copy"):
        done = gate("--image_root", data / "images", "--pictures", pictures, out=".")
        assert done.returncode == 0, done.stderr
        assert (data / read(data / "rows.jsonl")[0]["image"]).is_file() and not (data / "images").is_symlink()
    assert len(list((data / "images/day").iterdir())) == 6


def test_human_rows_have_their_share_in_every_round(gate, data):
    (data / "people").mkdir()
    people = []
    for i in range(20):
        picture(100 + i).save(data / f"people/{i}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": f"Thing {i}."}]
        people.append({"id": f"h{i}", "image": f"{i}.png", "conversations": turns, "group": f"p{i}"})
    # One is a picture of the scenes, and one is of a held-out scene by name.
    shutil.copy(data / "pics/day/0.png", data / "people/0.png")
    human = write(data / "people/h.jsonl", people)
    flags = ("--human", human, "--human_share", 0.4, "--held_out", 1)
    used = []
    for number in (0, 1):
        done = gate(*flags, "--round", number, out=f"r{number}")
        assert done.returncode == 0, done.stderr
        rows = read(data / f"r{number}/rows.jsonl")
        mine = [row for row in rows if row.get("origin") == "human"]
        assert (len(rows), len(mine)) == (20, 8)
        used.append([row["id"] for row in mine])
        for row in rows:
            sample = parse_row(row, "x:1", str(data / f"r{number}"))
            assert Path(sample.images[0]).is_file() and row["round"] == number
        thing = mine[0]["id"].removeprefix("h")
        assert mine[0]["messages"][1]["content"] == f"Thing {thing}." and mine[0]["images"] == [
            f"human_images/{thing}.png"
        ]
    assert used[0] == used[1]
    left_out = audit(data, "r0")["human"]["left_out"]
    assert left_out == ({"held_out_picture": 1} if "s0" in audit(data, "r0")["held_out_groups"] else {})
    few = gate("--human", human, "--human_share", 0.9)
    assert few.returncode == 2 and "needs 162 human rows, 20 of 20 can be used" in few.stderr
    assert not (data / "out/rows.jsonl").exists()
    cut = gate("--human", human, "--human_share", 0.8, "--on_few_human", "cut")
    assert cut.returncode == 0, cut.stderr
    found = audit(data)
    assert (found["given"], found["used"], found["rejected"]) == (42, 5, 37)
    assert found["gates"]["human_share"] == {"given": 18, "passed": 5, "rejected": {"too_few_human": 13}}
    assert Counter(row.get("origin") for row in read(data / "out/rows.jsonl")) == {None: 5, "human": 20}


def test_the_judge(gate, data, chat_server):
    """Replies by question; the author is refused, a limit of cost stops with what was paid kept, and an estimate asks nobody."""
    good = '{"accuracy": 5, "relevance": 5, "hallucination": 5}'

    def answer(body):
        text = chat_server.text_of(body["messages"][-1])
        return (
            "Nice." if "driving suggestions" in text else good.replace("5}", "3}") if "red rectangle" in text else good
        )

    chat_server.answer = answer
    flags = [
        "--gates",
        "form,grounding,positions,duplicates,judge",
        "--judge_url",
        chat_server.url,
        "--judge_attempts",
        2,
    ]
    flags += ["--cache", data / "cache", "--judge_retries", 0]
    refused = gate(*flags, "--judge_model", "Teacher-1")
    assert refused.returncode == 2 and "also the author of the rows (org/Teacher-1)" in refused.stderr
    prices = [
        "--judge_model",
        "judge",
        "--price_in",
        1,
        "--price_out",
        1,
        "--picture_tokens",
        300,
        "--judge_max_tokens",
        100,
    ]
    estimate = gate(*flags, *prices, "--estimate", out="est")
    assert estimate.returncode == 0 and "judge (a row each)" in estimate.stdout and not chat_server.requests
    assert not (data / "est").exists()
    stopped = gate(*flags, *prices, "--max_cost", 0.003, "--judge_workers", 1)
    assert stopped.returncode == 2 and "--max_cost 0.003" in stopped.stderr, stopped.stderr
    paid = len(chat_server.requests)
    assert 0 < paid < 24 and not (data / "out/rows.jsonl").exists()
    done = gate(*flags, *prices)
    assert done.returncode == 0, done.stderr
    # 18 rows are judged, the 6 unread ones twice; what was paid before is not paid again.
    assert len(chat_server.requests) == 24
    found = audit(data)
    assert found["gates"]["judge"]["rejected"] == {"judge_hallucination": 6, "unread": 6}
    assert (found["judge"]["judged"], found["judge"]["unread"]) == (12, 6) and "6 rows unread" in done.stdout
    assert found["given"] == found["used"] + found["rejected"] == 42
    assert {row["gates"]["judge_accuracy"] for row in read(data / "out/rows.jsonl")} == {5}
    regions = [body for body in chat_server.requests if "red rectangle" in chat_server.text_of(body["messages"][-1])]
    plain = [body for body in chat_server.requests if body not in regions]
    urls = [
        part["image_url"]["url"]
        for body in regions
        for part in body["messages"][-1]["content"]
        if part["type"] == "image_url"
    ]
    assert all(url.startswith("data:image/jpeg") for url in urls) and len(urls) == 6 and len(plain) == 18


def test_the_page_holds_everything_and_runs_nothing(gate, data):
    assert gate("--page_pictures", 2).returncode == 0
    page = (data / "out/sample.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(" in page
    assert page.count("data:image/jpeg;base64,") == 2 and "http" not in page.replace("http-equiv", "")
    for words in (
        "grounding: ungrounded",
        "horse",
        "positions: wrong_side",
        "form: refusal",
        "used",
        "caption_raw",
        "Slow down.",
    ):
        assert words in page
    assert "42 rows of 6 pictures: 18 used, 24 taken out" in page and page.count("<h2>") == 2
    assert gate("--page_pictures", 0).returncode == 0 and not (data / "out/sample.html").exists()


def test_rounds_are_compared(gate, data, run_here):
    assert gate("--gates", "none", out="a").returncode == 0
    second = [row | {"answer": "Stop at once."} if row["task"] == "suggestion" else row for row, _ in ROWS]
    write(data / "q.jsonl", [line(i, second) for i in range(6)])
    assert gate(out="b").returncode == 0
    files = [data / name / "rows.jsonl" for name in "ab"]
    done = run_here("tools/synth_compare.py", "--data", *files, "--can_see", "coco", "--json", data / "c.json")
    assert done.returncode == 0, done.stderr
    first, now = json.loads((data / "c.json").read_text())
    assert (first["rows"], now["rows"], first["changed"]) == (42, 18, None)
    assert (now["changed"]["both"], now["changed"]["gone"], now["changed"]["changed"]) == (18, 24, 6)
    assert now["changed"]["share"]["value"] == pytest.approx(1 / 3)
    assert first["figures"]["hallucinated"] == audit(data, "b")["figures"]["given"]["hallucinated"]
    assert now["figures"]["hallucinated"]["value"] == 0 < first["figures"]["hallucinated"]["value"]


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        (None, ["--gates", "form,grouding"], "'grouding' is no gate"),
        (None, ["--gates", "judge"], "--gates judge needs --judge_model"),
        (None, ["--judge_model", "m"], "has no gate judge for --judge_model"),
        (None, ["--human_share", 0.3], "--human and --human_share belong together"),
        (None, ["--question_words", 5, 4], "--question_words 5 4: give MIN and MAX"),
        (None, ["--image_root", "nowhere"], "day/0.png"),
        (lambda line: line | {"rows": None}, [], "q.jsonl:1: rows must be a list"),
        (lambda line: line | {"rows": [{"task": "joke", "question": "a", "answer": "b"}]}, [], "q.jsonl:1: row 0: expected a task"),
        (lambda line: line | {"rows": [ROWS[5][0] | {"region": None}]}, [], "q.jsonl:1: row 0: a row of the task region has no region"),
        (lambda line: line | {"boxes": [{"box": [1, 2, 3], "label": "car", "score": 1.0, "by": "x"}]}, [], "q.jsonl:1: "),
        (lambda line: line | {"image": "day/1.png"}, [], "'day/1.png' came before"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(gate, data, change, flags, words):
    lines = read(data / "q.jsonl")
    if change:
        write(data / "q.jsonl", [change(lines[0]), *lines[1:]])
    done = gate(*flags)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (data / "out/rows.jsonl").exists()


def test_no_row_left_is_said(gate, data):
    write(data / "q.jsonl", [line(0, [ROWS[3][0]])])
    done = gate()
    assert done.returncode == 1 and "no row is left to train on" in done.stderr


def test_what_the_sources_can_see_is_read_from_files(gate, data, run_here):
    (data / "names.txt").write_text("# a comment\ncar\npedestrian\n")
    words = ["--data", data / "q.jsonl", "--out", data / "out", "--gates", "grounding"]
    assert run_here("tools/synth_gate.py", *words, "--can_see", data / "names.txt").returncode == 0
    # Nobody looked for horses: the row is neither right nor wrong.
    assert audit(data)["gates"]["grounding"]["rejected"] == {} and audit(data)["can_see"] == ["car", "person"]
    settings = {"step": "detect", "settings": {"labels": ["car", "horse"]}, "models": {}, "image_root": ""}
    write(data / "detect.jsonl", [{"key": "1"}])
    (data / "detect.jsonl.settings.json").write_text(json.dumps(settings))
    assert run_here("tools/synth_gate.py", *words, "--can_see", data / "detect.jsonl").returncode == 0
    assert audit(data)["gates"]["grounding"]["rejected"] == {"ungrounded": 6}
    assert run_here("tools/synth_gate.py", *words).returncode == 0
    assert audit(data)["can_see"] == ["car", "person"]
    gone = run_here("tools/synth_gate.py", *words, "--can_see", data / "nothing.txt")
    assert gone.returncode == 2 and "no such file" in gone.stderr
