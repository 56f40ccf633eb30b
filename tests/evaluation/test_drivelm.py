import json
import re
from pathlib import Path

import pytest

from drive_vlm.evaluation import drivelm
from drive_vlm.evaluation.answers import options_of, read_choice
from drive_vlm.evaluation.drivelm import (
    GPT_LEFT_OUT,
    accuracy_table,
    combine_language,
    gate,
    ignored_coordinates,
    match_points,
    over_seeds,
    parse_rating,
    points,
    read_questions,
    score,
)

KIT = Path(__file__).resolve().parents[2] / ".." / "shared" / "kit" / "noncommercial" / "drivelm"


def qa(question, answer, *tags):
    return {"Q": question, "A": answer, "tag": list(tags)}


def make_test(**categories):
    return {"s": {"key_frames": {"f": {"QA": categories}}}}


FRAME = make_test(
    perception=[
        qa("Objects?", "Cars <c1,CAM_BACK,100.0,200.0> and <c2,CAM_FRONT,300.0,400.0>.", 2),
        qa("Status of <c1,CAM_BACK,100.0,200.0>?", "A", 0),
    ],
    prediction=[
        qa("Is <c2,CAM_FRONT,300.0,400.0> a sign?", "No.", 0),
        qa("What first?", "First <c2,CAM_FRONT,300.0,400.0>.", 3),
    ],
    planning=[qa("Safe actions?", "Brake.", 1)],
    behavior=[qa("Behaviour?", "B", 0)],
)


def answer_all(test, **changes):
    answers = {question.id: question.target for question in read_questions(test)}
    return answers | {f"s_f_{number[1:]}": text for number, text in changes.items()}


def test_ids_count_through_the_categories():
    questions = read_questions(FRAME)
    assert [q.id for q in questions] == [f"s_f_{i}" for i in range(6)]
    assert [q.alias for q in questions][2:5] == ["s_f_prediction_0", "s_f_prediction_1", "s_f_planning_0"]


def test_match_is_greedy_with_l1_below_16():
    matched, f1 = match_points("at 100.0,200.0", "at 107.0,208.9 or 400.0,400.0")  # distance 15.9
    assert matched == [(107.0, 208.9)]
    assert f1 == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert match_points("100.0,200.0", "108.0,208.0") == ([], 0.0)  # exactly 16
    # The first prediction takes the nearest reference although the second is nearer to it: the greedy rule.
    matched, f1 = match_points("10.0,0.0 0.0,0.0", "4.0,0.0 90.0,0.0")
    assert matched == [(4.0, 0.0)] and f1 == pytest.approx(0.5)
    assert match_points("no points", "no points") == ([], 0.0)


def test_points_by_the_official_rule():
    assert points("<c1,CAM_BACK,10.5,20.5> at 3.5") == [(10.5, 20.5)]
    assert points("<c1,CAM_BACK,10,20>") == []
    assert ignored_coordinates("<c1,CAM_BACK,10,20.5> <c2,CAM_FRONT,[5, 6]> 7") == 3


def test_gate_keeps_questions_about_matched_objects_only():
    questions = read_questions(FRAME)
    found_one = answer_all(FRAME, _0="a car <c9,CAM_BACK,105.0,205.0>")
    assert [q.id for q in gate(questions, found_one)] == ["s_f_0", "s_f_1", "s_f_3", "s_f_4", "s_f_5"]
    found_none = answer_all(FRAME, _0="nothing")
    assert [q.id for q in gate(questions, found_none)] == ["s_f_0", "s_f_3", "s_f_4", "s_f_5"]
    # The gate compares with the reference's point, so a question that names the predicted point does not pass.
    assert len(gate(questions, answer_all(FRAME))) == 6


def test_every_frame_has_its_own_graph():
    second = json.loads(json.dumps(FRAME["s"]["key_frames"]["f"]))
    test = {"s": {"key_frames": {"f": FRAME["s"]["key_frames"]["f"], "g": second}}}
    answers = {q.id: q.target for q in read_questions(test)} | {"s_g_0": "nothing"}
    assert [q.id for q in gate(read_questions(test), answers) if q.frame == "s_g"] == [
        "s_g_0",
        "s_g_3",
        "s_g_4",
        "s_g_5",
    ]


