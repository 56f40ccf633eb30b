"""Scores of replies that may ask back: when it asks, how well, what its answers are worth, and how it fails.

With a = the row is ambiguous and q = the reply asks (clarify_replies.py reads it):

* TP = a and q, FN = a and not q, FP = not a and q, TN. Precision, recall, F1; over-asking FP / (FP + TN); under-asking FN / (TP + FN);
  balanced accuracy; Youden's J = recall - over-asking, 0 for a system that always or never asks; MCC, 0 where a margin is empty, as in
  scikit-learn. An answer for several candidates (listed) is not asked, and is shown apart.
* Quality of the questions back to ambiguous rows whose things are known: valid (names something, and only what is there),
  discriminates, resolves, leading, echo.
* Final accuracy, two turns at most: a simulated user means one candidate. A question back is answered with its name, and the
  second reply counts. An answer at once is right where it is the answer about the meant thing and no other; a listing at level 2
  where that is in it and all of it is true. Utility = accuracy - 0.1 for each question.

Every score has its n and a 95 % interval that draws whole groups.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.agreement import McNemar, Rate, mcnemar
from drive_vlm.evaluation.calibration import equal_mass
from drive_vlm.evaluation.clarify_replies import (
    CANNOT_TELL,
    FAIL,
    MISSING,
    PASS,
    ClarifyRow,
    Reading,
    Verdict,
    published_reward,
    read_reply,
)
from drive_vlm.evaluation.clarify_words import Candidate, is_a
from drive_vlm.evaluation.statistics import Estimate, Scores, group_sums, pooled, pooled_change

QUESTION_COST = 0.1
LEVELS = (0, 1, 2, 3)
# Kinds of failure, in the order in which they are tried: a row has the first that fits.
FAILURES = {
    "unreadable": "empty, or no answer in it",
    "over_asking": "asks when clear",
    "silent_true": "silent pick, true of one",
    "silent_false": "silent pick, true of none",
    "silent_unknown": "silent pick, nobody can tell",
    "listed_at_3": "lists instead of asking (level 3)",
    "absent": "asks about what is not there",
    "leading_or_vague": "leading, vague or echo",
    "hallucinated": "answers about what is not there",
    "wrong_class": "wrong class",
    "other_instance": "answer to another instance",
    "wrong_fact": "right strategy, wrong fact",
}
RIGHT = "right"
KINDS = FAILURES | {RIGHT: "right"}
ALWAYS, NEVER = "always ask", "never ask"
# Candidates that the baseline "always ask" names.
_NAMED = 3
_SIZE_RATIOS = ((1.5, "1 to 1.5"), (2.0, "1.5 to 2"), (3.0, "2 to 3"), (math.inf, "3 and more"))


@dataclass(frozen=True)
class Reply:
    """A reply with what decides its scores.

    Attributes:
        group: what the intervals draw.
        parts: what the tables split by, such as {"candidates": "2"}.
        meant: number of the candidate that the simulated user means; None where nobody knows of any.
        after: the reply to his answer, where the row was asked back and someone went on.
        verdict: of a judge.
    """

    row: ClarifyRow
    reading: Reading
    group: str
    parts: Mapping[str, str]
    meant: int | None = None
    after: Reading | None = None
    verdict: Verdict | None = None

    @property
    def final_right(self) -> bool | None:
        """Whether the user has his answer in the end; None where nobody knows."""
        if self.reading.asked:
            return None if self.after is None else self.after.right_answer
        if not self.row.ambiguous:
            return self.reading.right_answer
        values = self.row.right_values
        if self.meant is None or len(values) <= self.meant or not all(values):
            return None
        if self.reading.listed:
            said = set(self.reading.said)
            return self.row.level == 2 and values[self.meant] in said and said <= set(values)
        return self.reading.said == [values[self.meant]]

    @property
    def questions(self) -> int:
        return int(self.reading.asked) + int(self.after is not None and self.after.asked)


def about(row: ClarifyRow, meant: int | None) -> ClarifyRow:
    """The row as the second turn of a dialogue, in which the user has said that he means the candidate `meant`."""
    return dataclasses.replace(row, target=meant) if row.ambiguous else row


def parts_of(row: ClarifyRow, class_: str) -> dict[str, str]:
    """What the scores are split by. The side is that of the thing that is meant, of an ambiguous row that of the largest candidate."""
    things, ranked = row.candidates, sorted(row.candidates, key=_area, reverse=True)
    found = {
        "candidates": f"{min(len(things), 4)}{'+' if len(things) > 3 else ''}",
        "class": class_,
        "type": row.type or "unknown",
        "level": str(row.level),
        "attribute": row.attribute,
    }
    if len(things) > 1:
        ratio = _area(ranked[0]) / max(_area(ranked[1]), 1e-9)
        found["size ratio"] = next(name for most, name in _SIZE_RATIOS if ratio < most)
    shown = things[row.target] if row.target is not None else ranked[0] if ranked else None
    found["side"] = shown.attributes.get("side", "unknown") if shown else "unknown"
    return found


def _area(thing: Candidate) -> float:
    x1, y1, x2, y2 = thing.box
    return (x2 - x1) * (y2 - y1)


# --- failures


def failure(reply: Reply) -> str:
    """The row's kind of failure, or RIGHT. Where the row was asked back and the second reply is known, its answer counts as well.

    The specific wrong answers stand before "right strategy, wrong fact", which would take them all.
    """
    row, reading = reply.row, reply.reading
    if not reading.asked and not reading.answers:
        return "unreadable"
    if not row.ambiguous:
        return "over_asking" if reading.asked else _wrong_answer(row, reading, row.target)
    if reading.asked:
        if reading.absent:
            return "absent"
        if reading.strategy == 2:
            return "leading_or_vague"
        return RIGHT if reply.after is None else _wrong_answer(about(row, reply.meant), reply.after, reply.meant)
    if not reading.listed:
        return {PASS: "silent_true", FAIL: "silent_false", CANNOT_TELL: "silent_unknown"}[reading.factual]
    if row.level == 3:
        return "listed_at_3"
    return "wrong_fact" if reading.factual == FAIL else RIGHT


def _wrong_answer(row: ClarifyRow, reading: Reading, meant: int | None) -> str:
    """How an answer about the thing `meant` is wrong, or RIGHT."""
    if reading.right_answer:
        return RIGHT
    if row.type == MISSING:
        return "hallucinated"
    things = row.candidates
    if meant is not None:
        others = [noun for noun in reading.nouns if not is_a(things[meant], noun)]
        if others:
            # A clear row has all things of its class as candidates; of other classes, and of an ambiguous row, nobody knows the rest.
            there = any(is_a(thing, noun) for noun in others for thing in things)
            of_class = any(is_a(dataclasses.replace(things[meant], attributes={}), noun) for noun in others)
            return "hallucinated" if of_class and not there and not row.ambiguous else "wrong_class"
        values = {thing.attributes.get(row.attribute) for i, thing in enumerate(things) if i != meant}
        if len(reading.said) == 1 and reading.said[0] in values:
            return "other_instance"
    return "wrong_fact"


# --- scores

# Name -> of each row what is counted, and among what.
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def scores(replies: Sequence[Reply], seed: int = 0) -> dict[str, Rate]:
    """All scores of a system by name, and its kinds of failure as "failure NAME", in shares of all rows."""
    sums, of_sums, counts = _prepared(_pairs(replies, ended(replies)), replies)
    return {name: Rate.of(counts[name], value) for name, value in pooled(sums, of_sums, seed).items()}


def changes(first: Sequence[Reply], second: Sequence[Reply], seed: int = 0) -> dict[str, Estimate]:
    """`second - first` of the scores, on the same rows; of the ends on the rows whose end is known of both."""
    both = ended(first) & ended(second)
    (old, of_sums, _), (new, _, _) = (_prepared(_pairs(replies, both), replies) for replies in (first, second))
    return pooled_change(old, new, of_sums, seed)


def break_even(asking: float, answering: float) -> float:
    """The belief that a question is ambiguous from which asking pays: q asking > (1 - q) answering, with `asking` the worth of asking
    back when it is, and `answering` that of an answer when it is not.

    >>> round(break_even(1.0, 0.5), 6)
    0.333333
    """
    return answering / (answering + asking) if answering + asking else math.nan


def belief_that_pays(replies: Sequence[Reply]) -> float | None:
    """The break-even of a system whose wrong answers are worth 0: its right answers to clear rows that it answers against its questions
    back to ambiguous rows that name nothing false. Above it, asking always pays; None where it never asks so or never answers."""
    back = [item.reading.factual != FAIL for item in replies if item.row.ambiguous and item.reading.asked]
    answered = [item.reading.right_answer for item in replies if not item.row.ambiguous and not item.reading.asked]
    if not back or not answered:
        return None
    found = break_even(sum(back) / len(back), sum(answered) / len(answered))
    return None if math.isnan(found) else found


def ended(replies: Sequence[Reply]) -> np.ndarray:
    """bool[N]: rows whose end is known. None where rows were asked back and nobody went on from any: the rest would be another set of
    rows for each system, the easy ones."""
    known = np.array([item.final_right is not None for item in replies], dtype=bool)
    back = [item for item in replies if item.reading.asked]
    return known & (not back or any(item.after is not None for item in back))


def by_part(replies: Sequence[Reply], seed: int = 0) -> dict[str, dict[str, dict[str, Rate]]]:
    """{part: {its value: {ask_recall, over_asking, strategic_accuracy}}}."""
    ambiguous, asked, right = _marks(replies)
    pairs: Pairs = {}
    order: list[tuple[str, str]] = []
    for part in dict.fromkeys(name for reply in replies for name in reply.parts):
        for value in sorted({reply.parts[part] for reply in replies if part in reply.parts}):
            here = np.array([reply.parts.get(part) == value for reply in replies])
            order.append((part, value))
            pairs[f"{len(order)} ask_recall"] = (here & ambiguous & asked, here & ambiguous)
            pairs[f"{len(order)} over_asking"] = (here & ~ambiguous & asked, here & ~ambiguous)
            pairs[f"{len(order)} strategic_accuracy"] = (here & right, here)
    rates = ratios(pairs, [reply.group for reply in replies], seed)
    found: dict[str, dict[str, dict[str, Rate]]] = {}
    for number, (part, value) in enumerate(order, 1):
        names = ("ask_recall", "over_asking", "strategic_accuracy")
        found.setdefault(part, {})[value] = {name: rates[f"{number} {name}"] for name in names}
    return found


@dataclass(frozen=True)
class Length:
    """Replies of about one length: their mean words, and the mean strategy by rule and by the judge."""

    words: float
    strategy: Rate
    judge: Rate


def by_length(replies: Sequence[Reply], bins: int = 6, seed: int = 0) -> list[Length]:
    """The replies in bins of about as many, the shortest first."""
    words = np.array([float(len(item.reading.text.split())) for item in replies])
    place = equal_mass(words, bins)
    strategy = np.array([float(item.reading.strategy) for item in replies])
    judged = np.array([0.0 if item.verdict is None else item.verdict.strategy for item in replies])
    pairs: Pairs = {}
    for number in np.unique(place):
        here = place == number
        pairs[f"strategy {number}"] = (here * strategy, here)
        pairs[f"judge {number}"] = (here * judged, here & (judged > 0))
    rates = ratios(pairs, [item.group for item in replies], seed)
    return [
        Length(float(words[place == number].mean()), rates[f"strategy {number}"], rates[f"judge {number}"])
        for number in np.unique(place)
    ]


def ratios(pairs: Pairs, groups: Sequence[str], seed: int = 0) -> dict[str, Rate]:
    """Each pair's sum of the first over that of the second, from one drawing of groups."""
    sums = _stacked(pairs, groups)
    wholes = dict(zip(pairs, sums.sum(axis=0)[len(pairs) :], strict=True))
    found = pooled(sums, lambda drawn: _quotients(tuple(pairs), drawn), seed)
    return {name: Rate.of(wholes[name], value) for name, value in found.items()}


