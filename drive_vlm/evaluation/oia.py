"""BDD-OIA's scores of N rows of labels: F1_all, mF1, micro-F1, accuracy of actions and reasons, F1 of pairs, and what no look earns.

With t, p the true and the said labels, bool[N, C], after the data set's own `test.py` (github.com/Twizwei/bddoia_project):

- F1 of a class c: 2 TP / (2 TP + FP + FN) over the rows, 0 where nothing of it is true or said; mF1: its mean over ALL C classes.
- F1_all: mean over the rows of 2 |t & p| / (|t| + |p|), 0 where both are empty. Not "global": micro_F1 is that.
- accuracy: share of right cells of N x C, which rows full of zeros flatter; exact: share of rows that are right in all C.
- pair: F1_all with the classes (action, reason), every action of a row with every reason of it.

They equal scikit-learn's f1_score with zero_division 0. Intervals are 95 % and draw whole groups, the videos.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from drive_vlm.evaluation.oia_labels import (
    ACTION_TEXTS,
    OBSTACLES_TO,
    REASON_TEXTS,
    REASONS_FOR,
    Answer,
    Labels,
    action_labels,
    read_answer,
    reason_labels,
)
from drive_vlm.evaluation.statistics import Estimate, Scores, group_sums, pooled, pooled_change

KINDS = {"action": ACTION_TEXTS, "reason": REASON_TEXTS}
# What is said of both kinds, before the F1 and the accuracy of each class.
OVERALL = ("F1_all", "mF1", "micro_F1", "accuracy", "exact")
# Reasons in the order of the seed paper's pictures: forward, stop, left, right; those for a turn before the obstacles to it.
REASON_ORDER = tuple(
    index
    for action, reasons in enumerate(REASONS_FOR)
    for index in sorted(reasons | OBSTACLES_TO.get(action, frozenset()))
)
# Draws of a baseline that throws dice: their mean is what counts.
DICE = 20

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class LabelSets:
    """Labels of N rows: action bool[N, 4], reason bool[N, 21]."""

    action: np.ndarray
    reason: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.action) == len(self.reason), "actions and reasons of the same rows"
        for kind, texts in KINDS.items():
            assert self.of(kind).shape[1:] == (len(texts),), kind

    def __len__(self) -> int:
        return len(self.action)

    def of(self, kind: str) -> np.ndarray:
        return getattr(self, kind)

    def times(self, copies: int) -> "LabelSets":
        """The rows `copies` times over, one list after the other."""
        return LabelSets(np.tile(self.action, (copies, 1)), np.tile(self.reason, (copies, 1)))


def label_sets(actions: Sequence[Sequence[int]], reasons: Sequence[Sequence[int]]) -> LabelSets:
    """From lists of 0 and 1, of length 4 and 21."""
    sizes = (len(ACTION_TEXTS), len(REASON_TEXTS))
    return LabelSets(
        *(np.array(rows, dtype=bool).reshape(-1, size) for rows, size in zip((actions, reasons), sizes, strict=True))
    )


# --- scores


def scores(truth: LabelSets, said: LabelSets, groups: Sequence[str], seed: int = 0) -> dict[str, Estimates]:
    """{action, reason: {F1_all, mF1, micro_F1, accuracy, exact, F1 <label>, accuracy <label>}, pair: {F1_all}} with intervals.

    `said` may hold the rows several times over (LabelSets.times): a baseline of as many draws.
    """
    sums, of_all = _joined(_parts(truth, said, groups))
    return _apart(pooled(sums, of_all, seed))


def changes(
    truth: LabelSets, first: LabelSets, second: LabelSets, groups: Sequence[str], seed: int = 0
) -> dict[str, Estimates]:
    """`second - first` of every score, row against row."""
    (old, of_all), (new, _) = (_joined(_parts(truth, said, groups)) for said in (first, second))
    return _apart(pooled_change(old, new, of_all, seed))


def _joined(parts: Iterator[tuple[str, np.ndarray, Scores]]) -> tuple[np.ndarray, Scores]:
    """All parts next to each other, float[G, K], and what makes scores "kind/score" of such sums: one drawing serves every kind."""
    kinds, columns, functions = zip(*parts, strict=True)
    cuts = np.cumsum([sums.shape[1] for sums in columns])[:-1]

    def of_all(sums: np.ndarray) -> dict[str, np.ndarray]:
        pieces = zip(kinds, functions, np.split(sums, cuts, axis=-1), strict=True)
        return {f"{kind}/{name}": score for kind, of_kind, piece in pieces for name, score in of_kind(piece).items()}

    return np.hstack(columns), of_all


def _apart(estimates: Estimates) -> dict[str, Estimates]:
    found: dict[str, Estimates] = {}
    for name, value in estimates.items():
        kind, score = name.split("/", 1)
        found.setdefault(kind, {})[score] = value
    return found


def _parts(truth: LabelSets, said: LabelSets, groups: Sequence[str]) -> Iterator[tuple[str, np.ndarray, Scores]]:
    """(kind, sums float[G, K] of the groups, what makes scores of such sums)."""
    copies = len(said) // len(truth)
    assert len(said) == copies * len(truth), "each row as many times as any other"
    truth, groups = truth.times(copies), list(groups) * copies
    for kind, texts in KINDS.items():
        columns = _counts(truth.of(kind), said.of(kind))
        yield kind, group_sums(columns, groups), partial(_scores_of_counts, texts=texts)
    pairs = np.column_stack([pair_f1(truth, said), np.ones(len(truth))])
    yield "pair", group_sums(pairs, groups), lambda sums: {"F1_all": sums[..., 0] / sums[..., 1]}


def _counts(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """float[N, 3 C + 3]: of each class whether it is true and said, true, said; of the row its F1, whether it is exact, and 1."""
    exact = (truth == said).all(1)
    return np.column_stack([truth & said, truth, said, row_f1(truth, said), exact, np.ones(len(truth))]).astype(
        np.float64
    )


def row_f1(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """float[N]: F1 of each row's labels, bool[N, C], 0 where neither side has one."""
    return _share(2 * (truth & said).sum(1), truth.sum(1) + said.sum(1))