def test_parts_and_final_by_hand():
    answers = answer_all(FRAME, _5="B.", _3="First <c2,CAM_FRONT,300.0,400.0> then 9.0,9.0")
    result = score(read_questions(FRAME), answers, lambda pairs: [80.0, 60.0])
    assert result.accuracy == pytest.approx(2 / 3)  # "B." is not "B"
    assert (result.gpt, result.match_gpt) == (80.0, 60.0)
    assert result.match_f1 == pytest.approx(100 * 2 / 3)
    assert result.match == pytest.approx((200 / 3 + 60) / 2)
    # One language answer, equal to its reference: BLEU and ROUGE 1, CIDEr 0 (a single document has no idf).
    assert result.language == pytest.approx(2 / 3)
    assert result.final == pytest.approx(0.4 * 0.8 + 0.2 * 2 / 3 + 0.2 * (200 / 3 + 60) / 200 + 0.2 * 2 / 3)
    assert result.covered_weight == pytest.approx(1) and result.note == ""
    assert result.n == {"accuracy": 3, "gpt": 1, "language": 1, "match": 1}


def test_judge_sees_the_gpt_pairs_then_the_match_pairs():
    seen = []
    score(read_questions(FRAME), answer_all(FRAME, _4="Go."), lambda pairs: [seen.extend(pairs), 1.0, 2.0][1:])
    assert seen == [("Go.", "Brake."), ("First <c2,CAM_FRONT,300.0,400.0>.",) * 2]


def test_without_a_judge_no_final_score():
    result = score(read_questions(FRAME), answer_all(FRAME))
    assert result.final is None and result.gpt is None and result.match is None and result.note == GPT_LEFT_OUT
    assert result.covered_weight == pytest.approx(0.5)  # language .2, accuracy .2, F1 half of match .1
    assert result.covered_score == pytest.approx(0.2 * 2 / 3 + 0.2 * 1 + 0.1 * 1)


def test_where_the_official_script_raises():
    questions = read_questions(FRAME)
    answers = answer_all(FRAME, _3="300.0,400.0 and 5.5")
    del answers["s_f_4"]
    result = score(questions, answers, lambda pairs: [None] * len(pairs))
    assert (result.missing, result.odd_decimals, result.unrated) == (1, 1, 2)
    assert result.match_f1 == pytest.approx(100) and result.final is None and result.note == "the judge rated nothing"
    only_text = make_test(perception=[qa("Objects?", "none", 2)])
    result = score(read_questions(only_text), {"s_f_0": "none"}, lambda pairs: [])
    assert result.final is None and result.accuracy is None
    assert result.note == "no question counted for: accuracy, GPT, match"
    # An odd number of decimals in a question: the pair rule goes on, the rest of the frame is scored.
    odd = make_test(perception=[qa("Objects?", "<c1,CAM_BACK,1.0,2.0>", 2), qa("Is 5.5 m enough?", "Yes", 0)])
    assert score(read_questions(odd), {"s_f_0": "<c1,CAM_BACK,1.0,2.0>", "s_f_1": "Yes"}).accuracy == 1.0


def test_integer_coordinates_score_nothing_and_are_counted():
    result = score(read_questions(FRAME), answer_all(FRAME, _3="First <c2,CAM_FRONT,300,400>."))
    assert result.match_f1 == 0 and result.ignored_coordinates == 2


