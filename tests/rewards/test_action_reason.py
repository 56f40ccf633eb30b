"""R2 against values by hand, 267 real label rows and a judge over HTTP; what is refused before the training."""

import itertools
import json
import random

import pytest

from drive_vlm.evaluation.oia_labels import (
    ACTION_TEXTS,
    REASON_TEXTS,
    Labels,
    action_labels,
    json_answer,
    reason_labels,
    text_answer,
)
from drive_vlm.judges.chat_client import ChatError
from drive_vlm.rewards import build_reward
from drive_vlm.rewards.action_reason import ActionReasonConfig, bleu4, labels_score, rule_score
from drive_vlm.stages.rl.rollouts import reward_facts

CLEAR = text_answer(["move forward"], ["road is clear"])


def reward(mode, **flags):
    return build_reward("action_reason", ActionReasonConfig(action_reason_mode=mode, **flags))


def labels(actions, reasons):
    return Labels(tuple(actions)), Labels(tuple(reasons))


@pytest.mark.parametrize(
    ("hypothesis", "target", "value"),
    [
        ("move forward traffic light", "move forward traffic light is green", 0.606531),
        ("stop/slow down obstacle: car", "stop/slow down obstacle: person", 0.809107),
        ("turn left no lane on the left", "turn right no lane on the right", 0.434721),
        ("move forward road is clear", "move forward traffic light is green", 0),
        ("road is clear", "Road is clear", 1),
        ("", "road", 0),
        ("road", "", 0),
        # 2 of 3 words and 1 of 2 pairs are there: (2/3 x 1/2) ** (1/2), and nothing for being longer.
        ("road is wet", "road is", 3**-0.5),
    ],
)
def test_bleu(hypothesis, target, value):
    assert bleu4(hypothesis, target) == pytest.approx(value, abs=5e-7)


def test_a_template_lets_wrong_reasons_pass_bleu():
    """Of all 6,972 wrong pairs of an action and a reason 3 % pass without the template and 26 % with it."""
    pairs = list(itertools.product(ACTION_TEXTS, REASON_TEXTS))
    wrong = [(a, b) for a, b in itertools.permutations(pairs, 2) if bleu4(" ".join(a), " ".join(b)) >= 0.5]
    assert (len(wrong), sum(a[0] == b[0] for a, b in wrong)) == (210, 120)
    texts = [text_answer([action], [reason]) for action, reason in pairs]
    passed = sum(bleu4(a, b) >= 0.5 for a, b in itertools.permutations(texts, 2))
    assert passed / 6972 == pytest.approx(0.259, abs=5e-4)


def test_bleu_of_answers_in_both_forms():
    scored = reward("bleu")
    own = [CLEAR, json_answer("a wet road", ["move forward"], ["road is clear"]), CLEAR, CLEAR, CLEAR]
    said = [
        json_answer("", ["move forward"], ["road is clear"]),
        CLEAR,
        "move forward road is clear",
        "",
        "Action: stop",
    ]
    assert scored([""] * 5, said, reference=own) == [1, 1, 0, 0, 0]
    assert [term["bleu"] for term in scored.last_terms] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("actions", "reasons", "value"),
    [
        ([0], [1], 1),
        ([1], [7, 3], 1),
        ([2], [9], 1),
        # A turn needs no reason for it, but a reason that says nothing about it counts against.
        ([2], [1], 0),
        ([2], [15], 0),
        # The right is blocked: left is not, and the obstacle to the right speaks for it.
        ([2], [18], 1),
        # Forward, since the left is blocked: no reason of its own, though what is said is relevant.
        ([0], [15], 0),
        ([0], [1, 15], 1),
        ([0, 2], [1, 15], 0.5),
        ([0, 1], [1], 2 / 3),
        ([0], [1, 7], 2 / 3),
        ([1], [1], 0),
        ([], [1], 0),
        ([0], [], 0),
    ],
)
def test_the_rule_by_hand(actions, reasons, value):
    assert rule_score(*labels(actions, reasons)) == pytest.approx(value)


def test_words_out_of_vocabulary_are_worth_nothing_to_the_rule():
    scored = reward("rule")
    logged = {}
    said = [
        CLEAR,
        text_answer(["fly"], ["road is clear"]),
        text_answer(["Forward!"], ["clear road", "a whim"]),
        "no form",
    ]
    values = scored([""] * 4, said, log_metric=lambda name, value: logged.update({name: value}))
    assert values == [1, 0, 0, 0] and logged == {"action_reason/unknown": 0.5}
    assert scored.last_terms[2]["reasons"] == ("clear road", "a whim") and scored.last_terms[3]["form"] == "none"
    assert scored.check(id=["a"], reference=[None]) == [None]


