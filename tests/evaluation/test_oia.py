"""BDD-OIA's scores by hand, next to scikit-learn, and next to the real outputs of a network on real labels."""

import json
import math

import numpy as np
import pytest

from drive_vlm.evaluation.oia import (
    KINDS,
    REASON_ORDER,
    Answers,
    LabelSets,
    baselines,
    changes,
    distribution,
    label_sets,
    pair_f1,
    scores,
)
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS, REASON_TEXTS, text_answer


def actions(*words):
    """ "1001" a row; no reasons."""
    return label_sets([[int(digit) for digit in word] for word in words], np.zeros((len(words), 21), dtype=int))


def values(estimates):
    return {name: entry.value for name, entry in estimates.items()}


# The reference's golden examples A and B: truth, said, F1_all, F1 of each action, mF1, accuracy, exact, micro-F1.
GOLDEN = {
    "A": (
        ("1001", "0100", "1010", "0000"),
        ("1000", "0110", "1010", "0000"),
        7 / 12,
        (1, 1, 2 / 3, 0),
        2 / 3,
        0.875,
        0.5,
        0.8,
    ),
    "B": (("1000", "0100", "0100"), ("0000", "0100", "1000"), 1 / 3, (0, 2 / 3, 0, 0), 1 / 6, 0.75, 1 / 3, 0.4),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_examples(name):
    truth, said, f1_all, each, m_f1, accuracy, exact, micro = GOLDEN[name]
    found = values(scores(actions(*truth), actions(*said), range(len(truth)))["action"])
    expected = {"F1_all": f1_all, "mF1": m_f1, "accuracy": accuracy, "exact": exact, "micro_F1": micro}
    expected |= {f"F1 {text}": f1 for text, f1 in zip(ACTION_TEXTS, each, strict=True)}
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    accuracies = [found[f"accuracy {text}"] for text in ACTION_TEXTS]
    assert np.mean(accuracies) == pytest.approx(accuracy, abs=1e-12)


def published(truth, said):
    """The data set's own figures by scikit-learn, which must be there: {kind: {score: value}}."""
    from sklearn.metrics import accuracy_score, f1_score

    found = {}
    for kind, texts in KINDS.items():
        t, p = truth.of(kind).astype(int), said.of(kind).astype(int)
        each = f1_score(t, p, average=None, zero_division=0)
        found[kind] = {
            "F1_all": f1_score(t, p, average="samples", zero_division=0),
            "mF1": each.mean(),
            "micro_F1": f1_score(t, p, average="micro", zero_division=0),
            "accuracy": (t == p).mean(),
            "exact": accuracy_score(t, p),
        }
        found[kind] |= {f"F1 {text}": each[c] for c, text in enumerate(texts)}
        found[kind] |= {f"accuracy {text}": accuracy_score(t[:, c], p[:, c]) for c, text in enumerate(texts)}
    pairs = [(sets.action[:, :, None] & sets.reason[:, None, :]).reshape(len(sets), -1) for sets in (truth, said)]
    found["pair"] = {"F1_all": f1_score(*pairs, average="samples", zero_division=0)}
    return found


def test_scikit_learn_says_the_same_of_chance():
    generator = np.random.default_rng(0)
    truth, said = (
        LabelSets(generator.random((50, 4)) < share, generator.random((50, 21)) < share / 2) for share in (0.4, 0.3)
    )
    # A class that is neither true nor said, and rows without any label.
    for sets in (truth, said):
        sets.reason[:, 5] = False
        sets.action[:3], sets.reason[:5] = False, False
    for kind, expected in published(truth, said).items():
        assert values(scores(truth, said, range(50))[kind]) == pytest.approx(expected, abs=1e-12)


def test_real_outputs_on_real_labels(kit):
    """Golden example D: ResNet-50's logits on 267 rows of the test split."""
    folder = kit / "noncommercial" / "bddoia"
    outputs = [json.loads(line) for line in (folder / "resnet50_joint_seed43_logits.jsonl").read_text().splitlines()]
    labels = json.loads((folder / "test_25k_images_actions.json").read_text())
    reasons = {
        row["file_name"]: row["reason"] for row in json.loads((folder / "test_25k_images_reasons.json").read_text())
    }
    true = {row["file_name"]: labels["annotations"][row["id"]]["category"][:4] for row in labels["images"]}
    names = [row["file_name"] for row in outputs]
    truth = label_sets([true[name] for name in names], [reasons[name] for name in names])
    said = LabelSets(*(np.array([row[f"{kind}_logits"] for row in outputs]) > 0 for kind in KINDS))
    found = scores(truth, said, [name[:17] for name in names])
    golden = json.loads((folder / "golden.json").read_text())["sample"]
    for kind, texts in KINDS.items():
        entry = golden[kind]
        expected = {
            "F1_all": entry["F1_all"],
            "mF1": entry["mF1"],
            "micro_F1": entry["micro_F1"],
            "accuracy": entry["accuracy"],
        }
        expected |= {"exact": entry["exact_match"]}
        expected |= {f"F1 {text}": value for text, value in zip(texts, entry["F1_per_class"], strict=True)}
        expected |= {f"accuracy {text}": value for text, value in zip(texts, entry["accuracy_per_class"], strict=True)}
        assert len(names) == entry["n"] == 267
        assert values(found[kind]) == pytest.approx(expected, abs=1e-12)
        assert found[kind]["F1_all"].low < entry["F1_all"] < found[kind]["F1_all"].high
    assert (found["action"]["F1_all"].value, found["reason"]["mF1"].value) == pytest.approx(
        (0.599875, 0.240808), abs=1e-6
    )
    for kind, expected in published(truth, said).items():
        assert values(found[kind]) == pytest.approx(expected, abs=1e-12)


def test_pairs_by_hand():
    true = label_sets([[1, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]], np.eye(21, dtype=int)[[0, 1, 7, 8]])
    said = label_sets([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.eye(21, dtype=int)[[0, 1, 3, 8]])
    # whole; one of two pairs; the action with another reason; a reason without an action
    assert pair_f1(true, said).tolist() == [1, 2 / 3, 0, 0]
    assert scores(true, said, "abcd")["pair"]["F1_all"].value == pytest.approx(5 / 12)


def test_intervals_draw_videos():
    """Six pictures of one video are one observation, and both checkpoints are drawn together."""
    generator = np.random.default_rng(0)
    videos = [LabelSets(generator.random((30, 4)) < 0.4, generator.random((30, 21)) < 0.2) for _ in range(3)]
    copied = [LabelSets(np.repeat(sets.action, 6, 0), np.repeat(sets.reason, 6, 0)) for sets in videos]
    owners = np.repeat(np.arange(30), 6)
    one = scores(videos[0], videos[1], range(30))
    six = scores(copied[0], copied[1], owners)
    for kind, entries in one.items():
        for name, entry in entries.items():
            assert (six[kind][name].low, six[kind][name].high) == pytest.approx((entry.low, entry.high)), (kind, name)
    naive = scores(copied[0], copied[1], range(180))["action"]["F1_all"]
    assert naive.high - naive.low < 0.6 * (one["action"]["F1_all"].high - one["action"]["F1_all"].low)
    moved = changes(videos[0], videos[1], videos[2], range(30))
    other = scores(videos[0], videos[2], range(30))
    assert moved["reason"]["mF1"].value == pytest.approx(other["reason"]["mF1"].value - one["reason"]["mF1"].value)
    assert moved["reason"]["mF1"].low < moved["reason"]["mF1"].value < moved["reason"]["mF1"].high
    same = changes(videos[0], videos[1], videos[1], range(30))
    assert {(e.value, e.low, e.high) for entries in same.values() for e in entries.values()} == {(0, 0, 0)}
    alone = scores(videos[0], videos[1], ["a"] * 30)["action"]["mF1"]
    assert alone.value == one["action"]["mF1"].value and alone.low is None


SAID = [
    text_answer(["move forward"], ["road is clear"]),
    '{"description": "A light.", "action": ["stop"], "justification": ["red light", "the car ahead"]}',
    '```json\n{"action": "accelerate", "justification": "road clear"}\n```',
    "Action: accelerate; turn left; Reason: the car ahead; stop sign ahead",
    "I would stop.",
    "",
]


def test_out_of_vocabulary_counts_for_nothing_and_is_shown():
    answers = Answers(SAID)
    assert [np.flatnonzero(row).tolist() for row in answers.sets.action] == [[0], [1], [], [2], [], []]
    assert [np.flatnonzero(row).tolist() for row in answers.sets.reason] == [[1], [7], [1], [], [], []]
    assert answers.unknown("action") == {"accelerate": 2} and answers.unknown_of(3) == (
        "accelerate",
        "the car ahead",
        "stop sign ahead",
    )
    assert answers.unknown("reason").most_common(1) == [("the car ahead", 2)]
    shares = {name: round(6 * entry.value) for name, entry in answers.shares(range(6)).items()}
    assert shares == {
        "json": 1, "json_in_text": 1, "text": 2, "none": 2,
        "action_unknown": 2, "action_empty": 3, "reason_unknown": 2, "reason_empty": 3,
    }  # fmt: skip
    counts = distribution(answers.sets)
    assert counts["action"] == {"move forward": 1, "stop/slow down": 1, "turn left": 1, "turn right": 0, "(none)": 3}
    assert (counts["reason"]["road is clear"], counts["reason"]["(none)"]) == (2, 3)


def test_the_nearest_label_is_a_score_of_its_own():
    strict, near = Answers(SAID), Answers(SAID, nearest=True)
    # "stop sign ahead" has 2 words in common with "stop sign": 2 * 2 / 5 = .8; "the car ahead" is near nothing.
    assert np.flatnonzero(near.sets.reason[3]).tolist() == [8]
    assert near.unknown("reason") == {"the car ahead": 2} and near.unknown("action") == strict.unknown("action")
    moved = strict.share_changes(Answers([SAID[0]] * 6), range(6))
    assert moved["text"].value == pytest.approx(4 / 6) and moved["reason_empty"].value == pytest.approx(-1 / 2)


def test_baselines_by_hand():
    true = [[1, 0, 0, 0]] * 4 + [[0, 1, 0, 0]] * 3 + [[0, 1, 1, 0]] * 3
    reasons = np.zeros((10, 21), dtype=int)
    reasons[:4, 0], reasons[4:, 7], reasons[8:, 9] = 1, 1, 1
    known = label_sets(true, reasons)
    found = baselines(known, 10, seed=1)
    assert list(found) == [
        "majority set",
        "commonest labels",
        *(f"always {text}" for text in ACTION_TEXTS),
        "prior",
        "random",
    ]
    constant = {name: sets for name, sets in found.items() if len(sets) == 10}
    assert all(
        (sets.action == sets.action[0]).all() and (sets.reason == sets.reason[0]).all() for sets in constant.values()
    )
    said = {
        name: (np.flatnonzero(sets.action[0]).tolist(), np.flatnonzero(sets.reason[0]).tolist())
        for name, sets in constant.items()
    }
    assert said == {
        # Forward is the commonest set, stop the commonest label. As many rows have reason 0 alone as 7 alone: the earlier counts.
        "majority set": ([0], [0]),
        "commonest labels": ([0, 1], [0, 7]),
        "always move forward": ([0], [0]),
        "always stop/slow down": ([1], [7]),
        "always turn left": ([2], [7]),
        "always turn right": ([3], []),
    }
    # A row's labels stay together, and fall as often as in the rows.
    prior = found["prior"]
    assert len(prior) == 200 and not (prior.action[:, 0] & prior.reason[:, 7]).any()
    assert prior.action[:, 1].mean() == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / 200))
    assert found["random"].reason.mean() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 4200))
    # As many draws are one baseline: its score is the mean of theirs, its interval that of ten rows.
    groups = list(range(10))
    entry = scores(known, prior, groups)["action"]["F1_all"]
    each = [
        scores(known, LabelSets(prior.action[at], prior.reason[at]), groups)["action"]["F1_all"].value
        for at in (slice(start, start + 10) for start in range(0, 200, 10))
    ]
    assert entry.value == pytest.approx(np.mean(each)) and entry.high - entry.low > 0.1
    assert {name: len(sets) for name, sets in baselines(known, 3).items()}["prior"] == 60