def test_formula_gives_the_upstream_readme_example():
    # challenge/README.md (commit 01cf687ed8e10d0fe3884361bfce46e224ef9851) prints these parts and this final score.
    parts = {
        "Bleu_1": 0.0495223110147729,
        "Bleu_2": 0.00021977465683011536,
        "Bleu_3": 3.6312541763196866e-05,
        "Bleu_4": 1.4776149283286042e-05,
        "ROUGE_L": 0.08383567940883102,
        "CIDEr": 0.09901486412073952,
    }
    weights = drivelm.WEIGHTS
    final = (
        weights["gpt"] * 0.6511111111111111 + weights["language"] * combine_language(parts) + weights["match"] * 0.2825
    )
    assert final == pytest.approx(0.3240234750718823, abs=1e-12)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("78", 78),
        (" 62.5\n", 62.5),
        ("Score: 85/100.", 85),
        ("<think>maybe 20 or 30</think>\n41", 41),
        ("between 20 and 30", None),
        ("101", None),
        ("-5", None),
        ("good", None),
    ],
)
def test_parse_rating(reply, rating):
    assert parse_rating(reply) == rating


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"s": {}}, "scene s"),
        (make_test(perception=[{"Q": "x", "A": "y"}]), 's_f perception 0: no "tag"'),
        (make_test(perception=[{"Q": "x", "tag": [0]}]), "s_f perception 0"),
        (make_test(), "no questions"),
    ],
)
def test_bad_test_files_are_named(test, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_questions(test, "t.json")


def test_foreign_ids_are_refused():
    with pytest.raises(ValueError, match="no prediction has an id"):
        score(read_questions(FRAME), {"other_0": "x"})


@pytest.fixture
def kit_questions():
    if not KIT.is_dir():
        pytest.skip("the kit of real data (../shared/kit) is absent")
    return read_questions(json.loads((KIT / "test_eval.json").read_text()))


# Golden numbers of both kit tests: the official script's logic (OpenDriveLab/DriveLM challenge/evaluation.py, commit
# 046920057779d7356b05aaf4ea8328b071978724) run on the same pair with a stub for the GPT call and with pycocoevalcap 1.2
# (Java PTBTokenizer) for the language part.
@pytest.mark.kit
def test_official_sample_pair(kit_questions):
    answers = {row["id"]: row["answer"] for row in json.loads((KIT / "output.json").read_text())}
    result = score(kit_questions, answers, lambda pairs: [50.0] * len(pairs))
    assert result.n == {"accuracy": 9, "gpt": 9, "language": 9, "match": 4} and result.gated == 35
    assert result.language_parts == pytest.approx(
        {
            "Bleu_1": 0.19878472222204968,
            "Bleu_2": 0.08021752318262533,
            "Bleu_3": 0.03049990469169432,
            "Bleu_4": 2.240968392219611e-06,
            "ROUGE_L": 0.18421722346531388,
            "CIDEr": 0.0017230094120258114,
        },
        rel=1e-9,
    )
    assert (result.accuracy, result.match) == (0.0, 25.0)
    assert result.final == pytest.approx(0.2674510414781805, abs=1e-12)


@pytest.mark.kit
def test_a_real_model_s_words_are_read(kit_questions):
    """The published sample answers of a model say "Back up." where an option is meant; nothing else in them names an option."""
    answers = {row["id"]: row["answer"] for row in json.loads((KIT / "output.json").read_text())}
    status = [q for q in kit_questions if "moving status of object" in q.question]
    said = [read_choice(answers[q.id], options_of(q.question)).value for q in status]
    assert said == ["C", "A", "C", "A", "D", "C", "C", "D"]
    behavior = [q for q in kit_questions if q.category == "behavior"]
    assert {read_choice(answers[q.id], options_of(q.question)).value for q in behavior} == {None}
    # As references they are read whole, options of two sentences included.
    assert all(
        read_choice(options_of(q.question)[q.target], options_of(q.question)).value == q.target for q in behavior
    )


@pytest.mark.kit
def test_official_numbers_on_shifted_references(kit_questions):
    """References with words dropped and points moved by 0-9 px: passes the gate, so that every part is exercised."""
    answers = {}
    for k, question in enumerate(kit_questions, start=1):
        text = question.target.replace("ego ", "") if k % 5 == 0 else question.target
        text = (" ".join(text.split()[:-2]) or text) if k % 7 == 0 else text
        answers[question.id] = re.sub(r"(\d+)\.(\d+)", lambda m, k=k: f"{float(m[0]) + (k % 4) * 3:.1f}", text)
    result = score(kit_questions, answers, lambda pairs: [float(len(answer) % 100) for answer, _ in pairs])
    assert result.n == {"accuracy": 24, "gpt": 25, "language": 9, "match": 4} and result.gated == 4
    assert result.language_parts == pytest.approx(
        {
            "Bleu_1": 0.9614567371652379,
            "Bleu_2": 0.9414666889765614,
            "Bleu_3": 0.9237839901972097,
            "Bleu_4": 0.906334129280346,
            "ROUGE_L": 0.9651020488281714,
            "CIDEr": 6.46596742183656,
        },
        rel=1e-9,
    )
    assert (result.accuracy, result.gpt) == (1.0, pytest.approx(43.48))
    assert result.match == pytest.approx(53.7499996875, abs=1e-9)
    assert result.final == pytest.approx(0.6510839445361111, abs=1e-12)


STATUS = "Status of <c1,CAM_BACK,100.0,200.0>? Please select the correct answer from the following options: A. Going ahead. B. Stopped."


def choices(*answers: str) -> tuple[list, dict]:
    """One scene an answer, each with the same choice (right: B) behind a perception answer that finds the object."""
    first = qa("Objects?", "Cars <c1,CAM_BACK,100.0,200.0>.", 2)
    test = {
        f"s{i}": {"key_frames": {"f": {"QA": {"perception": [first, qa(STATUS, "B", 0)]}}}} for i in range(len(answers))
    }
    questions = read_questions(test)
    said = {q.id: first["A"] if q.id.endswith("_0") else answers[int(q.scene[1:])] for q in questions}
    return questions, said


def test_lenient_accuracy_stands_beside_the_official_one():
    questions, said = choices("B", "The answer is B.", "b", "stopped", "A", "A or B")
    assert score(questions, said).accuracy == pytest.approx(1 / 6)
    table = accuracy_table(questions, said)
    found = table.to_dict()
    assert found["scores"]["strict"]["value"] == pytest.approx(100 / 6)
    assert (found["scores"]["lenient"]["value"], found["scores"]["lenient"]["unread"]) == (pytest.approx(400 / 6), 1)
    assert (found["strict_and_lenient_differ"], found["unread"], found["scores"]["lenient"]["groups"]) == (3, 1, 6)
    assert found["baselines"]["majority of these rows"]["value"] == 100 and found["baselines"]["chance"]["value"] == 50
    assert not found["partial"]
    blind = accuracy_table(questions, said, blind={q.id: "B" for q in questions if q.scene == "s0"})
    assert (blind.sections["baselines"]["blind, lenient"].n, blind.sections["baselines"]["blind, lenient"].of) == (1, 6)


def test_answers_without_a_choice_are_compared_by_words():
    test = make_test(behavior=[qa("Behaviour?", "The car waits.", 0), qa("Is it red?", "Yes.", 0)])
    questions = read_questions(test)
    table = accuracy_table(questions, {questions[0].id: "the car waits", questions[1].id: "Yes, it is."})
    assert (
        table is not None
        and table.sections["scores"]["lenient"].value == 100
        and table.sections["scores"]["strict"].value == 0
    )
    assert accuracy_table(read_questions(make_test(planning=[qa("What?", "Brake.", 1)])), {}) is None


def test_the_judge_moves_from_seed_to_seed():
    questions, answers = read_questions(FRAME), answer_all(FRAME)
    judges = [lambda pairs, value=value: [value] * len(pairs) for value in (60.0, 70.0, None)]
    first = score(questions, answers, judges[0])
    found = over_seeds(questions, answers, first, judges[1:])
    assert found["gpt"]["values"] == [60, 70, None] and found["gpt"]["mean"] == 65
    assert found["gpt"]["sd"] == pytest.approx(50**0.5)
    # What a seed changes is the weights of the rated parts: 0.4 and 0.1 of 100 points.
    assert found["final"]["values"][1] == pytest.approx(score(questions, answers, judges[1]).final)
    assert found["final"]["values"][2] is None