def _scores_of_counts(sums: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores float[...] of sums float[..., 3 C + 3] of _counts."""
    classes = len(texts)
    hits, true, said = np.moveaxis(sums[..., : 3 * classes].reshape(*sums.shape[:-1], 3, classes), -2, 0)
    rows, wanted = sums[..., -1], true + said
    f1 = _share(2 * hits, wanted)
    # FP + FN is what is true or said less what is both, twice.
    right = 1 - (wanted - 2 * hits) / rows[..., None]
    found = {
        "F1_all": sums[..., -3] / rows,
        "mF1": f1.mean(-1),
        "micro_F1": _share(2 * hits.sum(-1), wanted.sum(-1)),
        "accuracy": right.mean(-1),
        "exact": sums[..., -2] / rows,
    }
    for index, text in enumerate(texts):
        found |= {f"F1 {text}": f1[..., index], f"accuracy {text}": right[..., index]}
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def pair_f1(truth: LabelSets, said: LabelSets) -> np.ndarray:
    """float[N]: F1 of each row's (action, reason) pairs, 0 where neither side has one."""
    sizes = [sets.action.sum(1) * sets.reason.sum(1) for sets in (truth, said)]
    both = (truth.action & said.action).sum(1) * (truth.reason & said.reason).sum(1)
    return _share(2 * both, sizes[0] + sizes[1])


# --- answers of a model


@dataclass(frozen=True)
class Answers:
    """Texts of a model read as labels, strictly, or with `nearest` also by the nearest label.

    A label out of vocabulary counts for nothing, so an answer without any other is empty.
    """

    texts: Sequence[str]
    nearest: bool = False

    @cached_property
    def read(self) -> list[Answer]:
        return [read_answer(text) for text in self.texts]

    @cached_property
    def _labels(self) -> dict[str, list[Labels]]:
        return {
            "action": [action_labels(answer.actions, self.nearest) for answer in self.read],
            "reason": [reason_labels(answer.reasons, self.nearest) for answer in self.read],
        }

    @cached_property
    def sets(self) -> LabelSets:
        vectors = {kind: [found.vector(len(KINDS[kind])) for found in rows] for kind, rows in self._labels.items()}
        return label_sets(vectors["action"], vectors["reason"])

    def unknown(self, kind: str) -> Counter[str]:
        """Texts out of vocabulary and the number of answers with them, the commonest first."""
        return Counter(text for found in self._labels[kind] for text in found.unknown)

    def unknown_of(self, row: int) -> tuple[str, ...]:
        """What one answer says out of vocabulary, actions first."""
        return tuple(text for rows in self._labels.values() for text in rows[row].unknown)

    def shares(self, groups: Sequence[str], seed: int = 0) -> Estimates:
        """Of all answers: valid JSON, JSON in other text, the text form, none of these; and of both kinds the answers with a label out
        of vocabulary and those without any label."""
        return pooled(group_sums(self._flags, groups), self._rates, seed)

    def share_changes(self, other: "Answers", groups: Sequence[str], seed: int = 0) -> Estimates:
        """`other - self` of `shares`."""
        sums = [group_sums(answers._flags, groups) for answers in (self, other)]
        return pooled_change(sums[0], sums[1], self._rates, seed)

    @cached_property
    def _flags(self) -> np.ndarray:
        """float[N, 9]: SHARES and 1."""
        forms = np.array([[answer.form == form for form in FORMS] for answer in self.read]).reshape(-1, len(FORMS))
        columns = [
            column
            for kind, rows in self._labels.items()
            for column in ([bool(found.unknown) for found in rows], ~self.sets.of(kind).any(1))
        ]
        return np.column_stack([forms, *columns, np.ones(len(self.read))]).astype(np.float64)

    @staticmethod
    def _rates(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {name: sums[..., index] / sums[..., -1] for index, name in enumerate(SHARES)}


# Answer.form; "none": unread.
FORMS = ("json", "json_in_text", "text", "none")
SHARES = (*FORMS, *(f"{kind}_{what}" for kind in KINDS for what in ("unknown", "empty")))


def distribution(sets: LabelSets) -> dict[str, dict[str, int]]:
    """{kind: {label: rows with it, "(none)": rows without any}}."""
    return {
        kind: dict(zip(texts, sets.of(kind).sum(0).tolist(), strict=True))
        | {"(none)": int((~sets.of(kind).any(1)).sum())}
        for kind, texts in KINDS.items()
    }


# --- baselines


def baselines(known: LabelSets, rows: int, seed: int = 0) -> dict[str, LabelSets]:
    """What a system says of N rows that it does not look at, from the labels of the rows `known`.

    - majority set: the commonest set of actions and the commonest set of reasons;
    - commonest labels: those k commonest ones that score best in F1_all on `known`, k for each kind;
    - always ...: one action, with the commonest reason of rows with it;
    - prior: the labels of a row of `known`, by lot; random: each label by the toss of a coin. Both DICE times over.
    """
    fixed = {"majority set": LabelSets(_commonest(known.action), _commonest(known.reason))}
    fixed["commonest labels"] = LabelSets(_best_prefix(known.action), _best_prefix(known.reason))
    for index, text in enumerate(ACTION_TEXTS):
        action = np.arange(len(ACTION_TEXTS)) == index
        counts = known.reason[known.action[:, index]].sum(0)
        reason = (np.arange(len(REASON_TEXTS)) == counts.argmax()) & (counts.max(initial=0) > 0)
        fixed[f"always {text}"] = LabelSets(action[None], reason[None])
    found = {name: sets.times(rows) for name, sets in fixed.items()}
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(known), size=DICE * rows)
    found["prior"] = LabelSets(known.action[drawn], known.reason[drawn])
    tossed = [generator.random((DICE * rows, len(texts))) < 0.5 for texts in KINDS.values()]
    return found | {"random": LabelSets(*tossed)}


def _commonest(labels: np.ndarray) -> np.ndarray:
    """bool[1, C]: the set that most rows of bool[N, C] have; of equally common ones that of the earlier row."""
    return np.array([Counter(map(tuple, labels.tolist())).most_common(1)[0][0]], dtype=bool)


def _best_prefix(labels: np.ndarray) -> np.ndarray:
    """bool[1, C]: of the k commonest labels of bool[N, C], k from 1 to C, those with the best F1_all as a constant answer."""
    order = np.argsort(-labels.sum(0), kind="stable")
    hits = labels[:, order].cumsum(1)
    f1 = 2 * hits / (labels.sum(1)[:, None] + np.arange(1, labels.shape[1] + 1))
    best = np.zeros((1, labels.shape[1]), dtype=bool)
    best[0, order[: int(f1.mean(0).argmax()) + 1]] = True
    return best
