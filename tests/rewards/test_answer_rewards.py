"""The rewards of the benchmarks' numbers: values by hand, never constant, unread the lowest, each answer scored against its own row."""

import itertools
import json

import pytest

from drive_vlm.data.samples import parse_row
from drive_vlm.evaluation import meta_actions, planning
from drive_vlm.evaluation.answers import points_text
from drive_vlm.rewards import REWARDS, build_reward, config_class

QUESTION = "What should the car do? A. Stop. B. Go ahead. C. Turn left."
WAY = [(0.0, 2.0 * k) for k in range(1, 7)]


def made(name, **flags):
    return build_reward(name, config_class(name)(**flags))


def prompt(text):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def plan_columns(future=WAY, form="list"):
    """One row of open-loop planning, as columns of a call."""
    row = {
        "id": "r", "reference": points_text(future, form), "past": [[0, -4], [0, -2]], "future": [list(point) for point in future],
        "speed": 4.0, "command": "straight", "axes": planning.RIGHT_FORWARD, "unit": "m", "step_s": 0.5, "protocol": planning.VERSION,
    }  # fmt: skip
    return row


def meta_columns(speed="STOP", path="LEFT_TURN", classes="senna"):
    return {"id": "m", "reference": f"{speed}, {path}", "speed_class": speed, "path_class": path, "classes": classes}