def accuracy(right: Sequence[bool], groups: Sequence[str], seed: int = 0) -> Rate:
    """Share of right answers."""
    return ratios({"accuracy": (np.array(right, dtype=bool), np.ones(len(right)))}, groups, seed)["accuracy"]


def errors_of_answers(replies: Sequence[Reply], sampled: Sequence[Sequence[Reading]]) -> list[float]:
    """Of each row the share of wrong ones among its sampled replies that answer at once; 1 where all ask.

    An answer to an ambiguous row is right as in `Reply.final_right`, and wrong where nobody knows.
    """
    found = []
    for reply, readings in zip(replies, sampled, strict=True):
        answers = [dataclasses.replace(reply, reading=reading, after=None) for reading in readings if not reading.asked]
        found.append(1 - sum(bool(answer.final_right) for answer in answers) / len(answers) if answers else 1.0)
    return found


def confusion(replies: Sequence[Reply]) -> dict[str, dict[str, int]]:
    """Rows by {ambiguous, clear} and {asked, listed, answered}; listed: an answer for several candidates."""
    found = {truth: dict.fromkeys(("asked", "listed", "answered"), 0) for truth in ("ambiguous", "clear")}
    for reply in replies:
        what = "asked" if reply.reading.asked else "listed" if reply.reading.listed else "answered"
        found["ambiguous" if reply.row.ambiguous else "clear"][what] += 1
    return found


