"""The scores by which answers to held-out rows are judged while a model trains (--eval_metric). METRICS is the table of them.

A metric takes prediction rows (data/predictions.py: "prediction", "reference", the row's own columns) and their groups, and
gives one value with its 95 % interval, in which whole groups are drawn. What cannot be read is counted as unread, and gets no
value in its place: it is no right answer. A metric that needs more of a row than its own answer says what is missing, before
anything is trained. A new one is a function, a line here and its words in metric_help.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from drive_vlm.evaluation import meta_actions, oia, planning, text_overlap
from drive_vlm.evaluation.answer_accuracy import correct_answers, normalize_answer
from drive_vlm.evaluation.answers import options_of_row, read_choice, strict_choice
from drive_vlm.evaluation.metric_help import METRIC_HELP
from drive_vlm.evaluation.oia_labels import ACTION_TEXTS
from drive_vlm.evaluation.statistics import Estimate, group_sums, pooled

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of N rows.

    Attributes:
        estimate: value and interval; all None where no value is defined.
        unread: answers that could not be read; None for a metric that reads nothing out of a text.
        more: figures next to it, by the end of their name.
    """

    estimate: Estimate
    unread: int | None = None
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A line of METRICS.

    Attributes:
        score: (rows, groups of the rows) -> Score.
        help: a few words for --help.
        lacks: what a row lacks to be scored, in words; "" where nothing is missing. Its own answer is checked for all metrics.
        greater_is_better: the direction in which the best checkpoint is looked for.
    """

    score: Callable[[Sequence[Row], Sequence[str]], Score]
    help: str
    lacks: Callable[[Row], str] = lambda row: ""
    greater_is_better: bool = True


def mean_score(
    values: np.ndarray, groups: Sequence[str], unread: int | None = None, more: Mapping[str, float] | None = None
) -> Score:
    """The mean of `values float[N]`."""
    sums = group_sums(np.column_stack([values, np.ones(len(values))]), groups)
    found = pooled(sums, lambda total: {"mean": total[..., 0] / total[..., 1]})
    return Score(found["mean"], unread, more or {})


def accuracy(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Share of rows whose answer is the row's own after `normalize_answer`."""
    return mean_score(correct_answers(*_texts(rows)), groups)