def test_labels_are_the_mean_of_two_sample_f1():
    """2 |T and P| / (|T| + |P|) as sets; 0 where both are empty."""
    draw = random.Random(0)
    for _ in range(200):
        true_a, said_a, true_r, said_r = ({i for i in range(n) if draw.random() < 0.3} for n in (4, 4, 21, 21))
        f1 = [2 * len(t & p) / max(len(t) + len(p), 1) for t, p in ((true_a, said_a), (true_r, said_r))]
        vectors = ([int(i in true) for i in range(n)] for true, n in ((true_a, 4), (true_r, 21)))
        assert labels_score(*labels(sorted(said_a), sorted(said_r)), *vectors, [1.0] * 4) == pytest.approx(
            sum(f1) / 2, abs=1e-12
        )


def test_labels_of_the_row():
    reason = [int(i in (1, 17)) for i in range(21)]
    columns = {"actions": [[1, 0, 0, 0]] * 3, "reason": [reason] * 3}
    said = [
        text_answer(["move forward"], ["road is clear", "solid line on the left"]),
        CLEAR,
        text_answer(["fly"], ["why not"]),
    ]
    assert reward("labels")([""] * 3, said, **columns) == pytest.approx([1, (1 + 2 / 3) / 2, 0])
    # Forward and left, where forward alone is right: 2 x 1 / (1 + 1 + w) with the weight w of a wrong turn.
    both = text_answer(["move forward", "turn left"], ["road is clear"])
    heavy = reward("labels", action_reason_weights=[1.0, 1.0, 2.0, 2.0])
    assert heavy([""], [both], actions=[[1, 0, 0, 0]], reason=[reason])[0] == pytest.approx((2 / 4 + 2 / 3) / 2)