def test_anchors_of_constant_answers():
    """Published shares of the test split: a constant answer's scores follow from the label sets alone."""
    sets = {
        "0100": 1504,
        "1000": 961,
        "1001": 515,
        "1010": 450,
        "1011": 420,
        "0101": 209,
        "0110": 171,
        "0111": 81,
        "1100": 56,
    }
    sets |= {"0010": 51, "0001": 51, "1101": 36, "1110": 25, "1111": 21, "0011": 6}
    truth = actions(*(word for word, count in sets.items() for _ in range(count)))
    assert len(truth) == 4557 and distribution(truth)["action"] == {
        "move forward": 2484, "stop/slow down": 2103, "turn left": 1225, "turn right": 1339, "(none)": 0,
    }  # fmt: skip
    said = baselines(truth, len(truth))
    groups = [0] * len(truth)
    expected = {
        "commonest labels": (0.578, 0.334),
        "always move forward": (0.415, 0.176),
        "always stop/slow down": (0.411, 0.158),
    }
    for name, anchor in expected.items():
        found = scores(truth, said[name], groups)["action"]
        assert (found["F1_all"].value, found["mF1"].value) == pytest.approx(anchor, abs=5e-4), name
    # A coin finds half of the rows of a label and is right in their share of its own: F1 is share / (share + 1/2).
    shares = truth.action.mean(0)
    random = scores(truth, said["random"], groups)["action"]
    assert random["mF1"].value == pytest.approx((shares / (shares + 0.5)).mean(), abs=0.004)


def test_reasons_are_shown_as_in_the_paper():
    assert list(REASON_ORDER) == [*range(9), 9, 10, 11, 15, 16, 17, 12, 13, 14, 18, 19, 20]
    assert sorted(REASON_ORDER) == list(range(len(REASON_TEXTS)))
