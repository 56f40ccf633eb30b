"""Accuracy of short answers, what can be had without looking at the picture, and what guessing gives.

An answer is right when it equals the row's own, the target, after `normalize_answer`. The blind baseline answers every question
with the commonest training answer of its template; chance draws evenly from the different training answers of the
template. Only what an evaluated model has above both says that it reads the picture.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# a point between two digits and a minus before a digit belong to the number
_PUNCTUATION = re.compile(r"(?!(?<=\d)\.(?=\d))(?!(?<!\w)-(?=\d))[^\w\s]")


def normalize_answer(text: str) -> str:
    """Lower case, Unicode NFKC, without punctuation and the articles a, an, the, single spaces; after SQuAD's
    evaluation (Rajpurkar et al. 2016). Unlike there, "0.5" and "-5" stay what they are.

    >>> normalize_answer(" The  red light. ")
    'red light'
    """
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub(" ", text)).split())


def correct_answers(predictions: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """float64[N]: 1 where prediction and target agree after `normalize_answer`, else 0."""
    assert len(predictions) == len(targets), "one prediction for each target"
    pairs = zip(predictions, targets, strict=True)
    return np.array([normalize_answer(said) == normalize_answer(expected) for said, expected in pairs], dtype=float)


@dataclass
class TrainingAnswers:
    """Normalised training answers counted by the template of their question."""

    by_template: dict[str, Counter] = field(default_factory=dict)
    overall: Counter = field(default_factory=Counter)

    def add(self, template: str, answer: str) -> None:
        answer = normalize_answer(answer)
        self.by_template.setdefault(template, Counter())[answer] += 1
        self.overall[answer] += 1

    def of(self, template: str) -> Counter:
        """Counts of a template; those of all questions for a template that training never saw."""
        return self.by_template.get(template) or self.overall

    def majority(self, templates: Iterable[str]) -> list[str]:
        """The commonest answer for each question's template; of equally common ones the first in the alphabet."""
        return [min(counts, key=lambda answer: (-counts[answer], answer)) for counts in map(self.of, templates)]

    def chance(self, templates: Iterable[str]) -> np.ndarray:
        """float64[N]: 1 / number of different training answers of each question's template."""
        return np.array([1 / len(self.of(template)) for template in templates])