def test_rows_that_cannot_be_scored_are_known_before_the_training():
    ids = ["a", "b", "c", "d"]
    found = reward("labels").check(
        id=ids, actions=[[1, 0, 0, 0], [1, 0, 0], None, [1, 0, 0, 2]], reason=[[0] * 21] * 4, reference=[None] * 4
    )
    assert found[0] is None and "'actions' must be 4 numbers of 0 or 1" in found[1] and all(found[1:])
    assert reward("labels").check(id=["a"], reference=["x"]) == [found[2]]
    found = reward("bleu").check(id=ids, reference=[CLEAR, None, "A wet road.", "Action: stop; Reason: "])
    assert found[0] is None and all("must say an action and a reason" in problem for problem in found[1:])
    assert reward("rule").check(id=["a"]) == [None]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"action_reason_mode": "judge"}, "no judge: give --judge_model"),
        ({"judge_model": "m"}, "--judge_model is for --action_reason_mode judge, and it is rule"),
        ({"action_reason_prompt": "p.txt"}, "--action_reason_prompt is for --action_reason_mode judge"),
        ({"action_reason_weights": [1.0, 2.0, 1.0, 1.0]}, "--action_reason_weights is for --action_reason_mode labels"),
        ({"action_reason_weights": [1.0], "action_reason_mode": "labels"}, "4 numbers of at least 0"),
        ({"action_reason_weights": [0.0] * 4, "action_reason_mode": "labels"}, "not all 0"),
        (
            {"action_reason_mode": "judge", "judge_model": "m", "action_reason_prompt": "/nowhere.txt"},
            "the prompt cannot be read",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(ValueError, match=words):
        build_reward("action_reason", ActionReasonConfig(**flags))


@pytest.fixture
def judged(chat_server, tmp_path):
    """A judge that gives 4 for the clear road, no score for green lights, 1 for all else."""

    def answer(body):
        text = body["messages"][-1]["content"]
        assert "description" not in text and "wet" not in text
        if "green" in text:
            return "I cannot say: 4"
        return f"<think>{{3}}</think>Well: ```json\n{json.dumps({'score': 4 if 'road is clear' in text else 1})}\n```"

    chat_server.answer = answer
    return reward("judge", judge_model="m", judge_url=chat_server.url, cache=str(tmp_path / "cache"), judge_attempts=2)


def test_a_judge_reads_action_and_justification_alone(judged, chat_server):
    logged = {}
    said = [
        json_answer("a wet road", ["move forward"], ["road is clear"]),
        CLEAR,
        text_answer(["turn left"], ["obstacle: car"]),
        text_answer(["move forward"], ["green light"]),
        "no form",
        "Action: stop",
    ]
    values = judged([""] * 6, said, log_metric=lambda name, value: logged.update({name: value}))
    assert values == [1, 1, 0.25, None, 0, 0] and logged == {"action_reason/unread": pytest.approx(1 / 6)}
    # Equal pairs once, the unreadable one in both attempts, nothing for answers that say nothing.
    assert len(chat_server.requests) == 4
    [text] = [text for text in chat_server.last_texts() if "turn left" in text]
    assert "Action: turn left\nJustification: obstacle: car\n" in text


@pytest.mark.parametrize(
    "reply", ['{"score": 5}', '{"score": true}', '{"score": "4"}', '{"score": 1} {"score": 4}', "4", ""]
)
def test_what_is_no_score_is_unknown_and_never_0(judged, chat_server, reply):
    chat_server.answer = lambda body: reply
    assert judged([""], [CLEAR]) == [None] and judged.last_terms[0]["unread"]


def test_a_judge_that_dies_is_one_line(judged, chat_server):
    chat_server.stop()
    judged._judge.client.max_retries = 0
    with pytest.raises(
        ChatError, match=r"^m at http://127\.0\.0\.1:\d+/v1: .*APIConnectionError: Connection error"
    ) as stopped:
        judged([""], [CLEAR])
    assert "\n" not in str(stopped.value)


def test_a_resumed_run_may_ask_the_judge_elsewhere():
    first, second = (
        ActionReasonConfig(action_reason_mode="judge", judge_model="m", judge_url=url)
        for url in ("http://a/v1", "http://b/v1")
    )
    facts = reward_facts([("action_reason", first)])
    assert facts == reward_facts([("action_reason", second)]) and facts["judge_model"] == "m"
    assert facts != reward_facts([("action_reason", ActionReasonConfig(action_reason_mode="rule"))])


def test_the_rule_on_real_labels(kit):
    """267 rows of BDD-OIA's test split: the row's own reasons, those of other rows, forward and stop exchanged. The rows were
    picked for rare combinations; on all 4,557 the same rule gives .972, .441 and .187."""
    folder = kit / "noncommercial" / "bddoia"
    actions = json.loads((folder / "test_25k_images_actions.json").read_text())
    reasons = {
        row["file_name"]: row["reason"] for row in json.loads((folder / "test_25k_images_reasons.json").read_text())
    }
    vectors = [
        (actions["annotations"][image["id"]]["category"][:4], reasons[image["file_name"]])
        for image in actions["images"]
    ]
    rows = [labels(*([i for i, one in enumerate(vector) if one] for vector in pair)) for pair in vectors]
    own = [rule_score(*row) for row in rows]
    assert len(own) == 267 and sum(own) / 267 == pytest.approx(0.9245, abs=5e-5)
    with_reason = [score for score, row in zip(own, rows, strict=True) if row[1].indices]
    assert len(with_reason) == 259 and sum(with_reason) / 259 == pytest.approx(0.9530, abs=5e-5)
    single = [score for score, row in zip(own, rows, strict=True) if len(row[0].indices) == len(row[1].indices) == 1]
    assert single == [1] * 93
    others = [row[1] for row in rows]
    for seed in range(5):
        random.Random(seed).shuffle(others)
        scores = [rule_score(row[0], other) for row, other in zip(rows, others, strict=True)]
        assert 0.38 < sum(scores) / 267 < 0.48
    swapped = [Labels(tuple({0: 1, 1: 0}.get(i, i) for i in row[0].indices)) for row in rows]
    scores = [rule_score(actions, row[1]) for actions, row in zip(swapped, rows, strict=True)]
    assert sum(scores) / 267 == pytest.approx(0.3070, abs=5e-5)
    # The same rows as texts, through the vocabulary: what the labels say is what the rule reads.
    scored = reward("rule")
    texts = [text_answer([ACTION_TEXTS[i] for i in a.indices], [REASON_TEXTS[i] for i in r.indices]) for a, r in rows]
    assert scored([""] * 267, texts) == own
    assert all(action_labels([text]).indices == (i,) for i, text in enumerate(ACTION_TEXTS))
    assert all(reason_labels([text]).indices == (i,) for i, text in enumerate(REASON_TEXTS))
