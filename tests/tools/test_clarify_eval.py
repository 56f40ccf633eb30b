"""tools/clarify_eval.py through its command line: the chain with generate and its dialogues, three checkpoints, and a judge."""

import csv
import html
import json
import re

import pytest
from clarify_rows import ASKS, EVIL, ROWS, SCENES, base, predictions, read, tuned, write
from PIL import Image

from drive_vlm.builders.ambiguity.rows import meant_by_user, said_by_user


def test_from_rows_to_utility_through_generate(evaluate, run_here, chat_server, world, tmp_path):
    """The whole chain, a scripted server for the model: it asks back, is told which car, and answers that; of the options it says B."""

    def answer(body):
        turns = [
            turn["content"]
            if isinstance(turn["content"], str)
            else "".join(part.get("text", "") for part in turn["content"])
            for turn in body["messages"]
        ]
        if turns[-1].endswith("the right option alone."):
            return "B"
        if len(turns) == 3:
            return "It is red." if "left" in turns[-1] else "It is blue."
        return ASKS if "bus" not in turns[-1] else "There is no bus in the picture."

    chat_server.answer = answer

    def generate(data, out):
        words = [
            "generate",
            "--backend",
            "openai",
            "--base_url",
            chat_server.url,
            "--model",
            "m",
            "--data",
            data,
            "--out",
            tmp_path / out,
            "--image_root",
            world,
        ]
        done = run_here("drive_vlm", *words, DRIVE_VLM_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path / out

    first = generate(world / "val.jsonl", "first.jsonl")
    questions, options = tmp_path / "questions.jsonl", tmp_path / "options.jsonl"
    data = ("--data", world / "val.jsonl")
    result, _ = evaluate("--predictions", first, *data, "--write_dialogues", questions, "--write_choices", options)
    scores = result["checkpoints"]["first"]["scores"]
    # It asks at every car: ambiguous ones, and the clear twins.
    assert (scores["ask_recall"]["value"], scores["over_asking"]["value"]) == (1, 0.5)
    assert scores["final_utility"]["value"] is None and result["written"][str(questions)]["rows"] == 2 * SCENES
    for row in read(questions):
        source = next(item for item in ROWS if item["id"] == row["row"])
        meant = meant_by_user(source["id"], 2, 0) if source["ambiguous"] else source["target"]
        name = source["candidates"][meant]["name"]
        texts = [turn["content"] for turn in row["messages"]]
        assert texts[:1] == [source["messages"][0]["content"]] and texts[1:3] == [ASKS, said_by_user(name)]
        assert texts[3] == (source["answers"][name] if source["ambiguous"] else source["answer"]) == row["answer"]
    second = generate(questions, "second.jsonl")
    chosen = generate(options, "chosen.jsonl")
    result, done = evaluate("--predictions", first, *data, "--after", second, "--choices", chosen)
    right = []
    for row in read(questions):
        said = "red" if row["candidates"][row["target"]]["attributes"]["side"] == "left" else "blue"
        right.append(row["answer"] == f"It is {said}.")
    scores = result["checkpoints"]["first"]["scores"]
    accuracy = (sum(right) + SCENES) / (3 * SCENES)
    assert scores["final_accuracy"]["value"] == pytest.approx(accuracy) and scores["final_accuracy"]["n"] == 3 * SCENES
    assert scores["final_utility"]["value"] == pytest.approx(accuracy - 0.1 * 2 / 3)
    choices = result["checkpoints"]["first"]["choices"]
    assert (choices["rows"], choices["answers"]) == (3 * SCENES, 12 * SCENES)
    found = {letter: choices["scores"][f"accuracy gold {letter}"]["value"] for letter in "ABCD"}
    assert found == {"A": 0, "B": 1, "C": 0, "D": 0} and choices["scores"]["consistent"]["value"] == 0
    assert choices["scores"]["said B"]["value"] == 1 and choices["scores"]["accuracy"]["value"] == 0.25
    assert "four options" in done.stdout
    # Without the rows the columns of the predictions serve, nulls gone.
    again, _ = evaluate("--predictions", first, "--after", second)
    assert again["checkpoints"]["first"]["scores"] == scores
    # Another seed means other cars.
    _, done = evaluate("--predictions", first, "--after", second, "--seed", "3", expect=2)
    assert "its user means candidate" in done.stderr


def test_checkpoints_baselines_pictures_and_gallery(evaluate, world, tmp_path):
    files = [predictions(tmp_path / f"{name}.jsonl", ROWS, reply) for name, reply in (("base", base), ("tuned", tuned))]
    asked = [row for row in ROWS if tuned(row).endswith("?")]
    samples = [
        predictions(
            tmp_path / f"s{k}.jsonl", ROWS, lambda row, k=k: tuned(row) if k or not row["ambiguous"] else "It is red."
        )
        for k in range(2)
    ]
    dialogues = [
        row | {"id": f"{row['id']}-dialogue", "target": 1, "type": "dialogue"} for row in ROWS if row["ambiguous"]
    ]
    told = [
        predictions(tmp_path / f"d{k}.jsonl", dialogues, lambda row, k=k: list(row["answers"].values())[k])
        for k in range(2)
    ]
    human = tmp_path / "human.csv"
    human.write_text(
        "id,checkpoint,strategy,factual,asked\n0-two,tuned,2,pass,yes\n1-two,tuned,1,fail,1\n2-two,tuned,4,,true\n2-left,tuned,1,cannot_tell,\n"
    )
    flags = (
        "--plots",
        tmp_path / "plots",
        "--gallery",
        tmp_path / "page" / "gallery.html",
        "--csv",
        tmp_path / "rows.csv",
    )
    more = (
        "--image_root",
        world,
        "--samples",
        *samples[:1],
        "--samples",
        *samples,
        "--dialogues",
        *told,
        "--human",
        human,
    )
    more = (*more, "--by", "weather", "--blind_predictions", files[0], "--training", trained(tmp_path / "grpo"))
    result, done = evaluate("--predictions", *files, *flags, *more)
    scores = {
        name: {key: rate["value"] for key, rate in entry["scores"].items()}
        for name, entry in (result["checkpoints"] | result["baselines"]).items()
    }
    assert list(scores) == ["base", "tuned", "never ask", "always ask", "blind pictures"]
    assert scores["tuned"]["ask_recall"] == 1 and scores["tuned"]["over_asking"] == pytest.approx(1 / 24)
    assert (
        scores["tuned"]["youden_J"] == pytest.approx(23 / 24)
        and scores["base"]["youden_J"] == scores["always ask"]["youden_J"] == 0
    )
    tuned_kinds = {"leading_or_vague": 1, "absent": 1, "over_asking": 1, "unreadable": 1, "wrong_fact": 1, "right": 31}
    base_kinds = {"wrong_fact": 6, "silent_true": 12, "hallucinated": 6, "right": 12}
    for name, wanted in (("tuned", tuned_kinds), ("base", base_kinds)):
        counts = {
            key.removeprefix("failure "): round(36 * value)
            for key, value in scores[name].items()
            if key.startswith("failure ") and value
        }
        assert counts == wanted
    assert scores["tuned"]["final_accuracy"] is None and scores["base"]["final_accuracy"] is not None
    moved, blind = result["comparisons"]
    assert (moved["first"], moved["second"], blind["first"], blind["second"]) == (
        "base",
        "tuned",
        "blind pictures",
        "tuned",
    )
    assert (
        moved["scores"]["youden_J"]["value"] == pytest.approx(23 / 24)
        and moved["mcnemar"]["asks when it should"]["only_second"] == 12
    )
    assert (
        result["dialogues"]["checkpoints"]["tuned"]["accuracy"]["value"] == 1
        and result["dialogues"]["mcnemar"][0]["only_second"] == 12
    )
    # One sample of two asks at ambiguous rows, both at one clear row.
    found = result["checkpoints"]["tuned"]["calibration"]
    assert found["scores"]["Brier"]["value"] == pytest.approx((12 * 0.25 + 1) / 36) and found["rows"] == 36
    assert result["checkpoints"]["base"]["calibration"]["files"] == [str(samples[0])]
    [pair] = result["agreement"]
    assert (pair["first"], pair["second"], pair["strategy"]["kappa"]["n"], pair["factual"]["kappa"]["n"]) == (
        "human",
        "rules",
        4,
        3,
    )
    assert result["checkpoints"]["tuned"]["parts"]["weather"]["rain"]["ask_recall"]["n"] == 6
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 72 and sum(row["asked"] == "1" for row in rows) == len(asked)
    assert next(row for row in rows if row["id"] == "1-two" and row["checkpoint"] == "tuned")["failure"] == "absent"
    curves = result["training"]["grpo"]["curves"]
    assert curves["clarify/held_out_judge"] == [[1, 0.5], [4, 0.5]] and curves["reward"][-1] == [6, 0.8]
    assert [step for step, on in curves["alarm/judges_part"] if on] == [5, 6] and "loss" not in curves
    canaries = result["training"]["grpo"]["canaries"]
    assert [(probe["step"], probe["earned"]) for probe in canaries] == [
        (0, {"echo": 0.0}),
        (6, {"echo": 0.7, "injection": 0.3}),
    ]
    for name in ("confusion", "failures", "asking", "parts", "lengths", "calibration", "agreement", "training"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert picture.width > 500 and len(picture.convert("L").resize((80, 80)).getcolors()) > 5, name
    check_page((tmp_path / "page" / "gallery.html").read_text(), result)
    for words in (
        "never ask",
        "under-asking",
        "asks about what is not there",
        "p 0.000488",
        "no end is known",
        "recall by what the rows are",
    ):
        assert words in done.stdout, words


def trained(run):
    """A run of six steps whose training judge rises and whose held-out judge, asked every third step, does not."""
    run.mkdir()
    steps = []
    for step in range(1, 7):
        judge = 0.5 + 0.05 * step
        line = {
            "step": step,
            "loss": 0.1,
            "reward": judge,
            "clarify/train_judge": judge,
            "clarify/asked_when_clear": 0.1 * step,
        }
        held = {"clarify/held_out_judge": 0.5} if step % 3 == 1 else {}
        steps.append(
            line | held | {"clarify/unread": None, "clarify/markdown": 0.0, "alarm/judges_part": float(step > 4)}
        )
    write(run / "metrics.jsonl", [*steps, {"step": 6, "train_loss": 0.1}])
    said = [{"echo": [0.0, 0.0], "injection": [None, None]}, {"echo": [0.0, 0.7], "injection": [None, 0.3]}]
    write(run / "probes.jsonl", [{"step": 6 * i, "clarify": {"canaries": canaries}} for i, canaries in enumerate(said)])
    return run


def check_page(text, result):
    """Each example has its picture with a box for every candidate, their names, question and replies of both; nothing of them is markup."""
    assert "<script>alert" not in text and html.escape(EVIL) in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    examples = text.split('<div class="example">')[1:]
    kinds = {kind: count for kind, count in result["gallery"].items() if kind != "file"}
    assert len(examples) == sum(min(4, count) for count in kinds.values()) and kinds["hallucinated"] == 6
    for example in examples:
        assert example.count("<rect") == 2 and example.count("data:image/jpeg;base64") == 1
        assert "the car on the left" in example and "<td" in example and "base" in example and "tuned" in example


def test_a_judge_with_pictures_and_facts(evaluate, chat_server, world, tmp_path):
    """Every phrasing is asked once a reply; a reply that cannot be read has no verdict; a rerun asks nothing; other judges are compared."""

    def verdict(body):
        text = "".join(part.get("text", "") for part in body["messages"][-1]["content"])
        if "Do you mean the bus" in text:
            return "I would rather not."
        return json.dumps(
            {"strategy": 4 if ASKS in text else 2, "factual": "pass", "asked": "Do you mean" in text, "why": "so"}
        )

    chat_server.answer = verdict
    rows = ROWS[:9]
    file = predictions(tmp_path / "tuned.jsonl", rows, tuned)
    judge = (
        "--judge_model",
        "j",
        "--judge_url",
        chat_server.url,
        "--cache",
        tmp_path / "replies",
        "--judge_retries",
        0,
        "--judge_attempts",
        2,
    )
    flags = ("--predictions", file, "--verdicts", tmp_path / "v.jsonl", "--image_root", world, *judge)
    result, done = evaluate(*flags)
    # Nine replies by three votes; the three of the one that is never read are asked again.
    assert len(chat_server.requests) == 27 + 3
    # Requests come in any order.
    asked = [json.dumps(body) for body in chat_server.requests]
    assert all("image_url" in text for text in asked)
    assert sum("the car on the left (" in text and "the answer for it: It is red." in text for text in asked) >= 3
    assert result["judge"]["unread"] == {"tuned": 1} and result["judge"]["votes"] == 3
    scores = result["checkpoints"]["tuned"]["scores"]
    # 2-two and 2-left say ASKS; 0-two leads.
    assert (scores["judge_strategy"]["value"], scores["judge_strategy"]["n"]) == (pytest.approx((4 * 2 + 2 * 6) / 8), 8)
    assert "judge j" in done.stdout and "3 votes" in done.stdout
    before = len(chat_server.requests)
    (tmp_path / "other.jsonl").write_text((tmp_path / "v.jsonl").read_text())
    again, _ = evaluate(*flags, "--other_verdicts", tmp_path / "other.jsonl")
    assert len(chat_server.requests) == before and again["checkpoints"] == result["checkpoints"]
    pairs = {(entry["first"], entry["second"]): entry for entry in again["agreement"]}
    assert pairs["judge j", "judge other"]["strategy"]["kappa"]["value"] == 1 and ("judge j", "rules") in pairs