def call(reward, texts, rows, question="", **more):
    """The rewards of `texts`, each with its row."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return reward([prompt(question)] * len(texts), [answer(text) for text in texts], **columns, **more)


# Of each reward: flags, the question, a row, and answers from the best to the worst, the last of which cannot be read.
LADDERS = {
    "choice": ({}, QUESTION, {"id": "c", "reference": "B"}, ["B", "C", "I cannot say."]),
    "meta_action": (
        {}, "", meta_columns(),
        ["STOP, LEFT_TURN", "STOP, STRAIGHT", "KEEP, STRAIGHT", "I would rather not say."],
    ),
    "trajectory": (
        {}, "", plan_columns(),
        [points_text(WAY), points_text([(1, y) for _, y in WAY]), points_text([(40, y) for _, y in WAY]), "[(0, 0)]"],
    ),
    "format": ({}, "", plan_columns(), [points_text([(9, 9)] * 6), "somewhere ahead"]),
}  # fmt: skip


def test_every_new_reward_is_on_the_ladder():
    assert set(LADDERS) <= set(REWARDS)


@pytest.mark.parametrize("name", LADDERS)
def test_better_answers_earn_more_and_unread_earns_least(name):
    flags, question, row, texts = LADDERS[name]
    reward = made(name, **flags)
    logged = {}
    values = call(
        reward, texts, [row] * len(texts), question, log_metric=lambda key, value: logged.update({key: value})
    )
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values), values
    assert reward.last_terms[-1]["reason"] and not any(term["reason"] for term in reward.last_terms[:-1])
    assert logged[f"{name}/unread"] == pytest.approx(1 / len(texts)) and reward.__name__ == name
    [alarm] = reward.alarms
    assert alarm.metric == f"{name}/unread"
    # Also as plain text, which prompts and completions may be.
    columns = {key: [value] * len(texts) for key, value in row.items()}
    assert reward([question] * len(texts), texts, **columns) == values


@pytest.mark.parametrize("name", LADDERS)
def test_the_order_of_completions_is_kept(name):
    """Every order of the answers, and every order of rows, gives the values in that order."""
    flags, question, row, texts = LADDERS[name]
    reward = made(name, **flags)
    worth = dict(zip(texts, call(reward, texts, [row] * len(texts), question), strict=True))
    for order in itertools.permutations(texts):
        assert call(reward, order, [row] * len(order), question) == [worth[text] for text in order]
        assert [term["reward"] for term in reward.last_terms] == [worth[text] for text in order]


def test_each_answer_is_scored_against_its_own_row():
    rows = [{"id": "1", "reference": "A"}, {"id": "2", "reference": "B"}, {"id": "3", "reference": "C"}]
    assert call(made("choice"), ["A", "A", "C"], rows, QUESTION) == [1, 0, 1]
    other = [(3.0, 1.0 * k) for k in range(1, 7)]
    rows = [plan_columns(), plan_columns(other)]
    values = call(made("trajectory"), [points_text(other)] * 2, rows)
    assert values[1] == 1 and values[0] < 0.5


# --- choice


def test_choice_reads_as_the_evaluators_do():
    texts = ["B", "The correct answer is B.", "b)", "Go ahead", "B or C", "D", "<think>A?</think>B"]
    row = {"id": "c", "reference": "B. Go ahead."}
    assert call(made("choice"), texts, [row] * 7, QUESTION) == [1, 1, 1, 1, -1, -1, 1]
    assert call(made("choice", choice_strict=True, choice_unread=-0.5), texts, [row] * 7, QUESTION) == [1, *[-0.5] * 6]


def test_options_of_a_column_go_first():
    row = {"id": "c", "reference": "yes", "options": {"A": "yes", "B": "no"}}
    assert call(made("choice"), ["A", "no"], [row] * 2, "Is it?") == [1, 0]
    assert call(made("choice"), ["A", "no"], [row | {"options": ["yes", "no"]}] * 2, "Is it?") == [1, 0]
    # A file of both kinds of questions has empty columns.
    assert call(made("choice"), ["A"], [{"id": "c", "reference": "A", "options": {}}], QUESTION) == [1]


# --- meta-actions


def test_meta_action_weights_are_alphadrive_s():
    right = ["KEEP, STRAIGHT", "ACCELERATE, RIGHT_TURN", "DECELERATE, LEFT_CHANGE"]
    rows = [meta_columns(*text.split(", ")) for text in right]
    assert call(made("meta_action"), right, rows) == pytest.approx([0.8, 0.95, 1.0])
    assert call(made("meta_action", meta_action_weights="equal"), right, rows) == [1, 1, 1]
    assert call(made("meta_action"), ["ACCELERATE, STRAIGHT"] * 3, rows) == pytest.approx([0.4, 0.45, 0])


def test_half_an_answer_and_folded_classes():
    reward = made("meta_action")
    row = meta_columns()
    assert call(reward, ["STOP", "KEEP", "KEEP STOP, LEFT_TURN"], [row] * 3) == [0.5, 0, -1]
    folded = meta_columns("KEEP", "STRAIGHT", "alphadrive")
    assert call(reward, ["KEEP, LEFT_CHANGE"], [folded]) == [0.8]


# --- trajectories


def test_trajectory_by_hand():
    """2 m off at every step: half the reward is left; words around it take half of that."""
    off = [(2.0, y) for _, y in WAY]
    reward = made("trajectory")
    texts = [
        points_text(WAY),
        points_text(off),
        f"I would drive {points_text(off)}.",
        points_text(WAY, "json"),
        "",
        points_text(WAY[:5]),
    ]
    assert call(reward, texts, [plan_columns()] * 6) == [1, 0.5, 0.25, 0.5, -1, -1]
    assert reward.last_terms[1]["said"] == {"ADE": 2.0, "gate": 1.0}
    assert call(made("trajectory", trajectory_scale=6.0, trajectory_loose=1.0), texts[1:3], [plan_columns()] * 2) == [
        0.75,
        0.75,
    ]


def test_trajectories_never_tie_for_being_far():
    far = [points_text([(x, y) for _, y in WAY]) for x in (100, 200, 400)]
    values = call(made("trajectory"), [*far, points_text([(600, y) for _, y in WAY])], [plan_columns()] * 4)
    assert values[0] > values[1] > values[2] > 0 and values[3] == -1


def test_the_reward_is_the_evaluator_s_ade():
    import numpy as np

    rng = np.random.default_rng(0)
    said = rng.normal(0, 5, (20, 6, 2)).round(2)
    reward = made("trajectory")
    call(reward, [points_text(way) for way in said.tolist()], [plan_columns()] * 20)
    ade = planning.row_scores(said, np.array([WAY] * 20))["ADE"]
    assert [term["said"]["ADE"] for term in reward.last_terms] == pytest.approx(ade.tolist(), abs=1e-9)


def test_the_form_asked_for_is_that_of_the_row():
    for form in ("list", "pt", "wp", "json", "brackets"):
        row = plan_columns(form=form)
        texts = [points_text([(-1.5, y) for _, y in WAY], form), points_text(WAY, "fenced")]
        values = call(made("format"), texts, [row] * 2)
        # A fence around JSON is no other form: it is taken off.
        assert values == [1, float(form == "json")]


# --- format


@pytest.mark.parametrize(
    ("kind", "row", "question", "texts", "values"),
    [
        ("choice", {"id": "c", "reference": "B"}, QUESTION, ["B", "The answer is B.", "none"], [1, 0.5, 0]),
        ("trajectory", plan_columns(), "", [points_text(WAY), f"Go {points_text(WAY)}.", "ahead"], [1, 0.5, 0]),
        (
            "meta_action",
            meta_columns(),
            "",
            ["KEEP, STRAIGHT", "keep speed and go straight", "STOP", "?"],
            [1, 0.5, 0, 0],
        ),
        (
            "think",
            meta_columns(),
            "",
            ["<think>a\nb</think>\n<answer>KEEP</answer>", "<answer>KEEP</answer>", "KEEP"],
            [1, 0, 0],
        ),
    ],
)
def test_formats_by_hand(kind, row, question, texts, values):
    assert call(made("format", format_kind=kind), texts, [row] * len(texts), question) == values


# --- rows and flags


def sample(question, reply):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]
    return parse_row({"id": "s", "conversations": turns}, "rows.jsonl:1", "")


@pytest.mark.parametrize(
    ("name", "columns", "told"),
    [
        ("choice", {"reference": ["B"], "sample": [sample("Which way?", "B")]}, "the question lists no options"),
        (
            "choice",
            {"reference": ["the bus"], "sample": [sample(QUESTION, "x")]},
            "own answer names none of the options A, B, C",
        ),
        ("meta_action", {"reference": ["KEEP, STRAIGHT"]}, "take rows of tools/build_meta_actions.py"),
        ("trajectory", {"reference": ["[(0, 1)]"]}, "take rows of tools/build_nuscenes_planning.py"),
        (
            "trajectory",
            {key: [value] for key, value in plan_columns().items()} | {"reference": ["ahead"]},
            "is no trajectory",
        ),
        ("format", {"reference": [""]}, "no answer whose form"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(name, columns, told):
    [problem] = made(name).check(id=["r"], **{key: value for key, value in columns.items() if key != "id"})
    assert told in problem and "\n" not in problem


def test_rows_that_can_be_scored_pass():
    assert made("choice").check(id=["r"], reference=["B"], sample=[sample(QUESTION, "B")]) == [None]
    assert made("meta_action").check(**{key: [value] for key, value in meta_columns().items()}) == [None]
    assert made("trajectory").check(**{key: [value] for key, value in plan_columns().items()}) == [None]
    assert made("format").check(id=["r"], reference=["x"]) == [None]


@pytest.mark.parametrize("name", ["choice", "meta_action", "trajectory"])
def test_unread_may_not_be_worth_as_much_as_an_answer(name):
    with pytest.raises(ValueError, match=f"--{name}_unread 0: below 0"):
        config_class(name)(**{f"{name}_unread": 0.0})


def test_terms_are_json():
    for name, (flags, question, row, texts) in LADDERS.items():
        reward = made(name, **flags)
        call(reward, texts, [row] * len(texts), question)
        assert json.loads(json.dumps(reward.last_terms))[0]["reward"] > 0, name
    assert meta_actions.VERSION
