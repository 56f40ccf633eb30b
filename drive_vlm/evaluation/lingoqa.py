"""LingoQA's scores: Lingo-Judge's share of right answers, and BLEU, METEOR, CIDEr, ROUGE-L beside it.

Source: wayveai/LingoQA, benchmark/evaluate.py and judge.py (27250f7; Marcu et al., ECCV 2024, arXiv 2312.14115). A question of the
evaluation set has several references; the score of an answer is the classifier's highest over them, and above 0 it is right. The
official script prints the share of right answers. It has no code for the text scores that the paper names: here they are those of
text_overlap.py (the COCO caption evaluation, over all references) and meteor.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drive_vlm.evaluation.meteor import meteor, open_wordnet
from drive_vlm.evaluation.score_table import SCORES, ScoreTable, majority
from drive_vlm.evaluation.statistics import group_sums, pooled
from drive_vlm.evaluation.text_overlap import language_counts, scores_of_counts

BENCHMARK, VERSION = "LingoQA", "wayveai/LingoQA@27250f7"
# Questions of the evaluation set; each has two references.
PUBLISHED = 500
_NAMES = {
    "Bleu_1": "BLEU-1",
    "Bleu_2": "BLEU-2",
    "Bleu_3": "BLEU-3",
    "Bleu_4": "BLEU-4",
    "CIDEr": "CIDEr",
    "ROUGE_L": "ROUGE-L",
}


@dataclass(frozen=True)
class Item:
    """An answered question with its references, of the segment `group`."""

    group: str
    question: str
    references: tuple[str, ...]
    prediction: str


def add_judged(
    table: ScoreTable, name: str, items: Sequence[Item], texts: Sequence[str], scores: np.ndarray, section: str = SCORES
) -> None:
    """The share of `texts` that the judge calls right, and its mean probability, from its logits `scores` float[N]. An empty
    answer is wrong whatever the classifier says of it, and counted as unread."""
    empty = np.array([not text.strip() for text in texts])
    groups = [item.group for item in items]
    right = (scores > 0) & ~empty
    probability = np.where(empty, 0.0, 1 / (1 + np.exp(-scores)))
    table.add(f"{name}Lingo-Judge", right.astype(float), groups, unread=int(empty.sum()), section=section)
    table.add(f"{name}Lingo-Judge, mean probability", probability, groups, unread=int(empty.sum()), section=section)


def add_texts(table: ScoreTable, name: str, items: Sequence[Item], texts: Sequence[str], section: str = SCORES) -> None:
    """BLEU-1 to 4 over the corpus, CIDEr (x 100 in a table of points), ROUGE-L and METEOR of `texts`, over all references."""
    groups, wanted = [item.group for item in items], [list(item.references) for item in items]
    sums = group_sums(language_counts(list(texts), wanted), groups)
    found = pooled(sums, scores_of_counts, table.seed)
    for key, shown in _NAMES.items():
        table.add_estimate(f"{name}{shown}", found[key], len(items), len(sums), section=section)
    label, scores = meteor(list(texts), wanted, open_wordnet())
    table.add(f"{name}{label}", scores, groups, section=section)


def commonest_answers(items: Sequence[Item], known: Sequence[Item] | None) -> list[str]:
    """The commonest answer of the `known` questions with the same words, else of all of them, for each of `items`. None: of the
    evaluated ones without regard to the question, since almost every question has its own reference and would be given it."""
    by_question = known is not None
    pairs = [
        (answer.strip().casefold(), item.question.strip().casefold() if by_question else "")
        for item in (items if known is None else known)
        for answer in item.references
    ]
    answers, questions = [answer for answer, _ in pairs], [question for _, question in pairs]
    asked = [item.question.strip().casefold() if by_question else "" for item in items]
    return [found or "" for found in majority(answers, questions, asked)]