def paired(first: Sequence[Reply], second: Sequence[Reply]) -> dict[str, McNemar]:
    """McNemar's test of two systems on the same rows: the decision to ask, the strategy, answers to clear rows, the end of the dialogue."""
    pairs = list(zip(first, second, strict=True))
    clear = [pair for pair in pairs if not pair[0].row.ambiguous]
    both = ended(first) & ended(second)
    known = [pair for pair, end in zip(pairs, both, strict=True) if end]
    cases: dict[str, tuple[list[tuple[Reply, Reply]], Callable[[Reply], bool]]] = {
        "asks when it should": (pairs, lambda item: item.reading.asked == item.row.ambiguous),
        "right strategy": (pairs, lambda item: item.reading.right_strategy),
        "clear rows answered right": (clear, lambda item: item.reading.right_answer),
        "right in the end": (known, lambda item: bool(item.final_right)),
    }
    return {
        name: mcnemar([right(a) for a, _ in rows], [right(b) for _, b in rows]) for name, (rows, right) in cases.items()
    }


def _marks(replies: Sequence[Reply]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool[N] each: ambiguous, asked, right strategy."""
    marks = [(item.row.ambiguous, item.reading.asked, item.reading.right_strategy) for item in replies]
    ambiguous, asked, right = np.array(marks, dtype=bool).reshape(-1, 3).T
    return ambiguous, asked, right


def _pairs(replies: Sequence[Reply], ends: np.ndarray) -> Pairs:
    """What is counted of each row; `ends` are the rows whose end counts, bool[N]."""
    ambiguous, asked, right = _marks(replies)
    rows = np.ones(len(replies))

    def flag(what: Callable[[Reply], object]) -> np.ndarray:
        return np.array([bool(what(item)) for item in replies], dtype=bool)

    pairs: Pairs = {
        "ask_recall": (ambiguous & asked, ambiguous),
        "over_asking": (~ambiguous & asked, ~ambiguous),
        "ask_precision": (ambiguous & asked, asked),
        # 2 TP / (2 TP + FP + FN)
        "ask_F1": (2.0 * (ambiguous & asked), 1.0 * asked + ambiguous),
        "under_asking": (ambiguous & ~asked, ambiguous),
        "listed": (flag(lambda item: item.reading.listed), ambiguous),
        "clear_accuracy": (flag(lambda item: item.reading.right_answer) & ~ambiguous, ~ambiguous),
        "strategic_accuracy": (right, rows),
    }
    for level in LEVELS:
        here = np.array([item.row.level == level for item in replies])
        pairs[f"strategic_accuracy level {level}"] = (right & here, here)
    facts = [item.reading.factual for item in replies]
    pairs["factual"] = _told(facts)
    pairs["cannot_tell"] = (np.array([fact == CANNOT_TELL for fact in facts]), rows)
    pairs["strategy"] = (np.array([float(item.reading.strategy) for item in replies]), rows)
    pairs["reward"] = (
        np.array([published_reward(item.reading.strategy, item.reading.factual) for item in replies]),
        rows,
    )
    pairs["words"] = (np.array([float(len(item.reading.text.split())) for item in replies]), rows)
    back = asked & ambiguous & flag(lambda item: item.row.candidates)
    pairs["valid"] = (back & flag(lambda item: item.reading.parts and not item.reading.absent), back)
    for name in ("discriminates", "resolves", "leading", "echo"):
        pairs[name] = (back & np.array([getattr(item.reading, name) for item in replies], dtype=bool), back)
    pairs["final_accuracy"] = (ends & flag(lambda item: item.final_right), ends)
    pairs["questions"] = (ends * np.array([float(item.questions) for item in replies]), ends)
    failures = [failure(item) for item in replies]
    pairs |= {f"failure {kind}": (np.array([found == kind for found in failures]), rows) for kind in KINDS}
    return pairs | _judged(replies)


def _told(facts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """(passed, passed or failed): what nobody can tell is left out."""
    return np.array([fact == PASS for fact in facts]), np.array([fact in (PASS, FAIL) for fact in facts])


def _judged(replies: Sequence[Reply]) -> Pairs:
    """The same of a judge's verdicts; {} where there is none."""
    verdicts = [item.verdict for item in replies]
    if not any(verdicts):
        return {}
    read = np.array([verdict is not None for verdict in verdicts])
    strategy = np.array([0.0 if verdict is None else verdict.strategy for verdict in verdicts])
    reward = [0.0 if verdict is None else published_reward(verdict.strategy, verdict.factual) for verdict in verdicts]
    return {
        "judge_strategy": (strategy, read),
        "judge_strategic_accuracy": (strategy > 1, read),
        "judge_factual": _told([None if verdict is None else verdict.factual for verdict in verdicts]),
        "judge_reward": (np.array(reward), read),
    }


def _prepared(pairs: Pairs, replies: Sequence[Reply]) -> tuple[np.ndarray, Scores, dict[str, float]]:
    """(sums float[G, 2 P] of the groups, what makes all scores of such sums, how many cases each score has)."""
    names = tuple(pairs)
    sums = _stacked(pairs, [item.group for item in replies])

    def of_sums(drawn: np.ndarray) -> dict[str, np.ndarray]:
        return _quotients(names, drawn) | _composites(names, drawn)

    counts = dict(zip(names, sums.sum(axis=0)[len(names) :].tolist(), strict=True))
    # A balance of rows of both kinds has all rows as its cases; so has F1, whose denominator counts a hit twice.
    counts |= dict.fromkeys(("ask_F1", "balanced_accuracy", "youden_J", "MCC"), float(len(replies)))
    return sums, of_sums, counts | {"final_utility": counts["final_accuracy"]}


def _stacked(pairs: Pairs, groups: Sequence[str]) -> np.ndarray:
    """float[G, 2 P]: the counted things of all pairs, then what they are counted among."""
    columns = [part for part, _ in pairs.values()] + [whole for _, whole in pairs.values()]
    return group_sums(np.column_stack(columns).astype(np.float64), groups)


def _quotients(names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    part, whole = np.split(sums, 2, axis=-1)
    found = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    return {name: found[..., i] for i, name in enumerate(names)}


def _composites(names: Sequence[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of several counts."""
    rate = _quotients(names, sums)
    recall, over = rate["ask_recall"], rate["over_asking"]
    size = len(names)
    hits, ambiguous = sums[..., names.index("ask_recall")], sums[..., size + names.index("ask_recall")]
    false, clear = sums[..., names.index("over_asking")], sums[..., size + names.index("over_asking")]
    asked, silent = hits + false, ambiguous + clear - hits - false
    root = np.sqrt(asked * silent * ambiguous * clear)
    products = hits * (clear - false) - false * (ambiguous - hits)
    return {
        "balanced_accuracy": (recall + 1 - over) / 2,
        "youden_J": recall - over,
        "MCC": np.divide(products, root, out=np.zeros_like(root), where=root > 0),
        "final_utility": rate["final_accuracy"] - QUESTION_COST * rate["questions"],
    }


# --- baselines that do not look


def baseline(reply: Reply, name: str, guess: int) -> Reply:
    """What the systems ALWAYS and NEVER say to the row of `reply`, whose answers are right where they can be.

    ALWAYS names the candidates, and its second reply is right. NEVER answers right; of an ambiguous row it answers about the
    candidate number `guess`. So both are what no look at the ambiguity earns at most.
    """
    row = reply.row
    if name == NEVER:
        known = row.ambiguous and guess < len(row.answers)
        text = row.answers[guess] if known else row.answer if not row.ambiguous else "It is the one in the picture."
        return dataclasses.replace(reply, reading=read_reply(row, text), after=None, verdict=None)
    names = [thing.name for thing in row.candidates][:_NAMED]
    if len(row.candidates) > _NAMED or len(names) == 1:
        names.append("another")
    text = f"Do you mean {', '.join(names[:-1])} or {names[-1]}?" if names else "Which one do you mean?"
    meant = reply.meant if row.ambiguous and reply.meant is not None and reply.meant < len(row.answers) else None
    answer = row.answers[meant] if meant is not None else row.answer
    after = None if row.ambiguous and meant is None else read_reply(about(row, meant), answer)
    return dataclasses.replace(reply, reading=read_reply(row, text), after=after, verdict=None)