def macro_f1(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Mean over the classes of 2 TP / (2 TP + FP + FN). The classes are the different answers of the rows (normalised); an
    answer that is none of them is unread: the row's class misses it, and no class has said it."""
    said, wanted = ([normalize_answer(text) for text in texts] for texts in _texts(rows))
    classes = sorted(set(wanted))
    true = np.array([[text == one for one in classes] for text in wanted], dtype=float)
    claimed = np.array([[text == one for one in classes] for text in said], dtype=float)
    sums = group_sums(np.hstack([true * claimed, true, claimed]), groups)

    def scores(total: np.ndarray) -> dict[str, np.ndarray]:
        both, truth, claims = np.split(total, 3, axis=-1)
        return {"f1": (2 * both / np.maximum(truth + claims, 1)).mean(axis=-1)}

    return Score(pooled(sums, scores)["f1"], int((claimed.sum(axis=1) == 0).sum()))


def word_f1(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Mean over the rows of the F1 of the words of answer and row's own answer, normalised, after SQuAD's evaluation
    (Rajpurkar et al. 2016)."""
    return mean_score(np.array([_word_f1(*pair) for pair in zip(*_texts(rows), strict=True)]), groups)


def _word_f1(said: str, wanted: str) -> float:
    words, own = (Counter(normalize_answer(text).split()) for text in (said, wanted))
    if not words or not own:
        return float(words == own)
    return 2 * (words & own).total() / (words.total() + own.total())


def rouge_l(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Mean ROUGE-L F of the COCO caption evaluation (text_overlap.py)."""
    said, wanted = ([text_overlap.tokenize(text) for text in texts] for texts in _texts(rows))
    return mean_score(np.array(text_overlap.rouge_l(said, [[words] for words in wanted])), groups)


def choice(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Share of all rows whose answer names the right option, read leniently (answers/choices.py). "strict" next to it takes
    the bare letter only, as official scripts compare it; "differ" counts the rows on which the two disagree."""
    right, strict, unread = [], [], 0
    for row in rows:
        options = options_of_row(row, str(row["question"]))
        own, said = read_choice(row["reference"], options), read_choice(row["prediction"], options)
        unread += not said.read
        right.append(float(said.read and said.value == own.value))
        exact = strict_choice(row["prediction"], options)
        strict.append(float(exact.read and exact.value == own.value))
    values = np.array(right)
    more = {"strict": float(np.mean(strict)), "differ": float((values != np.array(strict)).sum())}
    return mean_score(values, groups, unread, more)


def _lacks_choice(row: Row) -> str:
    options = options_of_row(row, str(row["question"]))
    if not options:
        return 'options in its question, such as "A. Going ahead. B. Turning left.", and a column "options"'
    own = read_choice(row["reference"], options)
    return "" if own.read else f"an answer that names one of its options ({own.reason})"


def oia_actions(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """BDD-OIA's F1_all of the actions (oia.py) against the row's column `actions`; the macro mean mF1 stands next to it. An
    answer in which no form of answer is found is unread: it says no action."""
    answers = oia.Answers([row["prediction"] for row in rows])
    no_reasons = np.zeros((len(rows), len(oia.REASON_TEXTS)), dtype=bool)
    truth = oia.LabelSets(np.array([row["actions"] for row in rows], dtype=bool), no_reasons)
    found = oia.scores(truth, oia.LabelSets(answers.sets.action, no_reasons), groups)["action"]
    unread = sum(answer.form == "none" for answer in answers.read)
    mean = found["mF1"].value
    return Score(found["F1_all"], unread, {} if mean is None else {"mF1": mean})


def _lacks_actions(row: Row) -> str:
    labels = row.get("actions")
    if isinstance(labels, list) and len(labels) == len(ACTION_TEXTS) and all(label in (0, 1) for label in labels):
        return ""
    return f'a column "actions" of {len(ACTION_TEXTS)} labels, each 0 or 1 (tools/build_oia.py writes it)'


def plan_hit(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Share of all rows whose trajectory ends within 2 m of the true end (planning.py: 1 - miss rate). An unread answer is no
    hit, and has no distance: ADE and FDE in metres stand beside it, over the rows that were read."""
    truth = planning.plan_truth([(str(row["id"]), row, group) for row, group in zip(rows, groups, strict=True)])
    plans = planning.read_plans([row["prediction"] for row in rows], truth)
    read = plans.read
    scores = planning.row_scores(plans.points[read], truth.future[read])
    hits = np.zeros(len(rows))
    hits[read] = 1 - scores["miss_final"]
    more = {name: float(scores[name].mean()) for name in ("ADE", "FDE") if read.any()}
    return mean_score(hits, groups, int((~read).sum()), more)


def _lacks_future(row: Row) -> str:
    try:
        planning.plan_truth([("", row, "")])
    except ValueError as error:
        return f"a future of open-loop planning ({str(error).removeprefix(': ')})"
    return ""


def meta_action(rows: Sequence[Row], groups: Sequence[str]) -> Score:
    """Share of all rows whose speed and path are the true ones (meta_actions.py); macro F1 of both beside it. Unread: an answer
    without a speed or without a path."""
    classes, *others = dict.fromkeys(str(row["classes"]) for row in rows)
    if others:
        raise ValueError(
            f"--eval_metric meta_action: rows of the classes {classes} and {others[0]} are not scored together. Give rows of one of them."
        )
    true = [meta_actions.MetaAction(row["speed_class"], row["path_class"]) for row in rows]
    said = [meta_actions.read_meta_action(row["prediction"]) for row in rows]
    wanted, claimed = (meta_actions.labels(actions, classes) for actions in (true, said))
    found = meta_actions.scores(wanted, claimed, groups)
    more = {f"f1_{kind}": found[f"macro F1 {kind}"].value for kind in meta_actions.KINDS}
    given = {name: value for name, value in more.items() if value is not None}
    return Score(found["accuracy"], int((~claimed.read).sum()), given)


def _lacks_meta_action(row: Row) -> str:
    known = meta_actions.CLASSES.get(str(row.get("classes")), ())
    if row.get("speed_class") in meta_actions.SPEEDS and row.get("path_class") in known:
        return ""
    return "speed_class, path_class and classes (tools/build_meta_actions.py writes them)"


_LINES: dict[str, tuple[Any, ...]] = {
    "accuracy": (accuracy,),
    "choice": (choice, _lacks_choice),
    "f1": (macro_f1,),
    "word_f1": (word_f1,),
    "rouge_l": (rouge_l,),
    "meta_action": (meta_action, _lacks_meta_action),
    "plan_hit": (plan_hit, _lacks_future),
    "oia_f1": (oia_actions, _lacks_actions),
}
METRICS = {name: Metric(score, METRIC_HELP[name], *lacks) for name, (score, *lacks) in _LINES.items()}


def check_rows(names: Sequence[str], rows: Sequence[Row], places: Sequence[str]) -> None:
    """Raises ValueError with the first of `places` ("file:line") and the number of rows that a metric cannot score."""
    for name in names:
        lacking = []
        for row, place in zip(rows, places, strict=True):
            problem = METRICS[name].lacks(row) if str(row["reference"]).strip() else "an answer of its own"
            if problem:
                lacking.append((place, problem))
        if lacking:
            place, problem = lacking[0]
            raise ValueError(
                f"--eval_metric {name}: {len(lacking):,} of {len(rows):,} rows of --eval_generate cannot be scored; {place} lacks "
                f"{problem}. Give rows that have it, or another metric ({', '.join(METRICS)})."
            )
        # What only all rows together show.
        METRICS[name].score([{**row, "prediction": ""} for row in rows], places)


def _texts(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return [row["prediction"] for row in rows], [row["reference"] for row in rows]
